"""Whom connections to upstream trust."""

import functools
import os
import ssl
from pathlib import Path

import certifi


@functools.cache  # a context takes 20 ms, and 20 registries have the same one
def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Trust of the system, or certifi's where the system has none, and of *ca_file* beside it."""
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    has_folder = os.path.isdir(paths.openssl_capath) and bool(os.listdir(paths.openssl_capath))  # noqa: PTH112, PTH208
    if not (os.path.isfile(paths.openssl_cafile) or has_folder or os.environ.get("SSL_CERT_FILE")):  # noqa: PTH113
        context.load_verify_locations(certifi.where())
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context
