"""Redis behind sentinels: they are asked who the master is before each connection, so that a failover is followed.

What a failover loses costs a second question to upstream, as a Redis that is emptied does.
"""

from collections.abc import Mapping
from typing import Any

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from registry_cache.model.redis_url import RedisUrl

# Two that are gone are passed over within the quarter of a second that a pull waits.
_SENTINEL_SECONDS = 0.08


class _Pool(SentinelConnectionPool, BlockingConnectionPool):
    """Waits for a connection to the master when all are in use."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Called by the library: when the master has changed, without those in use; in the end, with them."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


class _Sentinels:
    """Asks the sentinels. They have Redis's password, or none."""

    def __init__(self, told: RedisUrl, options: Mapping[str, Any]) -> None:
        common = {
            "socket_timeout": _SENTINEL_SECONDS,
            "socket_connect_timeout": _SENTINEL_SECONDS,
            "retry": options["retry"],
            "protocol": options["protocol"],
            "ssl": told.is_encrypted,
        }
        credentials = options["credential_provider"]
        ways = [{}] if credentials is None else [{}, {"credential_provider": credentials}]
        self._ways: list[Any] = [
            Sentinel(told.addresses, sentinel_kwargs=common | way)  # type: ignore[no-untyped-call]
            for way in ways
        ]

    async def discover_master(self, service: str) -> tuple[str, int]:
        """Where *service* is; called by the library.

        Raises:
            MasterNotFoundError: no sentinel says so.
        """
        for way in list(self._ways):
            try:
                address: tuple[str, int] = await way.discover_master(service)
            except MasterNotFoundError as error:
                trouble = error
            else:
                self._ways.remove(way)
                self._ways.insert(0, way)
                return address
        raise trouble

    async def aclose(self) -> None:
        """Close the connections to them."""
        for way in self._ways:
            for sentinel in way.sentinels:
                await sentinel.aclose()


def behind_sentinels(told: RedisUrl, options: Mapping[str, Any]) -> BlockingConnectionPool:
    """Connections to whom the sentinels call the master.

    Args:
        options: of these connections.
    """
    return _Pool(told.service, _Sentinels(told, options), ssl=told.is_encrypted, **options)  # type: ignore[no-untyped-call]
