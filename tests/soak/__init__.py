"""Long runs under random trouble, and what must still hold at their end."""
