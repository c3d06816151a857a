"""The three streams that a program is started with, whatever its caller has done to them."""

import contextlib
import io
import os
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def put_in_order() -> None:
    """Call it before anything is opened: a file that came to stand in a closed stream's place would be written into."""
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 -- as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def why_unwritable() -> str:
    """Why what is left for stdout cannot be written; empty where it could be. What it was is given up then."""
    try:
        sys.stdout.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)  # else the interpreter tries once more, at its very end
        os.close(null)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        return error.strerror or str(error)
    return ""
