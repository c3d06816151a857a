"""Passwords and what they hash to, compared: here, or as the program of an ``IdleProcess``.

As a program it reads lines, ``KEPT GIVEN IS_POSSIBLE COST`` (hex, hex, 0 or 1, a number), and answers each with
``IS_RIGHT CPU_SECONDS``. It ends with its input. It imports little, since each costs its start.
"""

import contextlib
import os
import signal
import sys
import time
from typing import NamedTuple

import bcrypt


class Comparison(NamedTuple):
    """A password that was given, and what it has to hash to.

    Attributes:
        kept: a hash of bcrypt's.
        given: what bcrypt looks at.
        is_possible: whether it can be right at all. One that cannot is compared nevertheless: else time would tell.
        cost: of the slowest hash. A wrong password takes as long as that one, whoever's it is.
    """

    kept: bytes
    given: bytes
    is_possible: bool
    cost: int


class Outcome(NamedTuple):
    """What came of a comparison."""

    is_right: bool
    cpu_seconds: float


def cost_of(kept: bytes) -> int:
    """2 to the power of it rounds were made for *kept*."""
    return int(kept[4:6])


def nobodys(cost: int) -> bytes:
    """A hash of no password."""
    return b"$2b$%02d$" % cost + b"." * 53


def compare(comparison: Comparison) -> Outcome:
    """Whether the password is right. Takes a thread up to a second."""
    began = time.thread_time()
    kept, given, is_possible, cost = comparison
    is_right = bcrypt.checkpw(given, kept) and is_possible
    if not is_right:
        for more in range(cost_of(kept), cost):  # each doubles what has been done so far
            bcrypt.checkpw(given, nobodys(more))
    return Outcome(is_right, time.thread_time() - began)


def as_question(comparison: Comparison) -> bytes:
    """The line that asks for it."""
    kept, given, is_possible, cost = comparison
    return f"{kept.hex()} {given.hex() or '-'} {is_possible:d} {cost}\n".encode()


def as_outcome(line: bytes) -> Outcome:
    """What an answer says.

    Raises:
        ValueError: it is none.
    """
    is_right, seconds = line.split()
    return Outcome(is_right == b"1", float(seconds))


def main() -> None:
    """Answer until the input ends, with what others leave of the machine."""
    # A stop of the service ends the input. A signal to the whole group would leave logins of its last moments without.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    for line in sys.stdin.buffer:
        kept, given, is_possible, cost = line.decode().split()
        given = given.removeprefix("-")
        asked = Comparison(bytes.fromhex(kept), bytes.fromhex(given), is_possible == "1", int(cost))
        outcome = compare(asked)
        sys.stdout.write(f"{outcome.is_right:d} {outcome.cpu_seconds:.6f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
