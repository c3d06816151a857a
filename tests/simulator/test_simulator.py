"""Ten thousand runs of the store, everything at once; and proof that they would find what was mended."""

import gc
import sys

import pytest

from .mutations import MUTATIONS, found
from .world import run, simulated

RUNS = 10_000
CHUNKS = 20


@pytest.fixture(autouse=True)
def _dropped_processes(monkeypatch):
    """Coroutines of a process that was killed are not closed, but dropped: here, and not in another file's test."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    yield
    gc.collect()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_whatever_crosses_accounts_rows_and_files_agree(chunk):
    count = RUNS // CHUNKS
    with simulated():
        for seed in range(chunk * count, (chunk + 1) * count):
            run(seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_fix_that_is_taken_out_is_missed(mutation):
    assert found(mutation) is not None
