"""``python -m tests.simulator --seed N`` replays one run; ``--runs N --from M --jobs J`` makes many, with progress.

A million: ``--runs 1000000 --jobs 2``. Where one was broken off, ``--from`` goes on.
"""

import argparse
import multiprocessing
import os
import sys
import time
import traceback

from .world import run, simulated

_CHUNK = 500


def _chunk(first_and_count: tuple[int, int]) -> tuple[int, int, str]:
    first, count = first_and_count
    with simulated():
        for seed in range(first, first + count):
            try:
                run(seed)
            except Exception:
                return first, count, traceback.format_exc()
    return first, count, ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="one run, and what happened in it")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    sys.unraisablehook = lambda _: None  # coroutines of a process that was killed are not closed, but dropped
    if asked.seed is not None:
        with simulated():
            print("\n".join(run(asked.seed).trace))
        return 0
    began, done, failures = time.monotonic(), 0, 0
    chunks = [
        (first, min(_CHUNK, asked.first + asked.runs - first))
        for first in range(asked.first, asked.first + asked.runs, _CHUNK)
    ]
    with multiprocessing.Pool(asked.jobs) as pool:
        for first, count, failure in pool.imap(_chunk, chunks):
            done += count
            if failure:
                failures += 1
                print(failure)
            rate = done / (time.monotonic() - began)
            if not (first // _CHUNK) % 20:
                print(f"seeds up to {first + count}: {done} runs, {failures} failures, {rate:.0f} a second", flush=True)
    print(f"{done} runs, {failures} failures, {time.monotonic() - began:.0f} s")
    return bool(failures)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a run
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulator", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
