"""A pull-through cache for container registries, and a careful cleaner of the host's own images."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("registry-cache")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
