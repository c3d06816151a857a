"""The certificate that clients see, and whose certificates of their own count; reread while connections go on.

Source: ``ssl.SSLContext.sni_callback`` is called for each handshake, with and without a name in it; the context that it
puts in place brings its own chain and its own authorities.
"""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import SettingsError
from registry_cache.runtime.background import Background
from registry_cache.runtime.file_marks import marks

_LOOK_SECONDS = 30.0


class Certificates:
    """See the module. Whoever makes it closes it.

    Attributes:
        context: for whoever listens; it stays the same when what it serves changes.
        ends_at: of the certificate, Unix seconds.
        others_count: called when other authorities count for clients than before.

    Args:
        client_ca: PEM of the authorities whose certificates count; clients are asked for theirs, and need not have one.

    Raises:
        SettingsError: a file cannot be read, or key and certificate do not belong together.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None, *, events: Events) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._files = (certificate, key, client_ca)
        self._events = events
        self.others_count: Callable[[], None] = lambda: None
        self._authorities = self._client_ca_as_it_is()  # before it is loaded: a change meanwhile is seen the next time
        self.context, self.ends_at = self._load(), self._end()
        self._current = self.context
        self.context.sni_callback = self._choose
        self._seen = marks(self._files)
        self._watch = Background("certificates", self._look_again, interval_seconds=_LOOK_SECONDS, events=events)

    def start(self) -> None:
        """Look at the files from time to time."""
        self._watch.start()

    async def aclose(self) -> None:
        """Look no more."""
        await self._watch.aclose()

    def reload(self) -> None:
        """Read the files, for connections from now on. What is wrong with them leaves all as it is."""
        self._seen = marks(self._files)
        try:
            authorities = self._client_ca_as_it_is()
            self._current, self.ends_at = self._load(), self._end()
        except SettingsError as error:
            self._events.emit(events.Warned(message=f"{error}; the certificate from before is served on"))
            return
        self._events.emit(events.CertificateLoaded(ends_at=self.ends_at))
        if authorities != self._authorities:
            self._authorities = authorities
            self.others_count()

    async def _look_again(self) -> None:
        seen = await asyncio.to_thread(marks, self._files)
        if seen != self._seen:
            self.reload()

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        # A resumed session would bring a client's certificate back that nobody has looked at since.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except (OSError, ValueError) as error:
            raise SettingsError(f"TLS_CERT, TLS_KEY: {self._reason(error)}") from error
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
            try:
                context.load_verify_locations(self._client_ca)
            except OSError as error:
                raise SettingsError(f"CLIENT_CA: {self._client_ca}: {_why(error)}") from error
        return context

    def _client_ca_as_it_is(self) -> bytes:
        try:
            return b"" if self._client_ca is None else self._client_ca.read_bytes()
        except OSError as error:
            raise SettingsError(f"CLIENT_CA: {self._client_ca}: {_why(error)}") from error

    def _reason(self, error: Exception) -> str:
        return f"{self._certificate} and {self._key}: {_why(error)}"

    def _end(self) -> float:
        from cryptography import x509  # noqa: PLC0415 -- 70 ms of CPU that a start without TLS does not take

        try:
            return x509.load_pem_x509_certificate(self._certificate.read_bytes()).not_valid_after_utc.timestamp()
        except (OSError, ValueError) as error:
            raise SettingsError(f"TLS_CERT: {self._certificate}: {_why(error)}") from error


def certificate_names(connection: ssl.SSLObject) -> tuple[str, ...]:
    """The names in the certificate that a client has shown: DNS names and URIs, else its common name.

    What cannot be shown is no name. Where one is no text at all, Python ends the handshake.
    """
    if connection.session_reused:  # nobody has looked at it this time
        return ()
    found = connection.getpeercert() or {}
    alternatives = cast("tuple[tuple[str, str], ...]", found.get("subjectAltName", ()))
    if names := tuple(value for kind, value in alternatives if kind in ("DNS", "URI")):
        return tuple(filter(_is_name, names))
    subject = cast("tuple[tuple[tuple[str, str], ...], ...]", found.get("subject", ()))
    return tuple(value for part in subject for key, value in part if key == "commonName" and _is_name(value))[:1]


def _is_name(text: str) -> bool:
    return text != "" and text.isprintable()


def _no_password() -> str:
    """Asked for where the key is encrypted; without this, OpenSSL asks the terminal."""
    raise ValueError("the key is encrypted: it has to be without a password")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return {"KEY_VALUES_MISMATCH": "they do not belong together"}.get(
            error.reason or "", (error.reason or "this is no PEM").replace("_", " ").lower()
        )
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
