"""The settings of a fleet: replicas that share what they fetch. All of them do nothing without ``FLEET_REDIS_URL``."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic import model_validator as model_check
from pydantic_settings import BaseSettings

from registry_cache.model.redis_url import redis_url
from registry_cache.settings.types import Address, NetworkList, ReadableFile, Size, host_and_port, unit_credential

KEY_MIN_BYTES = 32
# A network's own (RFC 1918, RFC 6598, RFC 4193), and this host.
_NEAR = [
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "fc00::/7", "::1/128",
]  # fmt: skip


def _redis_url(value: str) -> str:
    redis_url(value)
    return value


def _bucket_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError(
            "allowed is a URL such as https://s3.internal:7480/bucket or https://s3.internal/bucket/prefix"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("allowed is a URL without keys in it: use FLEET_S3_CREDENTIALS_FILE")
    if not re.fullmatch(r"/[a-z0-9][a-z0-9.-]{1,62}(/[A-Za-z0-9_.-]{1,100}){0,8}/?", parts.path):
        raise ValueError(
            "allowed after the host is the name of the bucket, and a prefix of letters, digits, - _ . and /"
        )
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def _key_file(value: Path) -> Path:
    size = len(value.read_bytes().strip())  # as it is used
    if size < KEY_MIN_BYTES:
        raise ValueError(f"allowed is a file of at least {KEY_MIN_BYTES} bytes, the same for all; this one has {size}")
    return value


def _advertised(value: str) -> str:
    host, port = host_and_port(value)
    if host in ("", "localhost") or ipaddress.ip_address(host).is_unspecified or not port:
        raise ValueError("allowed is the address and port where the others reach this one, such as 10.0.0.5:5001")
    return value


def _some(value: list[str]) -> list[str]:
    if not value:
        raise ValueError("allowed are the networks that replicas are in; none at all would be no fleet")
    return value


KeyFile = Annotated[ReadableFile, AfterValidator(_key_file)]


class FleetFields(BaseSettings):
    """What :class:`registry_cache.settings.model.Settings` has of a fleet."""

    fleet_redis_url: Annotated[str, AfterValidator(_redis_url)] | None = Field(
        None,
        description="Redis or Valkey by which replicas find each other, such as redis://redis.internal:6379 or "
        "redis+sentinel://sentinel1,sentinel2,sentinel3/mymaster; rediss for TLS. Without it there is no fleet. It "
        "saves work, and no pull needs it.",
    )
    fleet_redis_password_file: ReadableFile | None = Field(
        default_factory=lambda: unit_credential("fleet.redis-password", "FLEET_REDIS_PASSWORD_FILE"),
        description="File that holds its password (default: the credential `fleet.redis-password` of a systemd unit).",
    )
    fleet_name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        "docker.io",
        description="Replicas of one name share what they fetch: the same registries by the same account.",
    )
    fleet_key_file: KeyFile | None = Field(
        default_factory=lambda: unit_credential("fleet.key", "FLEET_KEY_FILE"),
        validate_default=True,
        description="File of at least 32 bytes, the same for all replicas: who has it may fetch from them (default: "
        "the credential `fleet.key` of a systemd unit).",
    )
    fleet_listen: Address = Field(":5001", description="Address and port where other replicas fetch from this one.")
    fleet_advertise: Annotated[Address, AfterValidator(_advertised)] | None = Field(
        None,
        description="Where the others reach that (default: the host of FLEET_LISTEN, else this machine's address on "
        "its way to Redis).",
    )
    fleet_peers: Annotated[NetworkList, AfterValidator(_some)] = Field(
        _NEAR,
        description="Networks that replicas are in; what Redis says of other addresses is not followed (default: "
        "private ones and loopback).",
    )
    fleet_followers: int = Field(
        4, ge=1, le=1024, description="Replicas that one sends the same blob to; further ones get it from those."
    )

    fleet_tls_cert: ReadableFile | None = Field(
        None, description="Certificate that this replica shows the others (PEM); with it they speak TLS to each other."
    )
    fleet_tls_key: ReadableFile | None = Field(
        default_factory=lambda: unit_credential("fleet.tls-key", "FLEET_TLS_KEY"),
        description="Its key, without a password (default: the credential `fleet.tls-key` of a systemd unit).",
    )
    fleet_tls_ca: ReadableFile | None = Field(
        None,
        description="The fleet's own authority (PEM): who has a certificate of it is a replica, whatever its name.",
    )

    fleet_bucket_url: Annotated[str, AfterValidator(_bucket_url)] | None = Field(
        None,
        description="Bucket of an S3-compatible store that replicas share, such as https://s3.internal/bucket, and a "
        "prefix if it is not all theirs. It saves work, and no pull needs it.",
    )
    fleet_s3_region: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")] = Field(
        "us-east-1", description="Region that requests to it are signed for; most stores beside AWS take any."
    )
    fleet_s3_credentials_file: ReadableFile | None = Field(
        default_factory=lambda: unit_credential("fleet.s3-credentials", "FLEET_S3_CREDENTIALS_FILE"),
        description="AWS credentials file with its keys, read again when it has changed (default: the credential "
        "`fleet.s3-credentials` of a systemd unit).",
    )
    fleet_max_size: Annotated[Size, Field(gt=0)] | None = Field(
        None, description="Cap of the bucket, such as 10TB: what has not been used for the longest is deleted there."
    )

    fleet_redirect: Annotated[Size, Field(gt=0)] | None = Field(
        None,
        description="Clients are sent to the bucket (307) for blobs of at least this size, such as 64MB, that are "
        "there and not here. They have to reach it, and nobody but they verifies what they get. Without it all bytes "
        "go through a replica.",
    )

    @model_check(mode="after")
    def _fleet_is_whole(self) -> Self:
        if self.fleet_redis_url is None:
            given = sorted(name for name in self.model_fields_set if name.startswith("fleet_"))
            if given:
                raise ValueError(f"{given[0].upper()} is set but FLEET_REDIS_URL is not: without it there is no fleet")
            return self
        tls = (self.fleet_tls_cert, self.fleet_tls_key, self.fleet_tls_ca)
        if any(tls) and not all(tls):
            raise ValueError("FLEET_TLS_CERT, FLEET_TLS_KEY and FLEET_TLS_CA go together: set all of them, or none")
        if self.fleet_key_file is None:
            raise ValueError("FLEET_REDIS_URL is set but FLEET_KEY_FILE is not: replicas know each other by their key")
        if self.fleet_bucket_url is not None and self.fleet_s3_credentials_file is None:
            raise ValueError("FLEET_BUCKET_URL is set but FLEET_S3_CREDENTIALS_FILE is not: requests to it are signed")
        if self.fleet_redirect is not None and self.fleet_bucket_url is None:
            raise ValueError("FLEET_REDIRECT is set but FLEET_BUCKET_URL is not: clients are sent to the bucket")
        if (self.fleet_bucket_url is None) != (self.fleet_max_size is None):
            raise ValueError("FLEET_BUCKET_URL and FLEET_MAX_SIZE belong together: the bucket is kept below that size")
        if self.fleet_advertise is not None:
            address = ipaddress.ip_address(host_and_port(self.fleet_advertise)[0])
            if not any(address in ipaddress.ip_network(network) for network in self.fleet_peers):
                raise ValueError(f"FLEET_ADVERTISE: {self.fleet_advertise!r} is in no network of FLEET_PEERS")
        return self
