"""``/metrics`` as Prometheus sees it, and what stands on it: dashboard, alerts, documentation."""

import asyncio
import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.dockerd import require_daemons

DOCS = Path(__file__).parents[2] / "docs"
HERE = Path(__file__).parent
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text())
ALERTS = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]
# Those of a fleet are tried in tests/fleet/test_alerts.py.
OF_A_FLEET = "registry_cache_fleet_"
FLEET_ALERTS = [rule for group in ALERTS if group["name"] == "registry-cache-fleet" for rule in group["rules"]]
ALL_QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
QUERIES = [query for query in ALL_QUERIES if OF_A_FLEET not in query]
FLEET_QUERIES = [query for query in ALL_QUERIES if OF_A_FLEET in query]


async def promtool(*arguments, stdin: str = "") -> str:
    """Run it; everything it says. It must be content."""
    require_daemons("promtool", root=False)
    process = await asyncio.create_subprocess_exec(
        "promtool",
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate(stdin.encode())
    assert process.returncode == 0, out.decode()
    return out.decode()


@pytest.fixture
async def exposition(cache, hub) -> str:
    """The real thing, after a miss, a hit and an error: upstream has told its quota."""
    image = await hub.images.image("library/metrics", "1", [10_000])
    for _ in range(2):
        await cache.manifest("library/metrics", "1")
        await cache.blob("library/metrics", image.layers[0].digest)
    assert (await cache.manifest("library/not-there", "1")).status == 404
    await cache.settled()
    return (await cache.get("/metrics")).body.decode()


@pytest.fixture
def names(exposition) -> set[str]:
    """Every series, as queries name it."""
    return {sample.name for family in text_string_to_metric_families(exposition) for sample in family.samples}


async def test_names_and_help_satisfy_promtool(exposition):
    assert await promtool("check", "metrics", stdin=exposition) == ""


async def test_figures_agree_with_stats(cache, exposition):
    series = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }
    stats = await cache.stats()
    for outcome, count in stats["requests"].items():
        assert series["registry_cache_requests_total", outcome] == count
    assert series["registry_cache_store_size_bytes",] == stats["store"]["size_bytes"]
    assert series["registry_cache_upstream_quota_remaining",] == stats["upstream"]["rate_limit"]["remaining"] == 199
    assert series["registry_cache_hit_duration_seconds_count",] == stats["requests"]["hit"] == 2
    assert series["registry_cache_build_info", stats["version"]] == 1


async def test_rot_is_counted_from_zero(exposition):
    """An increase() over a series that begins at one sees nothing."""
    assert "registry_cache_quarantined_total 0.0" in exposition
    assert 'registry_cache_events_total{event="not_stored"} 0.0' in exposition


def test_documentation_has_every_metric_and_no_other(exposition):
    documented = set(
        re.findall(r"^\| `((?:registry_cache|process)_\w+)", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    )
    exposed = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(exposition)
    }
    of_a_fleet = {name for name in documented if name.startswith(OF_A_FLEET)}  # tests/fleet looks at those
    assert documented - of_a_fleet == {name for name in exposed if not name.endswith("_created")}


def test_documentation_has_every_label(exposition):
    text = (DOCS / "metrics.md").read_text()
    for family in text_string_to_metric_families(exposition):
        for name in {label for sample in family.samples for label in sample.labels} - {"le"}:
            documented = re.search(rf"`{family.name}(?:_total)?{{([\w,]+)}}`", text)
            assert name in (documented[1].split(",") if documented else []), (family.name, name)


async def test_documentation_has_every_key_of_stats(cache):
    documented = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(documented))) >= set(await cache.stats())


def test_dashboard_and_alerts_use_only_what_there_is(names):
    rules = [rule["expr"] for group in ALERTS for rule in group["rules"] if rule not in FLEET_ALERTS]
    used = set(re.findall(r"\b(?:registry_cache|process)_\w+", " ".join(QUERIES + rules)))
    assert used <= names, used - names


def test_every_alert_says_what_to_do():
    for group in ALERTS:
        for rule in group["rules"]:
            assert len(rule["annotations"]["description"]) > 80, rule["alert"]
            assert rule["annotations"]["summary"]
            assert rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.slow
async def test_alerts_satisfy_promtool_and_fire_when_they_should():
    assert "SUCCESS" in await promtool("check", "rules", "--lint-fatal", DOCS / "alerts.yml")
    assert "SUCCESS" in await promtool("test", "rules", HERE / "alerts_test.yml")


async def test_every_query_of_the_dashboard_is_promql(tmp_path):
    queries = [query.replace("$__rate_interval", "5m").replace("$instance", ".*") for query in ALL_QUERIES]
    rules = [{"record": f"dashboard:query:{place}", "expr": query} for place, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(queries)} rules" in await promtool("check", "rules", path)


def test_panels_of_the_dashboard_do_not_overlap():
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
