"""``python -m tests.soak``."""

from tests.soak.run import main

main()
