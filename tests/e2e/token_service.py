"""A small token service for Debian's docker-registry: users, what each may pull, and every login that it was sent.

Source: distribution docs, "Token Authentication Specification" and "Token Authentication Implementation".
"""

import base64
import contextlib
import datetime as dt
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

ISSUER, SERVICE = "tests", "registry of tests"
OWNER = ("owner", "who pushes what is there")


@dataclass
class TokenService:
    """A running one.

    Attributes:
        users: with their passwords.
        readers: repositories, each with the users who may pull; the empty user is everybody.
        logins: what came, right or wrong.
    """

    url: str
    certificate: Path
    users: dict[str, str] = field(default_factory=lambda: dict([OWNER]))
    readers: dict[str, set[str]] = field(default_factory=dict)
    logins: list[tuple[str, str]] = field(default_factory=list)

    @property
    def config(self) -> dict[str, object]:
        """The ``auth`` of a registry that trusts it."""
        return {
            "token": {
                "realm": f"{self.url}/token",
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self.certificate),
            }
        }

    def may(self, user: str, repository: str, action: str) -> bool:
        if user == OWNER[0]:
            return True
        return action == "pull" and bool({user, ""} & self.readers.get(repository, set()))


@contextlib.contextmanager
def token_service(directory: Path, host: str) -> Iterator[TokenService]:
    """Run one on *host*, in a thread."""
    key, certificate = _signer()
    service = TokenService("", directory / "tokens.pem")
    service.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            user = ""
            scheme, _, value = self.headers.get("Authorization", "").partition(" ")
            if scheme.lower() == "basic":
                user, _, password = base64.b64decode(value).decode().partition(":")
                service.logins.append((user, password))
                if service.users.get(user) != password:
                    self._answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "who is that?"}]})
                    return
            access = []
            for scope in parse_qs(urlsplit(self.path).query).get("scope", []):
                kind, _, rest = scope.partition(":")
                name, _, actions = rest.rpartition(":")
                may = [action for action in actions.split(",") if service.may(user, name, action)]
                access.append({"type": kind, "name": name, "actions": may})
            now = int(time.time())
            claims = {"iss": ISSUER, "sub": user, "aud": SERVICE, "iat": now, "nbf": now - 5, "exp": now + 300}
            claims |= {"jti": str(time.time_ns()), "access": access}
            self._answer(200, {"token": jwt.encode(claims, key, algorithm="RS256", headers={"x5c": chain})})

        def _answer(self, status: int, document: object) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    service.url = f"http://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _signer() -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")]), dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return key, builder.sign(key, hashes.SHA256())
