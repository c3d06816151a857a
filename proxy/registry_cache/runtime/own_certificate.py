"""Trust in the certificate of the cache on this machine, for the commands that ask it."""

import ssl
from pathlib import Path

_END = b"-----END CERTIFICATE-----"


def trust(certificate: Path | None) -> ssl.SSLContext | bool:
    """What :class:`aiohttp.TCPConnector` takes as ``ssl``: this very certificate, under whatever name it is asked.

    Without one, or where this user may not read it, the system's trust.
    """
    if certificate is None:
        return True
    try:
        first, end, _ = certificate.read_bytes().partition(_END)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        # Itself, not its issuer: who else has a certificate of that authority is not this cache.
        context.load_verify_locations(cadata=(first + end).decode("ascii", "replace"))
    except OSError:
        return True
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
