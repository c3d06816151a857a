"""The outcome of one look."""

from typing import Literal, NamedTuple


class Check(NamedTuple):
    """What was looked at, how it is, and what to do when it is not good.

    ``broken`` means that pulls fail or are not cached; a ``warning`` that they will, or that something was not seen.
    """

    name: str
    state: Literal["ok", "warning", "broken"]
    text: str
    remedy: str = ""
