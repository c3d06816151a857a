"""Looks at what is around: the running cache, upstream, its token service and clock, dockerd."""

import email.utils
import json
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from registry_cache.access.rules import Principal
from registry_cache.assembly.guards import rules_of
from registry_cache.assembly.pulls import build_upstream
from registry_cache.doctor.check import Check
from registry_cache.doctor.secret import new_token
from registry_cache.hostprune.address import engine_socket
from registry_cache.hostprune.engine import connect
from registry_cache.model import events
from registry_cache.model.bus import Events
from registry_cache.model.errors import (
    CredentialRefused,
    EngineError,
    EngineUnreachable,
    HeadFailed,
    HeadRefused,
    RateLimited,
    RegistryCacheError,
    SettingsError,
    UpstreamError,
)
from registry_cache.model.oci import Reference, Repository
from registry_cache.model.units import counted, format_ago, format_duration, format_size
from registry_cache.observe.figures import Stats
from registry_cache.runtime.own_certificate import trust
from registry_cache.settings.model import Settings
from registry_cache.settings.registries import RegistrySettings
from registry_cache.settings.types import DIRECT
from registry_cache.upstream.client import Upstream
from registry_cache.upstream.ratelimit import Quota
from registry_cache.upstream.tls import own_context, tls_context
from registry_cache.warming.platforms import host_platform
from registry_cache.warming.puller import Name, Puller, PullFailed, reason_of

# Tokens and certificates are judged by the clock; Hub's tokens live for five minutes.
_CLOCK_WARNING_SECONDS = 60.0
_CLOCK_BROKEN_SECONDS = 300.0
_FEW_PULLS = 0.1
_SMALL_DISK = 0.15
_NIXOS = Path("/etc/NIXOS")
_DAEMON_JSON = Path("/etc/docker/daemon.json")


def service(answer: Stats | PullFailed, url: str) -> Check:
    """The service answers.

    Args:
        answer: its ``/_stats``, or why they could not be had.
    """
    if isinstance(answer, PullFailed) and answer.status:  # somebody answers there
        return Check("service", "broken", str(answer), "see what listens there: ss -ltnp")
    if isinstance(answer, PullFailed):
        remedy = "start it: systemctl start registry-cache, or registry-cache serve; why it stopped: journalctl -u "
        return Check("service", "broken", f"no cache answers on {url}", remedy + "registry-cache")
    return Check("service", "ok", f"{url} answers, version {answer.version}")


def fleet(stats: Stats) -> Check | None:
    """The service's part in its fleet, if it has one."""
    found = stats.fleet
    if found is None:
        return None
    if found.redis_trouble:
        text = f"Redis does not answer: {found.redis_trouble}; this replica fetches for itself"
        return Check("fleet", "warning", text, "see to FLEET_REDIS_URL and FLEET_REDIS_PASSWORD_FILE, and to Redis")
    if found.refusal:
        text = f"{found.name}: {found.refusal}; this replica runs alone"
        return Check(
            "fleet", "broken", text, "give all replicas the same settings and key, or this one another FLEET_NAME"
        )
    if not found.address:
        text = "it is not known where the others reach this replica, so it runs alone"
        return Check("fleet", "warning", text, "set FLEET_ADVERTISE to an address in FLEET_PEERS")
    if trouble := found.reading_trouble or found.writing_trouble:
        part = "read" if found.reading_trouble else "written to"
        remedy = "see to FLEET_BUCKET_URL, FLEET_S3_CREDENTIALS_FILE and the key's rights, and to the store"
        return Check("fleet", "warning", f"the bucket is not {part}: {trouble}; pulls do without it", remedy)
    return Check("fleet", "ok", f"{found.name}: Redis answers, the others reach this replica at {found.address}")


def limits(stats: Stats) -> Iterator[Check]:
    """Who has said 429 to the service, and is left alone by it."""
    for name, found in (stats.upstreams or {"upstream": stats.upstream}).items():
        if found.limited_for_seconds:
            who = found.limited_elsewhere or name
            text = f"{who} said 429: the service leaves it alone for another {found.limited_for_seconds:.0f} s"
            yield Check("limit", "warning", text, "what is cached is served; it is asked again by itself after that")


def still_rejected(stats: Stats, found: list[Check], settings: Settings) -> Check | None:
    """The service's own credential is rejected, and what was found when it was tried from here does not say so."""
    if not stats.upstream.credential_rejected or any(each[:2] == ("credential", "broken") for each in found):
        return None
    text = "upstream rejects the credential that the service has; the one that is there now was not rejected"
    remedy = f"systemctl restart registry-cache; if that is no help: {new_token(settings.password_file)}"
    return Check("credential", "broken", text, remedy)


