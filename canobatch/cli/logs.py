"""``logs``: what the tasks of a run printed, each attempt by itself."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from canobatch import _clock
from canobatch.cli.command import Option, colour, command, home_option, json_option, run_argument, say
from canobatch.cli.place import home_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from canobatch.output import Span


@command(
    "logs",
    epilog="""
    canobatch logs last
    canobatch logs last -f
    canobatch logs 20261121-081812-ab12cd34 --state COUNT --branch 7
    """,
)
@run_argument
@click.option("-f", "--follow", "is_followed", cls=Option, is_flag=True, help="Go on until the run has ended.")
@click.option("--state", metavar="STATE", help="Only what was printed in this state.")
@click.option("--branch", type=click.IntRange(min=0), help="Only what this branch printed.")
@click.option("--attempt", type=click.IntRange(min=1), help="Only what this attempt printed.")
@json_option
@home_option
@click.pass_context
def logs_command(
    ctx: click.Context,
    run: str,
    is_followed: bool,
    state: str | None,
    branch: int | None,
    attempt: int | None,
    as_json: bool,
) -> None:
    """Show what the tasks of the run RUN printed, C code and subprocesses included.

    Each attempt has its text under a line that says whose it is. RUN is an id, the beginning or end of one, or the
    word last.
    """
    from canobatch.cli.home import Home  # noqa: PLC0415 - not to show a help
    from canobatch.output import follow, spans  # noqa: PLC0415

    home = Home(home_of(ctx))
    run_id = home.find(run).run_id
    directory = home.output(run_id)

    def is_wanted(span: Span) -> bool:
        return (
            (state is None or span.state.strip("'\"") == state.strip("'\""))
            and (branch is None or span.branch == branch)
            and (attempt is None or span.attempt == attempt)
        )

    pieces: Iterable[tuple[Span, bytes]]
    if is_followed:
        pieces = follow(directory, lambda: not home.is_running(run_id), is_wanted)
    else:
        pieces = ((span, piece) for span in spans(directory) if is_wanted(span) for piece in span.pieces())
    count = _write_json(pieces) if as_json else _write_text(pieces)
    if not count:
        is_part = (state, branch, attempt) != (None, None, None)
        say(f"nothing {'of that ' if is_part else ''}was printed in run {run_id}, or nothing is kept of it")


def _write_text(pieces: Iterable[tuple[Span, bytes]]) -> int:
    count, last, is_open = 0, None, False
    write = _writer()
    for span, piece in pieces:
        if (place := (span.path, span.start)) != last:
            last = place
            if is_open:
                write(b"\n")
            click.echo(click.style(_title(span), bold=True), color=colour(1))
        write(piece)
        is_open = not piece.endswith(b"\n")
        count += 1
    if is_open:
        write(b"\n")
    return count


def _writer() -> Callable[[bytes], Any]:
    """Return what writes bytes as they are: a task may print anything."""

    def write(data: bytes) -> None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    return write


def _title(span: Span) -> str:
    branch = "" if span.branch is None else f"[{span.branch}]"
    visit = f", visit {span.visit}" if span.visit > 1 else ""
    return f"== {span.state}{branch}, attempt {span.attempt}{visit}"


def _write_json(pieces: Iterable[tuple[Span, bytes]]) -> int:
    count = 0
    for span, piece in pieces:
        count += 1
        facts = {
            "state": span.state,
            "visit": span.visit,
            "branch": span.branch,
            "attempt": span.attempt,
            "started_at": _clock.as_utc(span.started).isoformat(),
            "text": piece.decode("utf-8", "replace"),
        }
        click.echo(json.dumps(facts, ensure_ascii=False))
    return count
