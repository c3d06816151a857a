"""Values and small tools that know nothing of the rest."""
