"""Threads, background loops, work that is shared, systemd."""
