"""``registry-cache completion``: Tab knows the commands, their options, and what is cached."""

import click
from click.shell_completion import get_completion_class

from registry_cache.completing.offers import VARIABLE


@click.command(
    "completion",
    epilog="""\b
Examples:
  registry-cache completion bash > ~/.local/share/bash-completion/completions/registry-cache
  registry-cache completion zsh > ~/.zfunc/_registry-cache     # with fpath+=~/.zfunc before compinit in ~/.zshrc
  registry-cache completion fish > ~/.config/fish/completions/registry-cache.fish
  eval "$(registry-cache completion bash)"                     # for this shell only
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL; make install and the Nix package have put it in place already.

    The folder must be there (mkdir -p); a new shell reads it. bash needs the package bash-completion.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    parent = click.get_current_context().find_root().command
    # .source_template and not .source(): that one starts a bash to learn its version.
    script = kind(parent, {}, "registry-cache", VARIABLE)
    click.echo(script.source_template % script.source_vars())
