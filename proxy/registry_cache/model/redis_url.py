"""Where a fleet's Redis is: ``redis://host:6379/0``, or ``redis+sentinel://host1,host2:26379/name/0``; TLS: ``rediss``.

The form with sentinels is the one that several clients know (Lettuce, Celery); a password is in none of them.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote

_URL = re.compile(
    r"(?P<scheme>rediss?)(?P<sentinel>\+sentinel)?://(?:(?P<user>[^@/]*)@)?(?P<hosts>[^@/?#]+)(?P<path>.*)"
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_PATH = re.compile(r"/?|/[0-9]{1,4}")
_SENTINEL_PATH = re.compile(r"/(?P<name>[A-Za-z0-9._-]{1,64})(?:/[0-9]{1,4})?")
_PORT, _SENTINEL_PORT = 6379, 26379


class RedisUrl(NamedTuple):
    """What such a URL says.

    Attributes:
        addresses: hosts and ports, of Redis or of its sentinels.
        service: what the sentinels call it; empty where there are none.
        user: empty for the default one.
    """

    addresses: tuple[tuple[str, int], ...]
    service: str = ""
    user: str = ""
    database: int = 0
    is_encrypted: bool = False

    @property
    def shown(self) -> str:
        """For people."""
        host, port = self.addresses[0]
        return f"{self.service}, by its sentinels," if self.service else f"{host}:{port}"


def redis_url(text: str) -> RedisUrl:
    """What *text* says.

    Raises:
        ValueError: it is none, or has a password in it; the text says what is allowed.
    """
    parts = _URL.fullmatch(text)
    hosts = [_HOST.fullmatch(host) for host in parts["hosts"].split(",")] if parts else []
    default = _SENTINEL_PORT if parts and parts["sentinel"] else _PORT
    addresses = [(host[1].strip("[]"), int(host[2] or default)) for host in hosts if host]
    is_right = len(addresses) == len(hosts) and all(0 < port < 65_536 for _, port in addresses)  # noqa: PLR2004 -- TCP
    if not parts or not is_right or (len(addresses) > 1 and not parts["sentinel"]):
        raise ValueError(
            "allowed is a URL such as redis://redis.internal:6379, rediss://… with TLS, or "
            "redis+sentinel://sentinel1,sentinel2,sentinel3/mymaster"
        )
    user = parts["user"] or ""
    if ":" in user:
        raise ValueError("allowed is a URL without a password in it: use FLEET_REDIS_PASSWORD_FILE")
    path = (_SENTINEL_PATH if parts["sentinel"] else _PATH).fullmatch(parts["path"])
    if path is None and parts["sentinel"]:
        raise ValueError("needed after the sentinels is what they call their Redis, such as /mymaster or /mymaster/0")
    if path is None:
        raise ValueError("allowed after the host is nothing but the number of a database, such as /0")
    service = path["name"] if parts["sentinel"] else ""
    number = path[0].removeprefix(f"/{service}").strip("/")
    return RedisUrl(tuple(addresses), service, unquote(user), int(number or 0), parts["scheme"] == "rediss")
