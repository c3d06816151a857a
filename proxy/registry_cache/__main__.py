"""``python -m registry_cache`` and the ``registry-cache`` command."""

from registry_cache.cli import main

if __name__ == "__main__":
    main()
