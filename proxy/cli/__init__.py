"""The command line: one short file a command."""

import sys

import click

from proxy import __version__
from proxy.cli.common import Program
from proxy.errors import SettingsError


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  registry-cache serve --listen 127.0.0.1:5000 --max-size 50GB
  registry-cache prune                 # what would go, and why; changes nothing
  registry-cache guard -- make deploy  # no prune while this runs
""",
)
@click.version_option(__version__, prog_name="registry-cache")
def cli() -> None:
    """A pull-through cache for Docker Hub, and a careful cleaner of the host's own images."""


def main() -> None:
    """Run the command; wrong settings are one line each and exit code 2."""
    try:
        cli.main(prog_name="registry-cache")
    except SettingsError as error:
        for line in str(error).splitlines():
            click.echo(f"registry-cache: {line}", err=True)
        sys.exit(2)
