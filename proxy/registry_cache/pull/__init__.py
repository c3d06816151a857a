"""The decision for each request, and one flight for each digest that is not here."""
