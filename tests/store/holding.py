"""Moments that are held: a step of the store waits until the test lets it go."""

import asyncio
from collections.abc import Callable
from typing import Any


class Held:
    """An asynchronous method that waits before it is done, or has just been done."""

    def __init__(self, monkeypatch, owner: Any, name: str, *, when: Callable[..., bool] = lambda *_: True) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.calls = 0
        original = getattr(owner, name)

        async def held(*args, **kwargs):
            if when(*args):
                self.calls += 1
                self.reached.set()
                await self.go_on.wait()
            return await original(*args, **kwargs)

        monkeypatch.setattr(owner, name, held)
