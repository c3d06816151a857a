"""A small certificate authority, for those who have none: the cache's certificate, and its clients'.

Source: RFC 5280; the names and places that dockerd and containerd look for are in docs/tls.md.
"""

import datetime as dt
import ipaddress
import os
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from registry_cache.model.errors import SettingsError

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 825
# A clock that is behind must not refuse what was made a moment ago.
_BACKDATED = dt.timedelta(hours=1)
_SECRET, _PUBLIC = 0o600, 0o644


class Authority:
    """Issues certificates from ``ca.pem`` and ``ca.key`` in a directory."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def in_directory(cls, directory: Path) -> tuple[Self, bool]:
        """The one that is there, or a new one; whether it is new.

        Raises:
            SettingsError: what is there cannot be used.
            OSError: the directory cannot be written.
        """
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        certificate, key = directory / "ca.pem", directory / "ca.key"
        if not certificate.exists() and not key.exists():
            return cls._made(certificate, key), True
        try:
            found = serialization.load_pem_private_key(key.read_bytes(), None)
            return cls(x509.load_pem_x509_certificate(certificate.read_bytes()), _elliptic(found)), False
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(f"{directory}: ca.pem and ca.key cannot be used: {error}") from error

    @classmethod
    def _made(cls, certificate_file: Path, key_file: Path) -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("registry-cache CA")
        builder = (
            _builder(name, name, key, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        certificate = builder.sign(key, hashes.SHA256())
        write_file(key_file, _pem(key), secret=True)
        write_file(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
        return cls(certificate, key)

    def server(self, hosts: list[str]) -> tuple[bytes, bytes]:
        """Certificate and key, as PEM, of what answers under *hosts* (names and addresses)."""
        return self._issue(hosts[0], [_alternative(host) for host in hosts], ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, name: str) -> tuple[bytes, bytes]:
        """Certificate and key, as PEM, of the client that is called *name*."""
        return self._issue(name, [x509.DNSName(name)], ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(
        self, name: str, alternatives: list[x509.GeneralName], purpose: x509.ObjectIdentifier
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _builder(_name(name), self._certificate.subject, key, CERTIFICATE_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), _pem(key)


def names_of(certificate: Path) -> list[str]:
    """The names and addresses that the certificate in a file is for.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise SettingsError(f"{certificate}: {error}") from error
    return [str(name.value) for name in names]


def write_file(path: Path, content: bytes, *, secret: bool = False) -> None:
    """Put *content* in place of what is there, whole at once; a secret is never open to others, not for a moment."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _SECRET if secret else _PUBLIC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    new.replace(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _elliptic(key: object) -> ec.EllipticCurvePrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is none of this program's")  # noqa: TRY004 -- its type is what the file says
    return key
