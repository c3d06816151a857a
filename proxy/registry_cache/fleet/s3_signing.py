"""Requests to an S3-compatible store, signed (AWS Signature Version 4), and the keys that they are signed with.

Written out: it is three dozen lines, and the signature has to cover a hash that is known beforehand.
Source: AWS, "Signature Version 4 signing process", "Authenticating Requests (AWS Signature Version 4)" of S3.
"""

import configparser
import hashlib
import hmac
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from registry_cache.model.errors import RegistryCacheError

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_ALGORITHM = "AWS4-HMAC-SHA256"
_FILE_MAX_BYTES = 64 * 1024


class KeysUnreadable(RegistryCacheError):
    """The file of the keys is not there, or is none; what is in it is not told."""


class Keys(NamedTuple):
    """``token`` comes with keys that are lent for a while."""

    access_key: str
    secret_key: str
    token: str = ""


class KeyFile:
    """An AWS credentials file: its first profile, ``[default]`` as a rule. It is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys = Keys("", "")

    def keys(self) -> Keys:
        """As the file is now.

        Raises:
            KeysUnreadable: see there.
        """
        try:
            now = self._path.stat()
            stamp = (now.st_mtime_ns, now.st_size, now.st_ino)
            if stamp != self._stamp:
                with self._path.open() as file:
                    self._keys = parse_keys(file.read(_FILE_MAX_BYTES))
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            raise KeysUnreadable(f"{self._path}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
        except KeysUnreadable as error:
            raise KeysUnreadable(f"{self._path}: {error}") from None
        return self._keys


def parse_keys(text: str) -> Keys:
    """What is in the file's *text*.

    Raises:
        KeysUnreadable: no keys; without their text.
    """
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read_string(text)
    except configparser.Error:
        raise KeysUnreadable("it is no file of [default], aws_access_key_id and aws_secret_access_key") from None
    for name in parser.sections():
        profile = parser[name]
        keys = Keys(
            profile.get("aws_access_key_id", "").strip(),
            profile.get("aws_secret_access_key", "").strip(),
            profile.get("aws_session_token", "").strip(),
        )
        if keys.access_key and keys.secret_key and all(part.isascii() and part.isprintable() for part in keys):
            return keys
    raise KeysUnreadable("it has no aws_access_key_id and aws_secret_access_key")


class S3Signer:
    """Signs, with the keys of the moment.

    Args:
        host: as it stands in the requests, with the port where that is not the scheme's own.
    """

    def __init__(self, key_file: KeyFile, *, region: str, host: str) -> None:
        self._key_file = key_file
        self._region = region
        self._host = host
        self.ahead_seconds = 0.0  # of the store's clock, which alone counts, before ours

    def headers(
        self, method: str, path: str, query: str, payload_sha256: str, also: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """All headers of a request: *also* and what signs it.

        Args:
            path: encoded, as it is sent.
            query: see :func:`query_of`.
            payload_sha256: of the body, in hex: the store takes no other one.

        Raises:
            KeysUnreadable: there is nothing to sign with.
        """
        keys = self._key_file.keys()
        now = self._now()
        headers = {**(also or {}), "x-amz-date": now, "x-amz-content-sha256": payload_sha256}
        if keys.token:
            headers["x-amz-security-token"] = keys.token
        lines = {"host": self._host, **{name.lower(): value.strip() for name, value in headers.items()}}
        names = ";".join(sorted(lines))
        head = "".join(f"{name}:{lines[name]}\n" for name in sorted(lines))
        request = f"{method}\n{path}\n{query}\n{head}\n{names}\n{payload_sha256}"
        credential = f"Credential={keys.access_key}/{self._scope(now)}"
        signature = self._signature(keys, now, request)
        headers["Authorization"] = f"{_ALGORITHM} {credential}, SignedHeaders={names}, Signature={signature}"
        return headers

    def query(self, method: str, path: str, *, seconds: int) -> str:
        """The query of a request that anybody may make who has it, for so long; no other method, no other path.

        Raises:
            KeysUnreadable: there is nothing to sign with.
        """
        keys, now = self._key_file.keys(), self._now()
        parameters = {
            "X-Amz-Algorithm": _ALGORITHM,
            "X-Amz-Credential": f"{keys.access_key}/{self._scope(now)}",
            "X-Amz-Date": now,
            "X-Amz-Expires": str(seconds),
            "X-Amz-SignedHeaders": "host",
        }
        if keys.token:
            parameters["X-Amz-Security-Token"] = keys.token
        query = query_of(parameters)
        request = f"{method}\n{path}\n{query}\nhost:{self._host}\n\nhost\nUNSIGNED-PAYLOAD"
        return f"{query}&X-Amz-Signature={self._signature(keys, now, request)}"

    def _now(self) -> str:
        return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + self.ahead_seconds))

    def _scope(self, now: str) -> str:
        return f"{now[:8]}/{self._region}/s3/aws4_request"

    def _signature(self, keys: Keys, now: str, request: str) -> str:
        """Of a request in its canonical form."""
        scope = self._scope(now)
        text = "\n".join((_ALGORITHM, now, scope, hashlib.sha256(request.encode()).hexdigest()))
        key = f"AWS4{keys.secret_key}".encode()
        for part in (*scope.split("/"), text):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return key.hex()


def query_of(parameters: Mapping[str, str]) -> str:
    """*parameters* as they are sent, and as they are signed."""
    return "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in sorted(parameters.items()))


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")
