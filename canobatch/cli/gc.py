"""``gc``: remove what is old."""

from __future__ import annotations

import shutil

import click

from canobatch.cli import text
from canobatch.cli.command import command, home_option, say
from canobatch.cli.home import Home
from canobatch.cli.place import home_of
from canobatch.cli.types import DURATION


@command(
    "gc",
    epilog="""
    canobatch gc
    canobatch gc --older-than 7d
    canobatch gc --keep 100 --older-than 0.001s
    """,
)
@click.option("--older-than", type=DURATION, default="30d", show_default=True, help="Runs that ended longer ago.")
@click.option("--keep", type=click.IntRange(min=0), help="Spare so many, the latest ones.")
@home_option
@click.pass_context
def gc_command(ctx: click.Context, older_than: float, keep: int | None) -> None:
    """Remove runs that have ended, with all that is kept of them, and print their ids.

    Runs that can still be resumed because their process died are never removed.
    """
    home = Home(home_of(ctx))
    removed = home.journal.prune(older_than=older_than, keep=keep)
    for run_id in removed:
        shutil.rmtree(home.output(run_id), ignore_errors=True)
        click.echo(run_id)
    say(f"{text.plural(len(removed), 'run')} removed")
