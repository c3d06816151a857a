"""Questions to the engine's API, bounded in time and bytes: whatever goes wrong becomes an error of this program."""

import asyncio
import json
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import aiodocker
import aiohttp

from registry_cache.model.errors import EngineError, EngineUnreachable, ImageInUse

_T = TypeVar("_T")

READ_TIMEOUT_SECONDS = 60.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_NOT_FOUND = 404
_CONFLICT = 409


class CappedResponse(aiohttp.ClientResponse):
    """An answer that may not fill the memory: aiohttp itself has no limit for a body."""

    async def read(self) -> bytes:
        if self._body is None:
            body = bytearray()
            async for chunk in self.content.iter_any():
                body += chunk
                if len(body) > _MAX_ANSWER_BYTES:
                    self.close()
                    raise EngineError(f"the Docker Engine's answer is larger than {_MAX_ANSWER_BYTES} bytes")
            self._body = bytes(body)
        return self._body


class Absent(EngineError):
    """404."""


class Questions:
    """What is asked by path, as the API is written down."""

    def __init__(self, docker: aiodocker.Docker) -> None:
        self._docker = docker

    async def list(self, path: str, params: Mapping[str, str]) -> list[Any]:
        """An answer that has to be a list: anything else is no empty host."""
        answer = await self.json(path, params)
        if not isinstance(answer, list):
            raise EngineError(f"the Docker Engine's answer to {path} makes no sense: it is no list")
        return answer

    async def json(self, path: str, params: Mapping[str, str], timeout_seconds: float = READ_TIMEOUT_SECONDS) -> object:
        text = await self.text(path, params, timeout_seconds)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EngineError(f"the Docker Engine's answer to {path} makes no sense: {error}") from error

    async def text(self, path: str, params: Mapping[str, str], timeout_seconds: float) -> str:
        url = f"{self._docker.docker_host}/{self._docker.api_version}/{path}"
        return await asked(self._get(url, params), timeout_seconds)

    async def _get(self, url: str, params: Mapping[str, str]) -> str:
        async with self._docker.session.get(url, params=params) as response:
            text = await response.text(errors="replace")
            if response.status == _NOT_FOUND:
                raise Absent(f"the Docker Engine answered 404: {_message(text)}")
            if not response.ok:
                raise EngineError(f"the Docker Engine answered {response.status}: {_message(text)}")
            return text


@contextmanager
def unusable_answers() -> Iterator[None]:
    """An answer that is not what the API promises is the engine's error."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise EngineError(f"the Docker Engine's answer makes no sense: {error!r}") from error


async def asked(answer: Awaitable[_T], timeout_seconds: float = READ_TIMEOUT_SECONDS) -> _T:
    """Wait for an answer; whatever goes wrong becomes an error of this program."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return await answer
    except TimeoutError as error:
        raise EngineUnreachable(f"no answer within {timeout_seconds:.0f} seconds") from error
    except aiodocker.DockerError as error:
        raise _translated(error) from error
    except (aiohttp.ClientError, OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise EngineUnreachable(f"its answer cannot be read: {error}") from error


def _translated(error: aiodocker.DockerError) -> EngineError:
    text = str(error.message).strip()[:500]
    if error.status == _NOT_FOUND:
        return Absent(f"the Docker Engine answered 404: {text}")
    if error.status == _CONFLICT:
        return ImageInUse(text)
    if error.status >= 900:  # noqa: PLR2004 -- aiodocker's status for "cannot connect"
        return EngineUnreachable(getattr(error.__context__, "strerror", None) or text)
    return EngineError(f"the Docker Engine answered {error.status}: {text}")


def _message(text: str) -> str:
    """What an error says, in the API's form or not."""
    try:
        return str(json.loads(text)["message"]).strip()[:500]
    except (ValueError, TypeError, LookupError, RecursionError):
        return text.strip()[:200]