async def registry(served: RegistrySettings, *, is_default: bool, image: str, with_account: bool = True) -> list[Check]:
    """Everything about one registry: reachable, TLS, clock, account. Of others than the default one, by their names.

    Args:
        with_account: False where what is wrong with its token is known already.
    """
    checks = [check async for check in upstream(served)]
    if checks[0].state != "broken" and with_account:
        checks += [check async for check in account(served, image)]
    if is_default:
        return checks
    # One clock is enough.
    return [check._replace(name=f"{served.name}: {check.name}") for check in checks if check.name != "clock"]


def _proxy(registry: RegistrySettings) -> str | None:
    return None if registry.proxy == DIRECT else registry.proxy


def _tls(registry: RegistrySettings) -> ssl.SSLContext:
    if registry.client_cert is None:
        return tls_context(registry.ca_file)
    return own_context(registry.ca_file, registry.client_cert, registry.client_key)


async def upstream(registry: RegistrySettings) -> AsyncIterator[Check]:
    """Reachable, TLS, clock."""
    timeout = aiohttp.ClientTimeout(registry.connect_timeout + registry.read_timeout)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=registry.proxy is None) as session,
            session.get(f"{registry.url}/v2/", ssl=_tls(registry), proxy=_proxy(registry)) as response,
        ):
            date = response.headers.get("Date")
            if response.status not in (200, 401):
                remedy = "is UPSTREAM a registry? A proxy or a captive portal may stand in between"
                yield Check("upstream", "broken", f"{registry.url} answers {response.status}", remedy)
                return
    except SettingsError as error:
        yield Check("upstream", "broken", f"{registry.url}: {error}", "correct the file, or the setting")
        return
    except aiohttp.ClientSSLError as error:
        remedy = "if a company's proxy signs certificates itself, name its authority with CA_FILE; check the clock"
        yield Check("upstream", "broken", f"{registry.url}: TLS: {reason_of(error)}", remedy)
        return
    except (aiohttp.ClientError, OSError) as error:
        remedy = "check DNS, the firewall and the proxy variables (HTTPS_PROXY); cached images are served meanwhile"
        yield Check("upstream", "broken", f"{registry.url}: {reason_of(error)}", remedy)
        return
    tls = ", TLS is good" if registry.url.startswith("https") else ""
    yield Check("upstream", "ok", f"{registry.url} answers{tls}")
    yield clock(date, time.time())


def clock(date: str | None, now: float) -> Check:
    """The machine's clock against upstream's ``Date`` header."""
    try:
        off = now - email.utils.parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return Check("clock", "warning", "upstream does not say what time it is", "compare it by hand: date -u")
    if abs(off) <= _CLOCK_WARNING_SECONDS:
        return Check("clock", "ok", "within a minute of upstream's")
    text = f"{format_ago(abs(off))} {'ahead of' if off > 0 else 'behind'} upstream's"
    state = "broken" if abs(off) > _CLOCK_BROKEN_SECONDS else "warning"
    return Check("clock", state, text, "have it set: timedatectl set-ntp true")  # type: ignore[arg-type]


class _Watch:
    """What an upstream client told while it was asked."""

    def __init__(self) -> None:
        self.withheld = ""
        self.token_status: int | None = None

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.CredentialWithheld):
            self.withheld = event.realm
        elif isinstance(event, events.UpstreamRequest) and event.kind == "token":
            self.token_status = event.status


async def account(registry: RegistrySettings, image: str) -> AsyncIterator[Check]:
    """Token service, credential, quota; by HEAD, which Docker Hub does not count.

    Args:
        image: one that the account may pull; empty where none is known, and a made-up name has to do.
    """
    bus, watch = Events(), _Watch()
    bus.subscribe(watch)
    client = build_upstream(registry, 0, bus)
    try:
        yield await _credential(client, watch, registry, image)
        if watch.withheld:
            remedy = "if that host is upstream's token service, name it in TRUSTED_REALMS"
            yield Check("token service", "broken", f"the credential was not sent to {watch.withheld}", remedy)
        if client.limits.quota is not None:
            yield _quota(client.limits.quota, registry)
    finally:
        await client.aclose()


