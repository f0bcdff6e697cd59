"""The command line: which commands there are. Each is imported when it is used."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

import click

from canobatch.cli import exits
from canobatch.cli.command import Command, Failure, colour, failure_of, home_option
from canobatch.cli.streams import prepare_streams

#: Name of a command: what it does. Its module has its name, and in that a command of that name.
COMMANDS = {
    "Write and check": {
        "init": "Write a small workflow that runs.",
        "check": "Find all problems of a workflow before it runs.",
        "graph": "Draw a workflow, or the path of a run.",
    },
    "Run": {
        "run": "Run a workflow.",
        "map": "Run a function over many inputs.",
        "resume": "Go on with a run that was interrupted or failed.",
        "cancel": "Cancel a run of another process.",
    },
    "Schedule": {
        "serve": "Run flows on their schedules until stopped.",
        "flows": "List the flows of a home.",
        "trigger": "Run a flow now.",
        "pause": "Let no run of a flow begin.",
        "unpause": "Let a paused flow run again.",
        "reset": "Forget a flow's failures.",
        "next": "Show the coming ticks of a flow.",
    },
    "Look back": {
        "runs": "List runs.",
        "show": "Show one run: states, branches, attempts, errors.",
        "logs": "Show what the tasks of a run printed.",
    },
    "Keep in order": {
        "doctor": "Find, and with --fix repair, what crashes left.",
        "gc": "Remove old runs.",
        "completion": "Print the completion script of a shell.",
    },
}

#: Modules that hold several commands, or whose command would hide a builtin.
_MODULES = {
    "map": "mapping",
    "next": "flows",
    "pause": "flows",
    "reset": "flows",
    "trigger": "flows",
    "unpause": "flows",
    "runs": "history",
    "show": "history",
}


class Launcher(click.Group):
    """The group of all commands; it knows their names without importing them."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line; a Ctrl-C is told like one later on."""
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise Failure("interrupted", exits.INTERRUPTED) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Import a command and run it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Failure("interrupted", exits.INTERRUPTED) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return [*(name for part in COMMANDS.values() for name in part), *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        return load_command(cmd_name) or super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or say which one may have been meant."""
        name = args[0]
        if not name.startswith("-") and not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            close = difflib.get_close_matches(name, self.list_commands(ctx), 3, 0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "see canobatch --help"
            ctx.fail(f"there is no command {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands by what they are for, importing none."""
        for title, part in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(list(part.items()))


def load_command(name: str) -> Command | None:
    """Return a command of the launcher, or None."""
    if not any(name in part for part in COMMANDS.values()):
        return None
    module = importlib.import_module(f"canobatch.cli.{_MODULES.get(name, name)}")
    found: Command = getattr(module, f"{name}_command")
    return found


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version  # noqa: PLC0415 - slow, seldom asked for

        click.echo(f"canobatch {version('canobatch')}")
        ctx.exit()


@click.group(
    "canobatch",
    cls=Launcher,
    context_settings={"auto_envvar_prefix": "CANOBATCH", "help_option_names": ["-h", "--help"]},
    epilog="TARGET is package.module:attribute, package.module when it holds one workflow, or path/to/file.py with or "
    "without :attribute; the attribute is a workflow or a function that makes one. Every option can be given as "
    "an environment variable: CANOBATCH_RUN_JOBS=4 is canobatch run --jobs 4.\n\n"
    "A DURATION is a number of seconds, or such as 1.5h or 1m30s; a SIZE a number of bytes, or such as 512M or 2G.\n\n"
    "Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 the target cannot be loaded or is not valid, 5 the run "
    "failed and so did its rollback, 6 timed out, 75 busy, 130 interrupted, "
    "141 nobody reads the results, 143 terminated.",
)
@home_option
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show it.")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Run CPU-heavy batches as state machines over real processes.

    canobatch init makes a first workflow, canobatch COMMAND --help explains a command.
    """
    ctx.color = colour(1)


def main(args: list[str] | None = None) -> Any:
    """Run the command line and exit; the console script ``canobatch``."""
    prepare_streams()
    try:
        return app.main(args, prog_name="canobatch")
    except OSError as error:
        # A help for which there is no room.
        failure = failure_of(error)
        failure.show()
        sys.exit(failure.exit_code)
