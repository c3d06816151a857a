"""``python -m proxy`` and the ``registry-cache`` command."""

from proxy.cli import main

if __name__ == "__main__":
    main()
