"""What can go wrong, in the words of the domain. ``web/errors.py`` gives each its HTTP status."""

import os


def reason_of(error: OSError) -> str:
    """What the system says, in words; of what Python itself refuses, such as a long socket's name, what that says."""
    return os.strerror(error.errno) if error.errno else str(error)


class RegistryCacheError(Exception):
    """Base of every error this program raises on purpose; its text is fit for an operator."""


class SettingsError(RegistryCacheError):
    """The configuration is wrong. The text is one line: the setting, the value, what is allowed."""


# --- the request ------------------------------------------------------------------------------------------------


class NameInvalid(RegistryCacheError):
    """A repository name outside the grammar of the OCI distribution spec."""


# Of a name that does not exist and of one that may not be seen, where some may not be.
NOT_KNOWN = "repository name not known to registry"


class NameUnknown(RegistryCacheError):
    """The repository, or the registry named by ``?ns=``, is not known here or upstream."""


class TagInvalid(RegistryCacheError):
    """A reference that is neither a tag nor a digest."""


class DigestInvalid(RegistryCacheError):
    """A digest outside the grammar, or of an algorithm that cannot be verified here."""


class Unsupported(RegistryCacheError):
    """The request would change the registry; a cache is read-only."""


class MisplacedPath(NameUnknown):
    """There is something before /v2/: the mirror's address was written with a path."""


class BadRequest(RegistryCacheError):
    """It is not HTTP, or more of it than anybody needs."""


class CrossSite(RegistryCacheError):
    """A web page of another site makes a browser ask."""


class Misdirected(RegistryCacheError):
    """The Host is no name of this cache: a name was made to resolve here, or HOSTS lacks it."""


class LoginNeeded(RegistryCacheError):
    """Without a login, or with a wrong one, this is not for the client; another one may help.

    Args:
        scope: what the token that the client may fetch is asked for.
        registry: whose content the client wants.
    """

    def __init__(self, text: str, scope: str = "", registry: str = "") -> None:
        super().__init__(text)
        self.scope = scope
        self.registry = registry


class Hidden(NameUnknown):
    """No rule lets the client pull this; it is told the same as of a name that does not exist."""

    def __init__(self) -> None:
        super().__init__(NOT_KNOWN)


class TooManyLogins(RegistryCacheError):
    """Passwords are not looked at for now: too many were wrong, or wait."""


class Barred(TooManyLogins):
    """Too many were wrong that came from there."""


class LimitReached(RegistryCacheError):
    """Whoever asks has had what the limits give it.

    Args:
        limit: its setting.
        retry_in_seconds: when asking again may help.
    """

    def __init__(self, text: str, *, limit: str, retry_in_seconds: float) -> None:
        super().__init__(text)
        self.limit = limit
        self.retry_in_seconds = retry_in_seconds


class OperatorsOnly(RegistryCacheError):
    """The figures and the page are not for this address."""


class RangeNotSatisfiable(RegistryCacheError):
    """The range starts beyond the end of the blob.

    Args:
        size_bytes: length of the whole blob, for ``Content-Range: bytes */size``.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the range starts beyond the end of the blob ({size_bytes} bytes)")
        self.size_bytes = size_bytes


class NotCached(RegistryCacheError):
    """The client wants what is here or nothing (RFC 9111, ``only-if-cached``), and it is not here."""


# --- content ----------------------------------------------------------------------------------------------------


class ManifestUnknown(RegistryCacheError):
    """Upstream says that the manifest does not exist."""


class BlobUnknown(RegistryCacheError):
    """Upstream says that the blob does not exist."""


class ContentError(RegistryCacheError):
    """What upstream sent is not what was asked for; nothing of it is kept."""


class DigestMismatch(ContentError):
    """The bytes do not hash to the digest they were asked for by."""


class SizeMismatch(ContentError):
    """More or fewer bytes than announced."""


# --- upstream ---------------------------------------------------------------------------------------------------


class Unauthorized(RegistryCacheError):
    """Upstream wants a login, or rejected the configured credential (401)."""


class CredentialRefused(Unauthorized):
    """The token service does not accept the configured account: our fault, not the content's."""


class LoginLapsed(CredentialRefused):
    """No client whom upstream lets in asks for it any more: told the same as of a name that does not exist."""


class Denied(RegistryCacheError):
    """Upstream refuses this account access (403)."""


class UpstreamError(RegistryCacheError):
    """Upstream did not give a usable answer: it is down, slow, broken or nonsensical. Worth another try later.

    Args:
        retry_in_seconds: nothing will be sent before; 0 when another try may be made at once.
        told_seconds: what a client is told instead, where upstream named no time: some wait for as long as it takes.
    """

    def __init__(self, message: str, *, retry_in_seconds: float = 0.0, told_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_in_seconds = retry_in_seconds
        self.told_seconds = retry_in_seconds if told_seconds is None else told_seconds


class TransferStalled(UpstreamError):
    """Nothing has come for longer than is waited."""


class BrokenOff(UpstreamError):
    """An answer ended before its end."""


class OriginDown(UpstreamError):
    """The circuit breaker is open: nothing was sent."""


class RateLimited(UpstreamError):
    """Upstream said 429; ``retry_in_seconds`` is how long nothing should be asked of it."""


class UpstreamRefused(UpstreamError):
    """Upstream refused the question (another 4xx), or its no is not in a registry's words: passed on, not believed.

    Args:
        status: upstream's.
        code: upstream's, or what the status is called in the OCI distribution spec.
    """

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class RangeRefused(UpstreamError):
    """Upstream was asked for a part of a blob and answered with neither that part nor the whole: ask for the whole."""


class HeadRefused(UpstreamError):
    """Upstream does not answer HEAD as it may answer GET (refused, a no that may be another's, a body): ask by GET."""


class HeadFailed(HeadRefused):
    """A HEAD met trouble that nothing else has met since the last good answer: it may be HEAD's alone."""


class PeerLost(UpstreamError):
    """Bytes came from another replica and come no more: the source is asked again at once, and costs no try."""


class UpstreamBusy(UpstreamError):
    """Too many transfers from upstream are under way already."""


# --- the store --------------------------------------------------------------------------------------------------


class StoreError(RegistryCacheError):
    """The cache directory cannot be used as asked."""


class StoreLocked(StoreError):
    """Another process uses this cache directory."""


class StoreTooNew(StoreError):
    """The index was written by a newer version of this program."""


class IndexRefused(StoreError):
    """The index cannot be written, or read: locked by another process, disk full, quota, I/O error, read-only."""


class NoSpace(StoreError):
    """The bytes cannot be stored: the cap, the free-space floor or the disk itself is in the way."""


class ReadFailed(StoreError):
    """A stored file cannot be read, or is shorter than it was.

    Args:
        offset: the first byte that could not be read; everything before it has been sent.
    """

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


# --- the host's own engine --------------------------------------------------------------------------------------


class EngineError(RegistryCacheError):
    """The Docker Engine answered something that cannot be used."""


class EngineUnreachable(EngineError):
    """The Docker Engine does not answer, or is not on this machine."""


class ImageInUse(EngineError):
    """The Docker Engine refuses to remove the image because something uses it (409)."""


class NamesLost(EngineError):
    """The Docker Engine refused an image's last name after others had gone; the text says what became of those."""


class RunLockError(RegistryCacheError):
    """The run lock's file cannot be opened or locked."""


class RecordError(RegistryCacheError):
    """The record of last use cannot be written."""
