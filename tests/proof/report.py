"""results.json and a plot of the deploys, for docs/verification.md."""

from pathlib import Path
from typing import Any

from tests.proof.evidence import Evidence, as_json

ORDER = (
    "no cache",
    "registry:2, cold",
    "registry-cache, cold",
    "registry:2, warm",
    "registry-cache, warm",
    "warm host",
)


def write_report(directory: Path, evidence: Evidence, about: dict[str, Any]) -> None:
    """Both files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(as_json(evidence, about))
    if deploys := evidence.figures.get("deploys"):
        (directory / "deploys.svg").write_text(_bars(deploys))


def _bars(deploys: dict[str, dict[str, Any]]) -> str:
    rows = [(name, deploys[name]) for name in ORDER if name in deploys]
    longest = max(row["deploy_seconds"] for _, row in rows)
    scale = 460 / longest
    parts = []
    for number, (name, row) in enumerate(rows):
        y = 34 + number * 34
        pull, deploy = row["pull_seconds"], row["deploy_seconds"]
        parts += [
            f'<text x="158" y="{y + 15}" text-anchor="end">{name}</text>',
            f'<rect x="166" y="{y}" width="{deploy * scale:.0f}" height="20" fill="#9db8d2"/>',
            f'<rect x="166" y="{y}" width="{pull * scale:.0f}" height="20" fill="#2f6da8"/>',
            f'<text x="{172 + deploy * scale:.0f}" y="{y + 15}">{pull:.1f} s / {deploy:.1f} s</text>',
        ]
    height = 44 + len(rows) * 34
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" role="img" font-family="sans-serif" '
        'font-size="13"><title>Deploying the stack: pull (dark) and whole deploy (light), median seconds</title>'
        f'<rect width="760" height="{height}" fill="#fff"/><text x="166" y="20">pull (dark) and whole deploy (light), '
        f"median seconds</text>{''.join(parts)}</svg>\n"
    )
