"""The store and its index, simulated: see ``world.py``. ``python -m tests.simulator --runs 10000``."""
