"""What ``make clients`` leaves behind: a summary to read, docs/clients.md, and the data of both.

``python -m tests.clients.report`` makes the page anew after a change of wording, and tests/clients/test_report.py sees
that page and data agree.
"""

import datetime as dt
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.clients.client import LISTEN
from tests.clients.notes import NOTES
from tests.clients.situations import CACHED_SECONDS, SITUATIONS, UNCACHED_SECONDS
from tests.clients.tap import Asked
from tests.clients.trial import UNCACHED

Results = dict[str, Any]
Row = dict[str, Any]

CHECKOUT = Path(__file__).parents[2]
PAGE = "docs/clients.md"
RESULTS = "docs/clients/results.json"
_TYPES = {
    "application/vnd.docker.distribution.manifest.v2+json": "Docker manifest",
    "application/vnd.docker.distribution.manifest.list.v2+json": "Docker list",
    "application/vnd.docker.distribution.manifest.v1+json": "schema 1",
    "application/vnd.docker.distribution.manifest.v1+prettyjws": "signed schema 1",
    "application/vnd.oci.image.manifest.v1+json": "OCI manifest",
    "application/vnd.oci.image.index.v1+json": "OCI index",
    "application/vnd.oci.artifact.manifest.v1+json": "OCI artifact",
    "application/vnd.oci.image.config.v1+json": "OCI config",
    "application/vnd.oci.image.layer.v1.tar+gzip": "OCI layer",
}
_MOST_RANGES = 3
NOTHING = "-"


def results_of(seen: list[dict[str, Any]], seconds: float) -> Results:
    """Everything that was seen of each client, and of which version."""
    ordered = sorted(seen, key=lambda client: str(client["client"]))
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "seconds": round(seconds),
        "clients": {
            client["client"]: {name: client[name] for name in ("package", "version", "how")} for client in ordered
        },
        "rows": [row for client in ordered for row in client["rows"]],
        "facts": {client["client"]: client["facts"] for client in ordered},
    }


def facts_of(asked: Iterable[Asked]) -> list[dict[str, Any]]:
    """What a client sends, one entry for each form; how often is left out, it differs from run to run."""
    forms: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    agents = set()
    for request in asked:
        agents |= {re.sub(r" (git-commit|kernel)/\S+", "", agent) for agent in request.values("user-agent")}
        form = (
            f"{request.method} {request.kind}",
            "; ".join(sorted({_short_types(request.values("accept"))} - {""})),
            ", ".join(request.values("accept-encoding")),
            _namespace(request.target),
            request.headers_beside(),
        )
        forms[form] |= {_short_range(value) for value in request.values("range")} or {""}
    entries = [
        {
            "asks": asks,
            "accept": accept,
            "encoding": encoding,
            "ns": namespace,
            "others": others,
            "ranges": sorted(ranges)[: _MOST_RANGES + 1],
        }
        for (asks, accept, encoding, namespace, others), ranges in sorted(forms.items())
    ]
    return [{"agents": sorted(agents)}, *entries]


def _short_types(values: list[str]) -> str:
    """One line of Accept as it stands, several in alphabetical order: dockerd's is by chance."""
    types = [kind.strip() for value in values for kind in value.split(",")]
    names = ["anything" if kind == "*/*" else _TYPES.get(kind, kind) for kind in types]
    return ", ".join(sorted(names)) + (f" ({len(values)} lines)" if len(values) > 1 else "")


def _namespace(target: str) -> str:
    found = re.search(r"[?&]ns=([^&]+)", target)
    return found[1] if found else ""


def _short_range(value: str) -> str:
    """With letters in place of offsets that are not 0."""
    parts = value.removeprefix("bytes=").split(",")
    if len(parts) > 1:
        return f"bytes=N-M,… ({'2 to 9' if len(parts) < 10 else '10 or more'} ranges)"
    return re.sub(r"[1-9]\d*$", "M", re.sub(r"(?<==)[1-9]\d*", "N", value))


def summary(results: Results) -> str:
    """To be read in a terminal."""
    lines = []
    for row in results["rows"]:
        lines += [f"✘ {row['client']}, {row['situation']}: {text}" for text in row["broken"]]
        lines += [f"· {row['client']}, {row['situation']}: known: {text}" for text in row["known"]]
    count = sum(bool(row["broken"]) for row in results["rows"])
    verdict = f"{count} of {len(results['rows'])} do NOT hold" if count else f"all {len(results['rows'])} hold"
    minutes, seconds = divmod(results["seconds"], 60)
    return "\n".join([*lines, f"{verdict}, in {minutes} min {seconds} s", ""])


def write_report(checkout: Path, results: Results) -> None:
    """The page and its data."""
    (checkout / RESULTS).parent.mkdir(parents=True, exist_ok=True)
    (checkout / RESULTS).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (checkout / PAGE).write_text(page(results))


