"""What the proof leaves behind: a summary to read, docs/verification.md, its plot, and the README's figures.

All of it is made from ``results.json``: ``python -m tests.proof.report`` makes it anew after a change of wording,
and tests/proof/test_report.py sees that they agree.
"""

import argparse
import datetime as dt
import json
import textwrap
from pathlib import Path
from typing import Any

from tests.proof.evidence import Evidence
from tests.proof.installation import CHECKOUT
from tests.proof.machine import BUSY, described

Results = dict[str, Any]

PAGE = "docs/verification.md"
RESULTS = "docs/verification/results.json"
PLOT = "docs/verification/deploys.svg"
README = "README.md"
BEGIN = "<!-- written by make verify: begin -->\n"
END = "<!-- written by make verify: end -->\n"

# In the order of the page; what is timed is a `docker stack deploy` of the whole stack.
SYSTEMS = {
    "no cache": "no cache",
    "registry:2, cold": "registry:2, its first deploy",
    "registry-cache, cold": "registry-cache, its first deploy",
    "registry:2, warm": "registry:2, warm",
    "registry-cache, warm": "registry-cache, warm",
    "warm host": "nothing to pull: the images are on the host (once)",
}
PART_TITLES = {
    "made": "The images",
    "(a)": "(a) The second deploy comes from the cache",
    "(b)": "(b) It survives a prune",
    "(c)": "(c) The speed-up",
    "(d)": "(d) Misses authenticate; the limit does not bite",
    "5": "5. A broken pull stays broken",
    "6": "6. Bounded",
    "7": "7. Rebuild",
    "8": "8. Three registries",
}


def results_of(evidence: Evidence, given: argparse.Namespace, *, command: str = "make verify") -> Results:
    """Everything that was seen, and on what."""
    return {
        "command": f"{command}-short" if given.short else command,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": described(),
        "busy": round(evidence.busy, 2),
        "upstream": {"latency_ms": given.latency, "bandwidth_mbit": given.bandwidth},
        "rounds": given.rounds,
        "seconds": {"total": round(evidence.elapsed, 1)} | {part: round(s, 1) for part, s in evidence.seconds.items()},
        "holds": evidence.good,
        "findings": [vars(finding) for finding in evidence.findings],
        "figures": evidence.figures,
    }


def summary(results: Results, titles: dict[str, str] = PART_TITLES) -> str:
    """To be read in a terminal: each claim, the deploys, how long it took."""
    lines = []
    for part in dict.fromkeys(finding["part"] for finding in results["findings"]):
        lines.append(f"\n{titles[part]}  ({results['seconds'].get(part, 0):.0f} s)")
        found = [finding for finding in results["findings"] if finding["part"] == part]
        lines += [f"  {'✔' if f['holds'] else '✘'} {f['claim']}\n      {f['seen']}" for f in found]
    if deploys := results["figures"].get("deploys"):
        width = max(map(len, SYSTEMS.values()))
        lines += ["", f"{'median of ' + str(results['rounds']) + ' rounds':{width}}  pull     deploy   from upstream"]
        lines += [
            f"{SYSTEMS[name]:{width}}  {row['pull_seconds']:5.1f} s  {row['deploy_seconds']:5.1f} s  "
            f"{row['upstream_bytes'] / 1e6:6.1f} MB"
            for name, row in _rows(deploys)
        ]
    failed = sum(not finding["holds"] for finding in results["findings"])
    verdict = f"{failed} of {len(results['findings'])} claims do NOT hold" if failed else "every claim holds"
    verdict += _caveat(results)
    return "\n".join([*lines, "", f"{verdict}: {len(results['findings'])} claims in {minutes_of(results)}", ""])


def write_report(checkout: Path, results: Results) -> None:
    """The page, its data and its plot, and the README's figures."""
    (checkout / RESULTS).parent.mkdir(parents=True, exist_ok=True)
    (checkout / RESULTS).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    (checkout / PLOT).write_text(plot(results["figures"]["deploys"]))
    (checkout / PAGE).write_text(page(results))
    before, _, rest = (checkout / README).read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    (checkout / README).write_text(before + BEGIN + readme(results) + END + after)


