"""The command line: one short file a command."""

import difflib
import errno
import sys

import click

from registry_cache import __version__
from registry_cache.cli.common import Program, say
from registry_cache.model.errors import SettingsError
from registry_cache.runtime.streams import why_unwritable

_NOT_WRITTEN = 4
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  registry-cache serve --listen 127.0.0.1:5000 --max-size 50GB
  registry-cache doctor                # what is wrong, and what to do about it
  registry-cache prune                 # what would go, and why; changes nothing
  registry-cache guard -- make deploy  # no prune while this runs
""",
)
@click.version_option(__version__, prog_name="registry-cache")
def cli() -> None:
    """A pull-through cache for Docker Hub, and a careful cleaner of the host's own images."""


def main() -> None:
    """Run the command; whatever is wrong with the call or the settings is one line, with exit code 2."""
    try:
        code = cli.main(prog_name="registry-cache", standalone_mode=False)
    except SettingsError as error:
        for line in str(error).split("\n"):
            say(f"registry-cache: {line}", err=True)
        sys.exit(2)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "registry-cache"
        _fail(path, f"{_sentence(error)} See {path} --help", error.exit_code)
    except click.ClickException as error:
        _fail("registry-cache", error.format_message(), error.exit_code)
    except click.Abort:
        _fail("registry-cache", "interrupted", 130)
    except OSError as error:
        _see_that_it_was_written()
        # Not buffered, nothing is left to try again. What has to do with a file names it.
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        _fail("registry-cache", f"the output cannot be written: {error.strerror}", _NOT_WRITTEN)
    _see_that_it_was_written()
    # What a command returns is not its exit code; what ctx.exit() was given is.
    sys.exit(code if isinstance(code, int) else 0)


def _see_that_it_was_written() -> None:
    if why := why_unwritable():
        _fail("registry-cache", f"the output cannot be written: {why}", _NOT_WRITTEN)


def _sentence(error: click.UsageError) -> str:
    """click's text in one line, ended like a sentence; of the options that resemble a wrong one, the closest."""
    if isinstance(error, click.NoSuchOption):
        meant = difflib.get_close_matches(error.option_name, error.possibilities or [], n=1)
        return f"No such option: {error.option_name}." + (f" Did you mean {meant[0]}?" if meant else "")
    text = " ".join(error.format_message().split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _fail(who: str, text: str, code: int) -> None:
    say(f"{who}: {text}", err=True)
    sys.exit(code)