def page(results: Results) -> str:
    """docs/clients.md."""
    minutes = round(results["seconds"] / 60)
    parts = [
        "<!-- Written by `make clients`: change tests/clients/report.py and notes.py. -->\n",
        "# Today's clients\n",
        f"`make clients` on {results['date']}, in {minutes} minutes: the newest clients of Debian's unstable suite",
        "pull through the cache in every situation. Upstream is the look-alike of Docker Hub (`tests/hub`), over TLS.",
        f"The clients are in a chroot without a network; the cache is `{LISTEN}`. The data is in",
        f"[results.json]({RESULTS.removeprefix('docs/')}).\n",
        "## Which clients, and how they are told\n",
        *_clients(results),
        "\n## What held\n",
        "Each client pulls by tag, by digest and for another platform, with nothing of its own kept between; and",
        *_matrix(results),
        "\n## Something new, while upstream is in trouble\n",
        "The status is what the cache answered; the rest is how the client ended: its exit code, after how long (at",
        f"most {UNCACHED_SECONDS:g} s), its words.\n",
        *_uncached(results),
        "\n## What each client sends\n",
        "Seen on the wire between client and cache. `N` and `M` are numbers. What has no row was not sent.\n",
        *_facts(results),
        "\n## Worth knowing\n",
        NOTES.rstrip(),
    ]
    return "\n".join(parts) + "\n"


def _clients(results: Results) -> list[str]:
    rows = [
        f"| {name} | {known['package']} {known['version']} | {known['how']} |"
        for name, known in results["clients"].items()
    ]
    return ["| client | Debian's package | how it pulls |", "|---|---|---|", *rows]


def _matrix(results: Results) -> list[str]:
    """Client by situation; ``further`` says what else each one does."""
    lines = [
        "does what its row says further. A cell has the slowest step, and what upstream was asked: pulls that count,",
        "HEADs of manifests, blobs. Warm, nothing may be counted and no blob fetched; a step takes",
        f"{CACHED_SECONDS:g} s at most, whatever upstream does. Cold, each manifest and blob is asked for once.\n",
        "| client | further | " + " | ".join(situation.title for situation in SITUATIONS) + " |",
        "|---|---|" + "---|" * len(SITUATIONS),
    ]
    for client in results["clients"]:
        rows = {row["situation"]: row for row in results["rows"] if row["client"] == client}
        further = [step["what"] for step in rows["cold"]["steps"] if step["what"] not in ("tag", "digest", "platform")]
        cells = [_cell(rows[situation.key]) for situation in SITUATIONS]
        lines.append(f"| {client} | {', '.join(further) or NOTHING} | " + " | ".join(cells) + " |")
    known = [(row["client"], row["situation"], row["known"]) for row in results["rows"] if row["known"]]
    if known:
        lines += ["\nKnown not to hold:\n"]
        lines += [f"- {client}, {situation}: {'; '.join(reasons)}" for client, situation, reasons in known]
    return lines


def _cell(row: Row) -> str:
    slowest = max(step["seconds"] for step in row["steps"] if step["what"] != UNCACHED)
    upstream = row["upstream"]
    mark = "✘" if row["broken"] or row["known"] else "✔"
    spent = f"{upstream['counted_pulls']}, {upstream['manifest_heads']}, {upstream['blob_gets']}"
    return f"{mark} {slowest:.1f} s; {spent}"


def _uncached(results: Results) -> list[str]:
    lines = ["| client | situation | status | exit | after | message |", "|---|---|---|---|---|---|"]
    titles = {situation.key: situation.title for situation in SITUATIONS}
    for row in results["rows"]:
        for step in row["steps"]:
            if step["what"] == UNCACHED:
                statuses = ", ".join(map(str, step["statuses"]))
                code = NOTHING if step["exit"] is None else step["exit"]
                ended = f"{code} | {step['seconds']:.0f} s | {_quoted(step['message'])}"
                lines.append(f"| {row['client']} | {titles[row['situation']]} | {statuses} | {ended} |")
    return lines


def _facts(results: Results) -> list[str]:
    lines = ["| client | asks | Accept | Accept-Encoding | `ns` | Range | others |", "|---|---|---|---|---|---|---|"]
    for client, (agent, *entries) in results["facts"].items():
        first = f"{client}<br>{'<br>'.join(map(_quoted, agent['agents']))}"
        for entry in entries:
            ranges = [_quoted(value) if value else "none" for value in entry["ranges"][:_MOST_RANGES]]
            more = ["…"] if len(entry["ranges"]) > _MOST_RANGES else []
            cells = (entry["accept"], entry["encoding"], entry["ns"], ", ".join([*ranges, *more]), entry["others"])
            lines.append(f"| {first} | {entry['asks']} | " + " | ".join(cell or NOTHING for cell in cells) + " |")
            first = ""
    return lines


def _quoted(text: str) -> str:
    return f"`{text.replace('|', '¦').replace('`', chr(39))}`" if text else ""


def agreement(results: Results) -> Counter[str]:
    """How many rows hold, are known not to, and are broken."""
    return Counter("broken" if row["broken"] else "known" if row["known"] else "holds" for row in results["rows"])


if __name__ == "__main__":
    write_report(CHECKOUT, json.loads((CHECKOUT / RESULTS).read_text()))
