"""The types of settings: what may be written, and what is said where it is not that."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field

from registry_cache.access.networks import network_from
from registry_cache.model.errors import SettingsError
from registry_cache.model.registries import canonical, normal
from registry_cache.model.registry_patterns import registry_pattern
from registry_cache.model.units import Threshold, parse_duration, parse_size, parse_threshold


def _above_zero(value: float) -> float:
    if value <= 0:
        raise ValueError("allowed is a duration above zero, such as 5s: nothing is done within none")
    return value


def _listen(value: str) -> str:
    host, colon, port = value.rpartition(":")
    host = host.strip("[]")
    # Without the colon, "5000" would mean every interface, which nobody who writes that can be held to want.
    if not colon or not port.isdigit() or not 0 <= int(port) <= 65535:  # noqa: PLR2004 -- ports
        raise ValueError("allowed is HOST:PORT such as 127.0.0.1:5000 or [::1]:5000")
    if host and host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError as error:
            raise ValueError("allowed is an IP address or localhost before the port, such as 127.0.0.1:5000") from error
    return value


def host_and_port(listen: str) -> tuple[str, int]:
    """The two parts of a setting such as LISTEN, the host without brackets.

    An empty host means every interface; port 0 lets the kernel choose.
    """
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(listen: str) -> bool:
    """Whether only this machine reaches what listens there."""
    host, _ = host_and_port(listen)
    return host == "localhost" or (bool(host) and ipaddress.ip_address(host).is_loopback)


def _networks(value: list[str]) -> list[str]:
    for word in value:
        try:
            network_from(word)
        except ValueError as error:
            raise ValueError(f"allowed are networks and addresses such as 10.1.0.0/16: {error}") from error
    return value


def _upstream(value: str) -> str:
    try:
        parts = urlsplit(value)
        is_whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or parts.query or parts.fragment or re.search(r"\s", value):
        raise ValueError("allowed is a URL such as https://registry-1.docker.io")
    if parts.username or parts.password:
        raise ValueError("allowed is a URL without a credential in it: use USERNAME and PASSWORD_FILE")
    # Who compares origins, or looks for https, finds one spelling.
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def words(value: object) -> object:
    """A list from ``a,b c``: environment variables and flags carry lists as text."""
    return [word for word in re.split(r"[,\s]+", value) if word] if isinstance(value, str) else value


_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def _host_names(value: list[str]) -> list[str]:
    for host in value:
        if host != "*" and not _HOST.fullmatch(host):
            raise ValueError("allowed are host names without a port, such as cache.example.org, or *")
    return value


def _host(word: str) -> str | None:
    """A host as URLs have it: in lower case, an address without brackets; None if *word* is none."""
    name = word.lower()
    if _HOST.fullmatch(name):
        return name
    try:
        return str(ipaddress.IPv6Address(name.removeprefix("[").removesuffix("]")))
    except ValueError:
        return None


def _hosts(value: list[str]) -> list[str]:
    found = [_host(word) for word in value]
    if None in found:
        raise ValueError("allowed are hosts and addresses without scheme, port and path, such as blobs.corp")
    return [host for host in found if host is not None]


def _realms(value: list[str]) -> list[str]:
    found = []
    for word in value:
        host, _, port = word.rpartition(":")
        is_whole = bool(re.fullmatch(r"[0-9]{1,5}", port)) and (host.startswith("[") or ":" not in host)
        if (alone := _host(word)) is not None:
            found.append(alone)
        elif is_whole and (name := _host(host)) is not None:
            found.append(f"[{name}]:{port}" if ":" in name else f"{name}:{port}")
        else:
            raise ValueError("allowed are hosts, with or without a port, such as auth.corp or auth.corp:5001")
    return found


_REGISTRY = re.compile(r"[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?)*")


def registry_name(value: str) -> str:
    """A registry by the name that is looked up: lower case, Docker Hub by its first name.

    Raises:
        ValueError: it cannot be one.
    """
    name = canonical(value)
    # Without a dot it might be a namespace: no client takes it for a registry.
    if not _REGISTRY.fullmatch(name) or ("." not in name and name != "localhost"):
        raise ValueError("allowed is a registry's name without scheme, port and path, such as docker.io or ghcr.io")
    return name


def _aliases(value: list[str]) -> list[str]:
    names = [normal(name) for name in value]
    for name in names:
        host, _, port = name.partition(":")
        if not _REGISTRY.fullmatch(host) or ("." not in host and not port) or not re.fullmatch(r"[0-9]{0,5}", port):
            raise ValueError("allowed are names as images have them, such as registry.corp:5443")
    return names


def _registry_patterns(value: list[str]) -> list[str]:
    return [registry_pattern(pattern) for pattern in value]


def _proxy(value: str) -> str:
    if value == DIRECT:
        return value
    try:
        parts = urlsplit(value)
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        whole = None
    if not whole or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(
            "allowed is http://HOST:PORT or https://HOST:PORT, without a password (one with a password is for the "
            "variables), or direct"
        )
    return value.rstrip("/")


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("allowed are names of environment variables, such as AWS_PROFILE")
    return {name.upper(): text for name, text in value.items()}  # our own environment gives them in lower case


def _path(value: object) -> object:
    if not isinstance(value, str | Path):
        return value  # pydantic says what it has to be
    text = str(value)
    if not text.strip() or "\0" in text:
        raise ValueError("allowed is a path; to have the default, leave it out")
    try:
        # No shell has done it where it comes from a file, or from --name=~/x.
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"allowed is a path: {error}") from error


def _readable_file(value: Path) -> Path:
    # Not is_file(): it raises where a folder on the way is closed to this user.
    if not os.access(value, os.F_OK):
        raise ValueError("allowed is a readable file; there is none, or this user may not look into its folder")
    if not os.access(value, os.R_OK):
        raise ValueError("allowed is a readable file; this user may not read it")
    if not value.is_file():
        raise ValueError("allowed is a readable file; this is no file")
    return value


def unit_credential(name: str, setting: str) -> Path | None:
    """The credential *name* of systemd's LoadCredential=, if the unit was given one, for *setting*."""
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        path = Path(directory) / name
        try:
            return path if path.is_file() else None
        except OSError as error:
            raise SettingsError(f"{setting}: {str(path)!r}: the unit's credential: {error.strerror}") from error
    return None


