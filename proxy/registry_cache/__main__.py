"""``python -m registry_cache`` and the ``registry-cache`` command."""

import os

from registry_cache.completing.offers import VARIABLE, complete
from registry_cache.runtime.streams import put_in_order


def main() -> None:
    """Run the command; what Tab asks for is answered without loading it."""
    put_in_order()
    if VARIABLE in os.environ and complete(os.environ):
        return
    from registry_cache.cli import main as run  # noqa: PLC0415 -- see above

    run()


if __name__ == "__main__":
    main()
