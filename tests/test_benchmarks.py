"""The benchmarks still run: each program with its smallest sizes, us alone. What they measure here means nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.dockerd import require_daemons

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["latency"],
        ["throughput", "--connections", "1"],
        ["cold", "--part", "blobs"],
        ["crowd"],
        ["scale"],
        ["eviction"],
        ["access"],
        ["tls"],
        ["registries", "--part", "hits"],
        ["fleet", "--part", "crowd"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_it_runs_and_writes_its_tables(tmp_path, arguments):
    require_daemons("wrk", "docker-registry", "redis-server", root=False)
    program, *more = arguments
    command = [sys.executable, "-m", f"benchmarks.{program}", "--quick", "--only", "registry-cache", *more]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / f"{program}.md").read_text()
    assert "|" in table
    assert json.loads((tmp_path / f"{program}.json").read_text())["machine"]
    assert "left out" not in done.stdout
