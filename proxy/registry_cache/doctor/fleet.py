"""Looks at a fleet from this machine: its Redis, and the other replicas. Its bucket is in ``bucket.py``.

No pull needs any of it. ``broken`` is what can never work as it is set, a ``warning`` what does not work now.
"""

import asyncio
import contextlib
import ipaddress
import re
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from registry_cache.doctor.check import Check
from registry_cache.fleet.connection import WAIT_SECONDS, FleetRedis
from registry_cache.fleet.connection import info as about
from registry_cache.fleet.leases import RedisDown, prefix_of
from registry_cache.fleet.peers import PeerGone, PeerRefuses, Peers, PeerSilent
from registry_cache.fleet.signature import Signer
from registry_cache.fleet.tls import FleetTls
from registry_cache.model.bus import Events
from registry_cache.model.errors import SettingsError
from registry_cache.model.redis_url import redis_url
from registry_cache.model.units import format_size
from registry_cache.observe.figures import FleetFigures
from registry_cache.settings.model import Settings
from registry_cache.warming.puller import reason_of

_REDIS, _MEMORY, _REPLICAS = "fleet redis", "redis memory", "fleet replicas"
_OLDEST = {"Redis": (6, 2), "Valkey": (7, 2)}
_SLOW_SECONDS = 0.05
_FULL = 0.9
# As a replica's scripts do: the clock is asked, a key of the fleet's is written and goes again.
_PROBE = """
local now = redis.call('TIME')
redis.call('SET', KEYS[1], '1', 'PX', 1000)
redis.call('DEL', KEYS[1])
return now
"""
# No replica's: who signs with it is sent nothing but an answer.
_NOBODY = "0.0.0.0:0"
_SINGLE = "name a single one in FLEET_REDIS_URL, or its sentinels: redis+sentinel://sentinel1,sentinel2/mymaster"
_Trouble = PeerGone | PeerSilent | PeerRefuses


def _connection(settings: Settings) -> FleetRedis:
    return FleetRedis(str(settings.fleet_redis_url), password_file=settings.fleet_redis_password_file, events=Events())


async def redis(settings: Settings) -> AsyncIterator[Check]:
    """What Redis is, whether it takes what replicas write, and how much room it has."""
    connection = _connection(settings)
    place = redis_url(str(settings.fleet_redis_url)).shown
    try:
        info: dict[str, Any] = {}
        why_not = ""
        try:
            info = await about(str(settings.fleet_redis_url), settings.fleet_redis_password_file)
        except RedisDown as error:
            why_not = str(error)
        if check := kind(info, place):
            yield check
            return
        try:
            seconds = await _probe(connection, settings.fleet_name)
        except RedisDown as error:
            yield _no_answer(place, str(error).partition(" script: ")[0])
            return
        yield _answers(info, place, seconds)
        if info:
            yield memory(info)
        else:
            remedy = "let the user of FLEET_REDIS_URL run INFO for this look: ACL SETUSER NAME +info"
            yield Check(_MEMORY, "warning", f"not seen: {why_not}", remedy)
    finally:
        await connection.aclose()


async def _probe(connection: FleetRedis, name: str) -> float:
    """Seconds of a round trip; the first one opens a connection and brings the script, so it does not count.

    Raises:
        RedisDown: it does not do what replicas need.
    """
    key = f"{prefix_of(name)}doctor"
    seconds, microseconds = await connection.run(_PROBE, [key], [], patiently=True)
    connection.told(int(seconds), int(microseconds))
    began = time.monotonic()
    await connection.run(_PROBE, [key], [], patiently=True)
    return time.monotonic() - began


def _no_answer(place: str, why: str) -> Check:
    if re.search(r"(?i)permission|can't run", why):
        text = f"{place} does not let this user do what replicas do: {why}"
        return Check(_REDIS, "broken", text, "docs/fleet.md has the rights that the user needs")
    if re.search(r"(?i)auth|password|invalid username", why):
        text = f"{place}: {why}"
        return Check(_REDIS, "broken", text, "see to the user in FLEET_REDIS_URL and to FLEET_REDIS_PASSWORD_FILE")
    if re.search(r"(?i)maxmemory|OOM", why):
        return Check(_REDIS, "warning", f"{place} is full: {why}", "raise its maxmemory: nothing is shared until then")
    text = f"{place} does not answer from here: {why}; each replica fetches for itself"
    return Check(_REDIS, "warning", text, "see to FLEET_REDIS_URL, to the firewall, and to Redis itself")


def kind(info: Mapping[str, Any], place: str) -> Check | None:
    """Whether it is one that can never serve a fleet.

    Args:
        info: what it says of itself; empty where it does not tell.
    """
    name, version = _version(info)
    if (mode := info.get("redis_mode", "standalone")) != "standalone":
        text = f"{place} is {name} {version} as {mode}"
        return Check(_REDIS, "broken", text, _SINGLE)
    if version and _numbers(version) < _OLDEST[name]:
        wanted = ".".join(map(str, _OLDEST[name]))
        return Check(_REDIS, "broken", f"{place} is {name} {version}", f"a fleet needs {name} {wanted} or newer")
    if info.get("role", "master") != "master":
        text = f"{place} is a copy of {info.get('master_host')}:{info.get('master_port')}, and takes no writes"
        return Check(_REDIS, "broken", text, "name the one that is written to in FLEET_REDIS_URL")
    return None


