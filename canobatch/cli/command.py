"""Command: a click command whose errors are one line and a stated exit code."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from canobatch.cli import exits
from canobatch.cli.completing import complete_run, complete_target
from canobatch.cli.place import HOME
from canobatch.errors import CanobatchError

if TYPE_CHECKING:
    from collections.abc import Callable

_F = TypeVar("_F", bound="Callable[..., Any]")

_VERBOSE = "canobatch.verbose"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class Failure(click.ClickException):
    """An error on its way to the terminal: a line, or a traceback with ``-v``."""

    def __init__(self, message: str, exit_code: int = exits.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click looks it up on the instance
        self.is_verbose = False

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it to standard error."""
        if self.is_verbose and self.__cause__ is not None:
            import traceback  # noqa: PLC0415 - seldom shown

            lines = traceback.format_exception(self.__cause__)
            click.echo("".join(lines), file=file, err=file is None, nl=False)
        if self.message:
            click.echo(click.style("Error: ", fg="red") + self.message, file=file, err=file is None, color=colour(2))


class Command(click.Command):
    """A command of the launcher."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_verbose_option())

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Make the context, with the colours that the environment asks for."""
        context = super().make_context(*args, **kwargs)
        context.color = colour(1)
        return context

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, and turn what it raises into an exit code."""
        try:
            return self._invoke(ctx)
        except Failure as failure:
            failure.is_verbose = ctx.meta.get(_VERBOSE, False)
            raise

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CanobatchError as error:
            raise Failure(str(error), exits.code_of(error)) from error
        except KeyboardInterrupt as error:
            raise Failure("interrupted", exits.INTERRUPTED) from error
        except BrokenPipeError:
            stop_writing()
            ctx.exit(exits.UNREAD)
        except OSError as error:
            raise failure_of(error) from error

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the examples, each on its own line."""
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line.strip()}\n")


def failure_of(error: OSError) -> Failure:
    """Return what to tell of an error that nobody foresaw: mostly that standard output is full."""
    if error.errno in _NO_ROOM and error.filename is None:
        stop_writing()
        return Failure(f"standard output cannot be written: {error.strerror}")
    return Failure(str(error))


def stop_writing() -> None:
    """Write to nowhere from now on: nobody reads our standard output, and the flush at exit must not say so."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def colour(descriptor: int) -> bool | None:
    """Return whether to use colours on a standard stream; None: if it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    stream = {1: sys.stdout, 2: sys.stderr}[descriptor]
    return None if os.environ.get("TERM") != "dumb" or not stream.isatty() else False


class Option(click.Option):
    """An option whose environment variable is named after its flag, whatever the function calls it."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return what the environment says of it."""
        flag = max(self.opts, key=len).lstrip("-").replace("-", "_").upper()
        found = os.environ.get(f"{ctx.auto_envvar_prefix}_{flag}") if ctx.auto_envvar_prefix else None
        return found or super().resolve_envvar_value(ctx)


def command(name: str, **options: Any) -> Callable[[Callable[..., Any]], Command]:
    """Return a decorator that makes a `Command`; its epilog is a list of examples."""
    return click.command(name, cls=Command, **options)


def say(text: str = "") -> None:
    """Tell the user something that is no data."""
    click.echo(text, err=True, color=colour(2))


# -- options of many commands


def _verbose_option() -> click.Option:
    return click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_keep_verbose,
        help="Show the whole traceback of an error.",
    )


def _keep_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_VERBOSE] = True


class _Directory(click.Path):
    """A directory; what is empty is mostly a shell's variable that is not set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return its path."""
        if value == "":
            self.fail("'' is not a directory; write . for the current one", param, ctx)
        return super().convert(value, param, ctx)


def home_option(command: _F) -> _F:
    """Add ``--home``."""
    return click.option(
        "--home",
        type=_Directory(file_okay=False, path_type=Path),
        envvar="CANOBATCH_HOME",
        show_envvar=True,
        expose_value=False,
        is_eager=True,
        callback=_keep_home,
        help="Where runs are remembered. Default: your state directory, such as ~/.local/state/canobatch.",
    )(command)


def _keep_home(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    # What was typed last wins, then what was typed before the command's name, then the environment.
    is_typed = ctx.get_parameter_source("home") is ParameterSource.COMMANDLINE
    if value is not None and (is_typed or HOME not in ctx.meta):
        ctx.meta[HOME] = value


def is_verbose() -> bool:
    """Return whether this invocation was given ``-v``."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.meta.get(_VERBOSE, False))


def json_option(command: _F) -> _F:
    """Add ``--json``."""
    return click.option("--json", "as_json", cls=Option, is_flag=True, help="Print JSON.")(command)


def target_argument(command: _F) -> _F:
    """Add TARGET."""
    return click.argument("target", shell_complete=complete_target)(command)


def run_argument(command: _F) -> _F:
    """Add RUN."""
    return click.argument("run", shell_complete=complete_run)(command)
