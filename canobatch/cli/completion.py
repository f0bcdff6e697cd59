"""``completion``: the script that makes a shell complete."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from canobatch.cli.command import command


@command(
    "completion",
    epilog="""
    echo 'eval "$(canobatch completion bash)"' >> ~/.bashrc
    canobatch completion zsh > ~/.zfunc/_canobatch
    canobatch completion fish > ~/.config/fish/completions/canobatch.fish
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, targets and runs in SHELL."""
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "canobatch", "_CANOBATCH_COMPLETE")
    # Not through `source`: for bash it would start one, to look at its version.
    click.echo(script.source_template % script.source_vars())
