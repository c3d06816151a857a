"""An account that a docker-credential-helper knows: Amazon ECR, Google GAR, Azure ACR come by theirs.

Source: docker/docker-credential-helpers, "Development": ``docker-credential-NAME get`` reads the registry's name and
writes ``{"Username": …, "Secret": …}``.
"""

import asyncio
import base64
import contextlib
import os
import signal
import time
from collections.abc import Mapping
from typing import Annotated

import msgspec

from registry_cache.model.errors import ContentError, CredentialRefused
from registry_cache.model.foreign import read_json
from registry_cache.runtime.threads import finish
from registry_cache.upstream.credential import Login

_SECONDS = 20.0
_ENDING_SECONDS = 1.0
_ANSWER_MAX_BYTES = 64 * 1024
# After a refused secret the helper is asked again, once in so long.
_AGAIN_SECONDS = 60.0
# A secret is not used in its last seconds.
_MARGIN_SECONDS = 60.0


class _Answer(msgspec.Struct, rename="pascal"):
    username: Annotated[str, msgspec.Meta(min_length=1)]
    secret: Annotated[str, msgspec.Meta(min_length=1)]


class _Claims(msgspec.Struct):
    exp: float


class HelperCredential:
    """What the helper says is kept until its own end, or for *lifetime_seconds*.

    Args:
        helper: NAME of ``docker-credential-NAME``, which is looked for in PATH.
        server: the registry's name, as the helper is asked.
        environment: what it has beside our own.
    """

    def __init__(
        self, helper: str, server: str, *, lifetime_seconds: float, environment: Mapping[str, str] | None = None
    ) -> None:
        self._environment = environment or {}
        self._program = f"docker-credential-{helper}"
        self._server = server
        self._lifetime_seconds = lifetime_seconds
        self._known: tuple[Login, float] | None = None  # until (monotonic seconds)
        self._asked_at = -_AGAIN_SECONDS
        self._asking = asyncio.Lock()

    @property
    def name(self) -> str:
        """Whose account it is, for messages."""
        known = self._known
        return self._program if known is None or known[0].is_identity_token else known[0].username

    async def login(self) -> Login:
        """Name and secret.

        Raises:
            CredentialRefused: the helper gives none; the text says what it said.
        """
        async with self._asking:
            if self._known is None or time.monotonic() >= self._known[1]:
                self._asked_at = time.monotonic()
                login = self._parsed(await self._ask())
                self._known = login, time.monotonic() + self._seconds(login.secret)
            return self._known[0]

    def refused(self) -> None:
        """The registry does not accept what the helper gave: it is asked again, unless it just was."""
        if time.monotonic() - self._asked_at >= _AGAIN_SECONDS:
            self._known = None

    async def _ask(self) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                "get",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={**os.environ, **self._environment},
                start_new_session=True,  # what it starts itself goes with it
            )
        except OSError as error:
            raise CredentialRefused(f"{self._program}: {error.strerror}: it has to be in the service's PATH") from error
        try:
            async with asyncio.timeout(_SECONDS):
                answer = await self._talk(process)
                status = await process.wait()
        except TimeoutError as error:
            raise CredentialRefused(f"{self._program} did not answer within {_SECONDS:g} s") from error
        finally:
            await finish(_ended(process))
        if status:
            said = answer[:200].decode(errors="replace").strip() or f"exit code {status}"
            raise CredentialRefused(f"{self._program} has no account for {self._server}: {said}")
        return answer

    async def _talk(self, process: asyncio.subprocess.Process) -> bytes:
        if process.stdin is None or process.stdout is None:
            raise TypeError(process)
        with contextlib.suppress(ConnectionError):  # one that does not read its input may answer all the same
            process.stdin.write(self._server.encode())
            await process.stdin.drain()
        process.stdin.close()
        answer = b""
        while piece := await process.stdout.read(_ANSWER_MAX_BYTES):
            answer += piece
            if len(answer) > _ANSWER_MAX_BYTES:
                raise CredentialRefused(f"{self._program} answered more than {_ANSWER_MAX_BYTES} bytes")
        return answer

    def _parsed(self, answer: bytes) -> Login:
        try:
            found = read_json(answer, _Answer)
        except ContentError as error:
            raise CredentialRefused(f"{self._program} answered without Username and Secret") from error
        return Login(found.username, found.secret.encode())

    def _seconds(self, secret: bytes) -> float:
        """How long *secret* is used: a JWT says itself when it ends."""
        ends = _jwt_end(secret)
        left = self._lifetime_seconds if ends is None else ends - time.time() - _MARGIN_SECONDS
        return max(0.0, min(left, self._lifetime_seconds))


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Kill it, if it runs, and wait until nothing of it is left here: its pipe closes once it has been read."""
    if process.returncode is None:  # else its number may be somebody else's by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):  # somebody whom it started, and who has left its group, has the pipe
        async with asyncio.timeout(_ENDING_SECONDS):
            while process.stdout is not None and await process.stdout.read(_ANSWER_MAX_BYTES):
                pass
            await process.wait()


def _jwt_end(secret: bytes) -> float | None:
    """``exp`` of a JWT, Unix seconds; None of anything else."""
    parts = secret.split(b".")
    if len(parts) != 3:  # noqa: PLR2004 -- RFC 7519
        return None
    try:
        return read_json(base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)), _Claims).exp
    except (ValueError, ContentError):
        return None