async def _credential(  # noqa: PLR0911 -- one for each thing that can be wrong
    client: Upstream, watch: _Watch, registry: RegistrySettings, image: str
) -> Check:
    who = f"as {_account(registry)}" if registry.has_account else "anonymously"
    asked = _made_up(registry)
    if image:
        name = Name.parse(image)
        asked = Reference.parse(name.repository, name.reference)
    try:
        await client.manifest_head(asked, attempts=1)
    except CredentialRefused as error:
        return Check("credential", "broken", str(error), f"check USERNAME; or {new_token(registry.password_file)}")
    except RateLimited as error:
        remedy = f"{_more_pulls(registry)}; cached images are served meanwhile"
        return Check("quota", "broken", f"upstream limits us: {error}", remedy)
    except UpstreamError as error:
        if isinstance(error, HeadRefused) and not isinstance(error, HeadFailed):
            return _not_for(image, who, error)
        if watch.token_status not in (None, 200):
            remedy = "is the token service's host (auth.docker.io for Docker Hub) allowed by the firewall?"
            return Check("token service", "broken", str(error), remedy)
        return Check("credential", "broken", f"upstream does not answer: {error}", "try again; see status.docker.com")
    except RegistryCacheError as error:
        if image:
            return _not_for(image, who, error)
    decides = "; clients' own logins decide there" if registry.forwards else ""
    return Check("credential", "ok", f"upstream answers {who}{decides}")


def _account(registry: RegistrySettings) -> str:
    if registry.credential_helper:
        return f"docker-credential-{registry.credential_helper} says"
    return registry.username or f"{registry.client_cert} says"


def _made_up(registry: RegistrySettings) -> Reference:
    """A name that nobody has: the registry's own no shows that it answers."""
    return Reference(Repository(registry.name, "registry-cache/doctor"), "none")


def _not_for(image: str, who: str, error: RegistryCacheError) -> Check:
    text = f"upstream answers {who}, but not for {image}: {error}"
    return Check("credential", "warning", text, "name an image that the account may pull with --image")


def _more_pulls(registry: RegistrySettings) -> str:
    """What to do about a quota, for who asks: an account or an address."""
    if registry.has_account:
        who = f"the pulls are those of the account {_account(registry)}"
        return f"{who}: wait until they are back, or give it a plan with more"
    return "no account is set: with USERNAME and PASSWORD_FILE there are more pulls than for this host's address alone"


def _quota(quota: Quota, registry: RegistrySettings) -> Check:
    window = format_duration(quota.window_seconds)
    text = f"{quota.remaining} of {quota.limit} pulls left in {window}" + (
        f" for {quota.source}" if quota.source else ""
    )
    if quota.remaining <= quota.limit * _FEW_PULLS:
        remedy = (
            f"{_more_pulls(registry)}; a longer TAG_TTL and pins save pulls; cached images are served whatever is left"
        )
        return Check("quota", "warning", text, remedy)
    return Check("quota", "ok", text)


async def docker(
    settings: Settings, environ: Mapping[str, str], url: str, instance: str | None
) -> AsyncIterator[Check]:
    """dockerd's ``registry-mirrors`` as it has them in effect, and its disk.

    Args:
        url: where this cache listens.
        instance: who this cache is; None when it does not run.
    """
    try:
        socket = engine_socket(settings.prune.docker_host, environ)
        async with connect(socket) as engine:
            mirrors = [mirror.rstrip("/") for mirror in engine.info.registry_mirrors]
            found = [await instance_at(mirror, trust(settings.tls_cert)) for mirror in mirrors]
            yield mirror_check(mirrors, found, url, instance)
            ours = [mirror for mirror, who in zip(mirrors, found, strict=True) if who and who == instance]
            for check in hub_logins(settings, ours):
                yield check
            disk = engine.disk()
    except (EngineUnreachable, SettingsError) as error:
        yield Check("dockerd", "warning", str(error), "fine if this host runs no Docker; else run doctor as root")
        return
    except EngineError as error:
        yield Check("dockerd", "warning", str(error), "look at dockerd's own log: journalctl -u docker")
        return
    text = f"{format_size(disk.free_bytes)} of {format_size(disk.total_bytes)} free in {disk.path}"
    if disk.free_inodes < disk.total_inodes * _SMALL_DISK:
        text += f", {disk.free_inodes} of {disk.total_inodes} inodes"
    if disk.free_bytes < disk.total_bytes * _SMALL_DISK or disk.free_inodes < disk.total_inodes * _SMALL_DISK:
        yield Check("docker disk", "warning", text, "registry-cache prune shows what could go, and why")
    else:
        yield Check("docker disk", "ok", text)


