"""Certificates of the look-alike: an own CA, and one that nobody trusts."""

import ssl
from pathlib import Path

import trustme

# Docker Hub's own name too: a dockerd in a mount namespace with a hosts file of its own takes the look-alike for it.
ADDRESSES = tuple(f"127.0.0.{number}" for number in range(1, 32))
# And those of registries that nobody has listed.
NAMES = (*ADDRESSES, "localhost", "registry-1.docker.io", "*.unlisted.example")


class Authority:
    """Issues one certificate for every address of the look-alike and writes the CA's to ``ca_file``."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)
        self._contexts: dict[str, ssl.SSLContext] = {}

    def context(self, certificate: str) -> ssl.SSLContext:
        """Return the server's context: *certificate* is "trusted" or "unknown_ca"."""
        if certificate not in self._contexts:
            ca = self._ca if certificate == "trusted" else trustme.CA()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            ca.issue_cert(*NAMES).configure_cert(context)
            self._contexts[certificate] = context
        return self._contexts[certificate]
