"""Results: a table in Markdown, the raw figures in JSON, plots as PNG and SVG."""

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Report:
    """The results of one benchmark, written to ``<directory>/<name>.{md,json,png,svg}``.

    Args:
        title: heading of the document.
        intro: what was measured, in a sentence or two.
    """

    def __init__(self, directory: Path, name: str, title: str, intro: str) -> None:
        self.directory = directory
        self.name = name
        self.raw: dict[str, Any] = {"machine": machine(), "command": command()}
        self._parts = [f"# {title}", intro, f"`{command()}` · {machine()}", NOISE]
        directory.mkdir(parents=True, exist_ok=True)

    def table(self, heading: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Add a table; its first column is text, the others are figures."""
        lines = [f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
        lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
        self._parts += [f"## {heading}", "\n".join(lines)]
        print(f"\n{heading}\n" + "\n".join(lines), flush=True)

    def bars(self, heading: str, groups: dict[str, dict[str, float]], unit: str, *, log: bool = False) -> None:
        """Plot one bar a system in each group; without matplotlib there is no plot."""
        try:
            import matplotlib as mpl  # noqa: PLC0415 -- an extra

            mpl.use("Agg")
            from matplotlib import pyplot as plt  # noqa: PLC0415
        except ImportError:
            print("no plots: matplotlib is missing", file=sys.stderr)
            return
        names = list(dict.fromkeys(name for group in groups.values() for name in group))
        if not names:
            return
        figure, axes = plt.subplots(figsize=(max(6.0, 1.6 * len(groups)), 4))
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            at = [position + number * width for position in range(len(groups))]
            axes.bar(at, [group.get(name, 0.0) for group in groups.values()], width, label=name)
        axes.set_xticks([position + 0.4 - width / 2 for position in range(len(groups))], list(groups), fontsize=8)
        axes.set_ylabel(unit)
        axes.set_title(heading, fontsize=10)
        if log:
            axes.set_yscale("log")
        axes.legend(fontsize=7)
        figure.tight_layout()
        for kind in ("png", "svg"):
            figure.savefig(self.directory / f"{self.name}.{kind}", metadata={"Date": None} if kind == "svg" else {})
        plt.close(figure)
        self._parts.append(f"![{heading}]({self.name}.svg)")

    def write(self) -> None:
        """Write Markdown and JSON; the plot is there already."""
        (self.directory / f"{self.name}.md").write_text("\n\n".join(self._parts) + "\n")
        (self.directory / f"{self.name}.json").write_text(json.dumps(self.raw) + "\n")


NOISE = (
    "The machine was shared and busy with other work while this ran: absolute figures are low and uneven. The systems "
    "were alternated round by round in one run, and what can be trusted are the ratios of the medians."
)


def machine() -> str:
    """What it ran on, without naming the machine."""
    day = datetime.now(UTC).date().isoformat()
    return (
        f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, {day}"
    )


def command() -> str:
    """How to run it again."""
    arguments = " ".join(sys.argv[1:])
    where_to = re.sub(r"(^|\s)--output[ =]\S+", "", arguments)  # which is a matter of this machine
    return f"python -m benchmarks.{Path(sys.argv[0]).stem} {where_to}".rstrip()


def figure(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quantile(values: Sequence[float], part: float) -> float:
    """The value that *part* of all are not above; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def ratio(value: float, base: float) -> str:
    return f"{figure(value / base)} x" if base else "-"