def hub_logins(settings: Settings, mirrors: list[str]) -> Iterator[Check]:
    """dockerd's mirrors that are this cache, and would be sent the Docker Hub login of whoever has one there."""
    if not (settings.htpasswd or settings.oidc or settings.forwarding):
        return  # nobody is asked to log in
    if settings.default_registry in settings.forwarding:
        return  # it is what decides
    for mirror in mirrors:
        host = urlsplit(mirror).hostname or ""
        # A connection to an address of this host comes from that address.
        address = "127.0.0.1" if host == "localhost" else host
        if not any(rule.quiet and rule.is_for(Principal(address)) for rule in rules_of(settings)):
            yield Check(
                "docker hub login",
                "warning",
                f"dockerd sends {mirror} the Docker Hub login of whoever has one, because the cache asks for logins",
                f'give these clients a rule with quiet = true: [[access]] networks = ["{address}"] (docs/access.md)',
            )


async def instance_at(url: str, tls: ssl.SSLContext | bool = True) -> str | None:
    """Which cache answers on *url*: empty for something that is none, None for nothing at all."""
    try:
        async with aiohttp.ClientSession(trust_env=False, connector=aiohttp.TCPConnector(ssl=tls)) as session:
            return await Puller(session, url).instance()
    except PullFailed as error:
        return "" if error.status else None


def mirror_check(mirrors: list[str], found: list[str | None], url: str, instance: str | None) -> Check:
    """Whether dockerd asks this cache, and before all others.

    Args:
        found: for each mirror, what :func:`instance_at` said.
    """
    name = "dockerd mirror"
    remedy = _mirror_remedy(url)
    if not mirrors:
        return Check(name, "broken", "dockerd has no registry-mirrors: pulls go past the cache", remedy)
    listed = ", ".join(mirrors)
    if instance is None:
        text = f"dockerd asks {listed}; whether that is this cache cannot be told, it does not run"
        return Check(name, "warning", text, "start the cache, then run doctor again")
    if instance not in found:
        what = ", ".join(
            f"{mirror} ({'does not answer' if who is None else 'another cache' if who else 'no registry-cache'})"
            for mirror, who in zip(mirrors, found, strict=True)
        )
        return Check(name, "broken", f"dockerd does not ask this cache, but {what}", remedy)
    place = found.index(instance)
    if place:
        text = f"dockerd asks {', '.join(mirrors[:place])} before this cache"
        return Check(name, "warning", text, "put this cache first in registry-mirrors")
    return Check(name, "ok", f"dockerd pulls through this cache ({mirrors[0]})")


def _mirror_remedy(url: str) -> str:
    """What to do so that dockerd asks *url*; its file may have it already, unread, or be unreadable for it."""
    if _NIXOS.exists():
        return f'virtualisation.docker.daemon.settings.registry-mirrors = [ "{url}" ]; then rebuild (restarts docker)'
    reload = "systemctl reload docker (or: kill -HUP $(cat /run/docker.pid))"
    try:
        written = json.loads(_DAEMON_JSON.read_bytes())["registry-mirrors"]
    except ValueError as error:
        return f"{_DAEMON_JSON} is not JSON ({error}): correct it, then: {reload}"
    except (OSError, KeyError, TypeError):
        written = []
    if isinstance(written, list) and any(str(mirror).rstrip("/") == url for mirror in written):
        return f"{_DAEMON_JSON} names it, but dockerd has not read it: {reload}"
    return f'put "registry-mirrors": ["{url}"] into {_DAEMON_JSON}, then: {reload}'


async def real_pull(url: str, image: str, tls: ssl.SSLContext | bool = True) -> Check:
    """A small image, through the running cache, every byte verified."""
    size = hits = 0
    try:
        name = Name.parse(image)
        async with aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(ssl=tls)) as session:
            puller = Puller(session, url)
            pulled = await puller.manifests(name, [host_platform()])
            for blob in pulled.blobs:
                hits += await puller.blob(name, blob, lambda _count: None)
                size += blob.size_bytes
    except RegistryCacheError as error:
        remedy = "the service's log has the line of this request: journalctl -u registry-cache"
        return Check("pull", "broken", str(error), remedy)
    blobs = f"{counted(len(pulled.blobs), 'blob')}, {hits} of them cached already"
    return Check("pull", "ok", f"{image}: {format_size(size)} in {blobs}; digests are right")