# In place of a forward proxy: none, whatever the variables say.
DIRECT = "direct"

Duration = Annotated[float, BeforeValidator(parse_duration)]
PositiveDuration = Annotated[float, BeforeValidator(parse_duration), AfterValidator(_above_zero)]
Size = Annotated[ByteSize, BeforeValidator(parse_size)]
DiskThreshold = Annotated[Threshold, BeforeValidator(parse_threshold)]
Words = Annotated[list[str], BeforeValidator(words)]
NetworkList = Annotated[list[str], BeforeValidator(words), AfterValidator(_networks)]
FilePath = Annotated[Path, BeforeValidator(_path)]
ReadableFile = Annotated[Path, BeforeValidator(_path), AfterValidator(_readable_file)]
Address = Annotated[str, AfterValidator(_listen)]
HostNames = Annotated[list[str], BeforeValidator(words), AfterValidator(_host_names)]
Hosts = Annotated[list[str], BeforeValidator(words), AfterValidator(_hosts)]
Realms = Annotated[list[str], BeforeValidator(words), AfterValidator(_realms)]
RegistryName = Annotated[str, AfterValidator(registry_name)]
Aliases = Annotated[list[str], BeforeValidator(words), AfterValidator(_aliases)]
RegistryPatternList = Annotated[list[str], BeforeValidator(words), AfterValidator(_registry_patterns)]
RepositoryPattern = Annotated[str, Field(pattern=r"^[a-z0-9*][a-z0-9._/*-]{0,254}$")]
IssuerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
HelperName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ProxyUrl = Annotated[str, AfterValidator(_proxy)]
Environment = Annotated[dict[str, str], AfterValidator(_environment)]
Url = Annotated[str, AfterValidator(_upstream)]