def readme(results: Results) -> str:
    """The README's figures, between its two marks."""
    deploys, bounded, images = (results["figures"][name] for name in ("deploys", "bounded", "images"))
    size_mb = deploys["no cache"]["upstream_bytes"] / 1e6
    systems = ("no cache", "registry:2, warm", "registry-cache, warm")

    def row(title: str, field: str, form: str) -> str:
        return f"| {title} | " + " | ".join(form.format(deploys[system][field]) for system in systems) + " |"

    table = [
        f"| a stack of {len(images)} services, {size_mb:.0f} MB | {' | '.join(systems)} |",
        "|---|---:|---:|---:|",
        row("pulled in", "pull_seconds", "{:.1f} s"),
        row("deployed and healthy in", "deploy_seconds", "{:.1f} s"),
        row("pulls that Docker Hub would count", "counted_pulls", "{}"),
    ]
    measured = (
        f"Under a cap of a third of what is asked for, {bounded['byte_hit_ratio']:.0%} of the bytes come from the "
        f"cache; one that knows the future would reach {bounded['clairvoyant_byte_hit_ratio']:.0%}. Measured by "
        f"`{results['command']}` on {_machine(results)}, against a look-alike of Docker Hub with "
        f"{upstream_of(results)}{_caveat(results)}: [docs/verification.md]({PAGE})."
    )
    return "\n" + "\n".join(table) + f"\n\n{wrapped(measured)}\n\n"


def page(results: Results) -> str:
    """docs/verification.md."""
    written = (
        f"Written by `{results['command']}` on {results['date']}, in {minutes_of(results)}, {on_what(results)}. "
        f"Upstream was a look-alike of Docker Hub with {upstream_of(results)}."
    )
    timed = (
        f"Medians of {results['rounds']} rounds, the order of the systems changing from round to round. `docker stack "
        "deploy` of the whole stack: until its last image was pulled, and until every service was healthy and the "
        "setup job had ended."
    )
    parts = ["# Verification", wrapped(written), _HOW, "## What was claimed, and what was seen", claims(results)]
    parts += ["## How long a deploy takes", wrapped(timed), _deploys(results)]
    parts += ["![Pull and deploy, median seconds](verification/deploys.svg)"]
    parts += ["## What was deployed", _images(results), _LIMITS]
    return "\n\n".join(parts) + "\n"


_HOW = """\
Anybody can run it again: `make verify` on a bare Debian 12 as root, with `LATENCY=80 BANDWIDTH=20 ROUNDS=5` for another
upstream. It installs the program with `make install`, starts it from its settings file, and points a real dockerd with
a swarm of one at it by `registry-mirrors`. Upstream is `tests/hub`: token service, pull limit and CDN as Docker Hub has
them, in front of a real registry, under Docker Hub's name for this one dockerd. Nothing else is simulated. Whether a
claim holds is decided by upstream's own counters, not by ours alone. `make verify-short`, a part of `make test`, shows
(a), (b), (d) and 5 with small images. The raw figures: [results.json](verification/results.json)."""

_LIMITS = """\
## What this does not show

- Docker Hub itself: no registry on the Internet was asked for anything.
- A network: everything is on one machine; upstream, cache, dockerd and the unpacking share its cores. Latency and
  bandwidth are the look-alike's; a slow disk is not imitated.
- In (d) and 6 a deploy is the pulls that it makes, followed by `docker image prune -af` (in 6 there are two at a time);
  there, and in 5, upstream answers after 5 ms and as fast as it can.
- dockerd 20.10 with the classic image store only, and containerd for the zstd layer: a dockerd with the containerd
  image store is not in Debian 12."""


