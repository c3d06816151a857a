"""Whether a timing can be judged."""

import subprocess
import sys

from tests.proof import machine


def test_work_of_others_is_seen(monkeypatch):
    # user, nice, system, idle, iowait, irq, softirq, steal
    times = iter([[100, 0, 50, 800, 50, 0, 0, 0], [150, 0, 60, 820, 60, 0, 0, 10]])
    monkeypatch.setattr(machine, "_cpu_times", lambda: next(times))
    assert machine.busy_share(0) == 0.7


def test_kernel_is_read_as_it_counts():
    before = machine._cpu_times()
    subprocess.run([sys.executable, "-c", "for _ in range(10**6): pass"], check=True)
    after = machine._cpu_times()
    assert len(before) == 8
    assert after[0] > before[0]
