"""TLS between replicas: each shows a certificate, and takes those of the fleet's own authority, whatever they are for.

The names in certificates are not looked at: replicas are reached by addresses that change. Who has the authority's
certificate and the fleet's key is one of the fleet. Files that have changed are read again, for later connections.
"""

import ssl
import time
from collections.abc import Callable
from pathlib import Path

from registry_cache.model.errors import SettingsError
from registry_cache.runtime.file_marks import marks

_LOOK_SECONDS = 10.0


class FleetTls:
    """See the module.

    Args:
        authority: PEM of whose certificates count.
        warn: told of files that are wrong by now; what was read before counts on.

    Raises:
        SettingsError: they are wrong from the beginning.
    """

    def __init__(self, certificate: Path, key: Path, authority: Path, *, warn: Callable[[str], None]) -> None:
        self._files = (certificate, key, authority)
        self._warn = warn
        self._seen = marks(self._files)
        self._looked_at = time.monotonic()
        self.server, self._client = self._loaded()
        self._current = self.server
        self.server.sni_callback = self._choose

    def client(self) -> ssl.SSLContext:
        """For a connection to another replica."""
        self._look()
        return self._client

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        self._look()
        connection.context = self._current

    def _look(self) -> None:
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        seen = marks(self._files)
        if seen != self._seen:
            self._seen = seen
            try:
                self._current, self._client = self._loaded()
            except SettingsError as error:
                self._warn(f"{error}; the certificate from before counts on")

    def _loaded(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        certificate, key, authority = self._files
        both = []
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(protocol)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            # A resumed session would bring a certificate back that nobody has looked at since.
            context.options |= ssl.OP_NO_TICKET
            if protocol is ssl.PROTOCOL_TLS_SERVER:
                context.num_tickets = 0
            try:
                context.load_cert_chain(certificate, key, password=_no_password)
            except (OSError, ValueError) as error:
                raise SettingsError(f"FLEET_TLS_CERT, FLEET_TLS_KEY: {certificate} and {key}: {_why(error)}") from error
            try:
                context.load_verify_locations(authority)
            except OSError as error:
                raise SettingsError(f"FLEET_TLS_CA: {authority}: {_why(error)}") from error
            both.append(context)
        return both[0], both[1]


def _no_password() -> str:
    """Asked for where the key is encrypted; without this, OpenSSL asks the terminal."""
    raise ValueError("the key is encrypted: it has to be without a password")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "this is no PEM").replace("_", " ").lower()
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