def _answers(info: Mapping[str, Any], place: str, seconds: float) -> Check:
    name, version = _version(info)
    text = f"{place} answers in {seconds * 1000:.1f} ms" + (f", {name} {version}" if version else "")
    if seconds > _SLOW_SECONDS:
        remedy = f"after {WAIT_SECONDS:g} s a pull goes on without it: put it nearer, or see what keeps it (SLOWLOG)"
        return Check(_REDIS, "warning", text, remedy)
    return Check(_REDIS, "ok", text)


def _version(info: Mapping[str, Any]) -> tuple[str, str]:
    name = "Valkey" if "valkey_version" in info else "Redis"
    return name, str(info.get(f"{name.lower()}_version", ""))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def memory(info: Mapping[str, Any]) -> Check:
    """Whether it throws away by itself, and how much room it has."""
    policy = str(info.get("maxmemory_policy", "noeviction"))
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    text = f"{format_size(used)} used, " + (f"{format_size(most)} at most" if most else "no maxmemory")
    if policy != "noeviction":
        remedy = "CONFIG SET maxmemory-policy noeviction, and the same in its file: it must not forget by itself"
        return Check(_MEMORY, "warning", f"{text}, maxmemory-policy {policy}", remedy)
    if most and used > most * _FULL:
        remedy = "raise its maxmemory: when it is full, replicas do as if it did not answer"
        return Check(_MEMORY, "warning", text, remedy)
    return Check(_MEMORY, "ok", f"{text}, {policy}")


async def replicas(settings: Settings, figures: FleetFigures) -> AsyncIterator[Check]:
    """The fleet's ports of all replicas that the running service has heard of, its own too, asked from here."""
    if settings.fleet_key_file is None:
        return
    told = [one.address for one in figures.members if one.address]
    addresses = list(dict.fromkeys(told))
    for check in (loopback(addresses), twice(told)):
        if check:
            yield check
    try:
        trouble = await _asked(settings, settings.fleet_key_file, addresses)
    except SettingsError as error:
        yield Check(_REPLICAS, "broken", str(error), "correct the file, or the setting")
        return
    for address, why in trouble.items():
        yield _unreached(address, why, is_own=address == figures.address)
    if not trouble:
        others = len(addresses) - 1
        text = f"this one and {others} more are reached from here, with the same key" if others > 0 else (
            "no other one has said in the last half minute that it is anywhere else"
        )  # fmt: skip
        yield Check(_REPLICAS, "ok", text)
    if len(figures.versions) > 1:
        text = f"they have different versions: {', '.join(figures.versions)}"
        yield Check("fleet versions", "warning", text, "they work together; end the upgrade")


def loopback(addresses: list[str]) -> Check | None:
    """Some say that they are on loopback, and others are elsewhere: nobody there reaches those."""
    near = [one for one in addresses if _host(one).is_loopback]
    if not near or len(near) == len(addresses):
        return None
    text = f"{', '.join(near)}: a loopback address, and other replicas are on other machines"
    return Check("fleet addresses", "broken", text, "set FLEET_ADVERTISE there to an address that the others reach")


def twice(addresses: list[str]) -> Check | None:
    """Who is sent to one of them may find the other one, and neither follows the other."""
    several = sorted({one for one in addresses if addresses.count(one) > 1})
    if not several:
        return None
    text = f"{', '.join(several)}: more than one replica is told to be there"
    remedy = "give each a FLEET_ADVERTISE of its own; one that was killed and is back counts twice for half a minute"
    return Check("fleet addresses", "warning", text, remedy)


def _host(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(urlsplit(f"//{address}").hostname or "")
    except ValueError:
        return ipaddress.ip_address("0.0.0.0")  # noqa: S104 -- no loopback


async def _asked(
    settings: Settings, key_file: Path, addresses: list[str]
) -> dict[str, PeerGone | PeerSilent | PeerRefuses]:
    """Those of *addresses* that are not reached, or do not have the key, and why.

    Raises:
        SettingsError: this machine has no certificate for it.
    """
    files = (settings.fleet_tls_cert, settings.fleet_tls_key, settings.fleet_tls_ca)
    certificate, key, authority = files
    tls = FleetTls(certificate, key, authority, warn=lambda _: None) if certificate and key and authority else None
    connection = _connection(settings)
    trouble: dict[str, _Trouble] = {}
    with contextlib.suppress(RedisDown):  # its clock is the fleet's
        await _probe(connection, settings.fleet_name)
    await connection.aclose()

    async def ask(peers: Peers, address: str) -> None:
        try:
            await peers.greet(address)
        except (PeerGone, PeerSilent, PeerRefuses) as error:
            trouble[address] = error

    signer = Signer(key_file)
    async with (
        Peers(signer, settings.fleet_peers, address=lambda: _NOBODY, now=connection.now, tls=tls) as peers,
        asyncio.TaskGroup() as group,
    ):
        for address in addresses:
            group.create_task(ask(peers, address))
    return trouble


def _unreached(address: str, error: Exception, *, is_own: bool) -> Check:
    text = str(error)
    if isinstance(error.__cause__, OSError):  # aiohttp's own words are many
        text = f"{address}: {reason_of(error.__cause__)}"
    if isinstance(error, PeerRefuses):
        remedy = "give it the same FLEET_KEY_FILE; a key that was changed counts from the restart on"
        return Check(_REPLICAS, "broken", text, remedy)
    if is_own:
        remedy = "FLEET_ADVERTISE has to be where FLEET_LISTEN is reached: see to both, and to the firewall here"
        return Check(_REPLICAS, "broken", f"this one, as the others are told of it: {text}", remedy)
    remedy = "open the port of its FLEET_LISTEN to the others; is its FLEET_ADVERTISE right, and in FLEET_PEERS?"
    return Check(_REPLICAS, "warning", f"not reached from here: {text}", remedy)