def claims(results: Results, titles: dict[str, str] = PART_TITLES) -> str:
    """A table of them, part by part."""
    lines = ["| | claim | seen |", "|---|---|---|"]
    for part, title in titles.items():
        found = [finding for finding in results["findings"] if finding["part"] == part]
        if found:
            lines.append(f"| | **{title}** | {results['seconds'][part]:.0f} s |")
        lines += [f"| {'✔' if f['holds'] else '✘'} | {_cell(f['claim'])} | {_cell(f['seen'])} |" for f in found]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _deploys(results: Results) -> str:
    deploys = results["figures"]["deploys"]
    none = deploys["no cache"]
    lines = [
        "| | pull | deploy | pull, against no cache | counted pulls | blob GETs | from upstream |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in _rows(deploys):
        lines.append(
            f"| {SYSTEMS[name]} | {row['pull_seconds']:.1f} s | {row['deploy_seconds']:.1f} s "
            f"| {row['pull_seconds'] / none['pull_seconds']:.2f} | {row['counted_pulls']} | {row['blob_gets']} "
            f"| {row['upstream_bytes'] / 1e6:.1f} MB |"
        )
    return "\n".join(lines)


def _images(results: Results) -> str:
    notes = {
        "web": "nginx",
        "app": "Flask; stands on the same Python as the worker",
        "worker": "Celery",
        "db": "PostgreSQL",
        "cache": "Redis; an index of two architectures",
        "setup": "a job that runs once; pinned by digest",
    }
    lines = ["| image | layers | compressed | unpacked | |", "|---|---:|---:|---:|---|"]
    unpacked = results["figures"]["unpacked_bytes"]
    for service, image in results["figures"]["images"].items():
        lines.append(
            f"| {service} | {image['layers']} | {image['compressed_bytes'] / 1e6:.0f} MB "
            f"| {unpacked[service] / 1e6:.0f} MB | {notes[service]} |"
        )
    return (
        "\n".join(lines)
        + "\n\nMade of Debian's packages, all on the same Debian base. They run, and have health checks."
    )


def wrapped(text: str) -> str:
    """In lines, as the documents have them."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _rows(deploys: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, deploys[name]) for name in SYSTEMS if name in deploys]


def _machine(results: Results) -> str:
    known = results["machine"]
    return (
        f"{known['cores']} cores ({known['cpu']}), {known['memory_gb']} GB, {known['system']}, docker {known['docker']}"
    )


def upstream_of(results: Results) -> str:
    """How slow it was."""
    upstream = results["upstream"]
    return f"{upstream['latency_ms']:g} ms and {upstream['bandwidth_mbit']:g} Mbit/s a connection"


def on_what(results: Results) -> str:
    """The machine, and that its figures are provisional if they are."""
    return f"on {_machine(results)}{_caveat(results)}"


def minutes_of(results: Results) -> str:
    """How long it took in all."""
    minutes, seconds = divmod(round(results["seconds"]["total"]), 60)
    return f"{minutes} min {seconds} s"


def _caveat(results: Results) -> str:
    """A busy machine's figures are provisional, and say so themselves."""
    if results["busy"] < BUSY:
        return ""
    return f" (**provisional**: other work took {results['busy']:.0%} of the machine's cores)"


def plot(deploys: dict[str, dict[str, Any]]) -> str:
    """An SVG of bars; no library for so little."""
    rows = _rows(deploys)
    scale = 400 / max(row["deploy_seconds"] for _, row in rows)
    parts = []
    for number, (name, row) in enumerate(rows):
        y = 34 + number * 34
        pull, deploy = row["pull_seconds"], row["deploy_seconds"]
        parts += [
            f'<text x="188" y="{y + 15}" text-anchor="end">{name}</text>',
            f'<rect x="196" y="{y}" width="{deploy * scale:.0f}" height="20" fill="#9db8d2"/>',
            f'<rect x="196" y="{y}" width="{pull * scale:.0f}" height="20" fill="#2f6da8"/>',
            f'<text x="{202 + deploy * scale:.0f}" y="{y + 15}">{pull:.1f} s / {deploy:.1f} s</text>',
        ]
    height = 44 + len(rows) * 34
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" role="img" font-family="sans-serif" '
        'font-size="13"><title>Deploying the stack: pull (dark) and whole deploy (light), median seconds</title>'
        f'<rect width="760" height="{height}" fill="#fff"/><text x="196" y="20">pull (dark) and whole deploy (light), '
        f"median seconds</text>{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    write_report(CHECKOUT, json.loads((CHECKOUT / RESULTS).read_text()))
