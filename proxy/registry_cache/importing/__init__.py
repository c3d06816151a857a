"""Taking over the storage folder of a ``registry:2``: what is in it, what fits, and how it comes in."""
