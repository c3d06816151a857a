"""What is here and whose it is: list, purge and pins, manifests as they are read, proven links."""
