"""Pulling images through the running cache before somebody needs them."""
