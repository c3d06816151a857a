"""The end of the process, where it can be looked at alone; tests/test_command_line.py has the whole of it."""

import signal
import subprocess
import sys

import pytest

# Sent while modules are taken down: the interpreter has taken its handlers back by then.
LATE = """
import os, signal, sys
from registry_cache.cli import stopping

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number={number}):
        kill(pid, number)

signal.signal({number}, stopping._second)
{over}
sys.late = Late()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("over", "code"), [("stopping.over()", 0), ("", None)])
def test_a_signal_after_everything_is_closed_changes_nothing(number, over, code):
    done = subprocess.run([sys.executable, "-c", LATE.format(number=int(number), over=over)], check=False)
    assert done.returncode == (-number if code is None else code)
