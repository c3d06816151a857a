"""The registry that misses are fetched from."""
