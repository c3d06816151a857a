"""Ten thousand runs of the store, everything at once; and proof that they would find what was mended.

In processes of their own: a process that is killed in a run leaves coroutines behind, which are dropped and not closed.
"""

import os
import subprocess
import sys

import pytest

from .mutations import MUTATIONS

RUNS = 10_000
CHUNKS = 20


def simulator(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}  # the order of sets is part of a run
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_whatever_crosses_accounts_rows_and_files_agree(chunk):
    count = RUNS // CHUNKS
    done = simulator("tests.simulator", "--runs", str(count), "--from", str(chunk * count))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} runs, 0 failures" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("mutation", [mutation.__name__ for mutation in MUTATIONS])
def test_a_fix_that_is_taken_out_is_missed(mutation):
    done = simulator("tests.simulator.mutations", mutation)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{mutation}: ("), done.stdout
