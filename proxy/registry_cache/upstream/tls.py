"""Whom connections to upstream trust, and what certificate they show."""

import functools
import os
import ssl
from pathlib import Path

import certifi

from registry_cache.model.errors import SettingsError


@functools.cache  # a context takes 20 ms, and 20 registries have the same one
def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Trust of the system, or certifi's where the system has none, and of *ca_file* beside it.

    Raises:
        SettingsError: there is no certificate in *ca_file*.
    """
    return _trusting(ca_file)


def own_context(ca_file: Path | None, certificate: Path, key: Path | None) -> ssl.SSLContext:
    """As :func:`tls_context`, with a certificate to show; :func:`show` reads it again.

    Raises:
        SettingsError: a file is none of these, or key and certificate do not belong together.
    """
    context = _trusting(ca_file)
    show(context, certificate, key)
    return context


def show(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Show *certificate* in the connections that *context* makes from now on.

    Raises:
        SettingsError: see :func:`own_context`; *context* may then have the old certificate or none.
    """
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        files = f"{certificate}" + (f", {key}" if key else "")
        raise SettingsError(f"CLIENT_CERT, CLIENT_KEY: {files}: {_why(error)}") from error


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    has_folder = os.path.isdir(paths.openssl_capath) and bool(os.listdir(paths.openssl_capath))  # noqa: PTH112, PTH208
    if not (os.path.isfile(paths.openssl_cafile) or has_folder or os.environ.get("SSL_CERT_FILE")):  # noqa: PTH113
        context.load_verify_locations(certifi.where())
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise SettingsError(f"CA_FILE: {ca_file}: {_why(error)}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key has a password: store it without one, readable for the service only")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key is not this certificate's"
        return "there is no certificate, or no key, in PEM form in it"
    return getattr(error, "strerror", None) or str(error)
