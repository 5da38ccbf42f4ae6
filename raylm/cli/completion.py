"""`raylm completion SHELL`: click's own completion of commands, options and keys."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_RAYLM_COMPLETE"
_HOW = {
    "bash": 'eval "$(raylm completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(raylm completion zsh)"  in ~/.zshrc',
    "fish": "raylm completion fish > ~/.config/fish/completions/raylm.fish",
}


@click.command(epilog="\b\n" + "\n".join(_HOW.values()))
@click.argument("shell", type=click.Choice(sorted(_HOW)))
def completion(shell: str) -> None:
    """Print the code that completes raylm's commands, options and keys in SHELL."""
    from raylm.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "raylm", VARIABLE).source())
