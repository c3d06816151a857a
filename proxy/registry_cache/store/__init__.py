"""Verified bytes on a disk, and what is known about them."""
