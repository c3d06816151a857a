"""A terminal session as an SVG that plays by itself: lines appear when they appeared, and scroll."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

ROWS, COLUMNS = 24, 84
_LINE, _CELL, _MARGIN, _TITLE = 18, 8.43, 14, 30
# The last picture stays for so long before the session begins again.
_HOLD_SECONDS = 6.0
_MONOSPACE = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'


@dataclass(frozen=True)
class Line:
    """One line, ``at`` seconds after the beginning; ``kind`` is ``out``, ``typed`` or ``said`` (our own words)."""

    at: float
    text: str
    kind: str = "out"


def svg(lines: Sequence[Line], title: str) -> str:
    """The picture. Without motion (a setting of the reader's system) it shows how the session ended."""
    width = round(COLUMNS * _CELL) + 2 * _MARGIN
    height = _TITLE + ROWS * _LINE + _MARGIN
    spoken = "; ".join(line.text.strip("# ") for line in lines if line.kind != "out")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{html.escape(title)}</title><desc>{html.escape(spoken)}</desc>",
        f"<style>{_style(lines)}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
        f'<text class="title" x="{_MARGIN}" y="20">{html.escape(title)}</text>',
        f'<clipPath id="screen"><rect y="{_TITLE}" width="{width}" height="{ROWS * _LINE + 4}"/></clipPath>',
        '<g clip-path="url(#screen)"><g class="roll">',
        *(_text(number, line) for number, line in enumerate(lines)),
        "</g></g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(number: int, line: Line) -> str:
    y = _TITLE + _MARGIN + number * _LINE
    text = html.escape(line.text[:COLUMNS])
    return f'<text class="line {line.kind}" style="animation-name:l{number}" x="{_MARGIN}" y="{y}">{text}</text>'


def _style(lines: Sequence[Line]) -> str:
    """Colours, and the moment of each line and of each scroll as a share of the whole."""
    duration = lines[-1].at + _HOLD_SECONDS
    moments = [f"{line.at / duration:.3%}" for line in lines]
    rolls = [
        f"{moment} {{ transform: translateY(-{(number + 1 - ROWS) * _LINE}px) }}"
        for number, moment in enumerate(moments)
        if number >= ROWS
    ]
    end = max(0, len(lines) - ROWS) * _LINE
    return "\n".join(
        [
            f"text {{ font: 14px {_MONOSPACE}; fill: #d6deeb; white-space: pre; }}",
            ".title { fill: #8b949e; font-size: 12px; } .typed { fill: #7ee787; } .said { fill: #79c0ff; }",
            f".line {{ animation: {duration:.2f}s step-end infinite; }}",
            f".roll {{ animation: roll {duration:.2f}s step-end infinite; }}",
            "@media (prefers-reduced-motion: reduce) {",
            f".line, .roll {{ animation: none !important; }} .roll {{ transform: translateY(-{end}px); }} }}",
            f"@keyframes roll {{ {' '.join(rolls)} }}",
            *(
                f"@keyframes l{number} {{ 0% {{ opacity: 0 }} {moment} {{ opacity: 1 }} }}"
                for number, moment in enumerate(moments)
                if moment != "0.000%"
            ),
        ]
    )
