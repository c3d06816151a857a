"""Thousands of hosts that pull one image through a fleet, in virtual time, by the fleet's own decision code."""
