"""Plots as SVG: columns of one path a series, in a box that stretches; the words around them are HTML."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from registry_cache.observe.history import Step
from registry_cache.observe.quota import QuotaStep

# The box: as many units wide as there are columns, times this; as high as HEIGHT.
_COLUMN, _GAP = 10, 1.5
HEIGHT = 100.0


class Series(NamedTuple):
    """One colour of a plot."""

    name: str
    css_class: str
    path: str


class Plot(NamedTuple):
    """Columns over time; ``top`` is the value of the upper edge."""

    width: int
    top: float
    series: list[Series]


def ratio_plot(steps: Sequence[Step]) -> Plot:
    """The hit ratio of each step; no column where nothing was asked for, a mark where everything missed."""
    ratios = [step.counts.hit_ratio for step in steps]
    heights = [0.0 if ratio is None else max(ratio * HEIGHT, 1.0) for ratio in ratios]
    return Plot(len(steps) * _COLUMN, 1.0, [Series("hits", "cached", _columns(heights, [0.0] * len(steps)))])


def bytes_plot(steps: Sequence[Step]) -> Plot:
    """What came from the cache, and on top of it what came from upstream."""
    cached = [step.counts.cached_bytes for step in steps]
    received = [step.counts.received_bytes for step in steps]
    top = round_up(max((a + b for a, b in zip(cached, received, strict=True)), default=0))

    def scaled(values: Sequence[int]) -> list[float]:
        return [value / top * HEIGHT for value in values]

    below = scaled(cached)
    return Plot(
        len(steps) * _COLUMN,
        top,
        [
            Series("from the cache", "cached", _columns(below, [0.0] * len(steps))),
            Series("from upstream", "upstream", _columns(scaled(received), below)),
        ],
    )


def quota_plot(steps: Sequence[QuotaStep | None]) -> Plot:
    """The pulls that were left; no column where upstream said nothing, a mark where none were left."""
    top = float(max((step.limit for step in steps if step), default=0)) or 1.0
    heights = [0.0 if step is None else max(min(step.remaining / top, 1.0) * HEIGHT, 1.0) for step in steps]
    return Plot(len(steps) * _COLUMN, top, [Series("pulls left", "cached", _columns(heights, [0.0] * len(steps)))])


def round_up(value: float) -> float:
    """The next round number whose half is round, too: the largest column fills three quarters of the plot at least."""
    if value <= 1:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(unit * step for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if unit * step >= value)


def _columns(heights: Sequence[float], bases: Sequence[float]) -> str:
    """The ``d`` of one path: a rectangle for each height that is not zero, standing on its base."""
    width = f"{_COLUMN - 2 * _GAP:g}"
    number: Callable[[float], str] = lambda value: f"{value:.1f}".removesuffix(".0")  # noqa: E731
    return "".join(
        f"M{place * _COLUMN + _GAP:g} {number(HEIGHT - base)}h{width}v-{number(height)}h-{width}z"
        for place, (height, base) in enumerate(zip(heights, bases, strict=True))
        if height > 0
    )
