"""``cancel``: end a run of another process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from canobatch import _clock, _procs
from canobatch.cli.command import Failure, command, home_option, run_argument, say
from canobatch.cli.home import Home, ring
from canobatch.cli.place import home_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from canobatch.journal import Owner

#: Seconds within which a process that is well hears of it.
_PATIENCE = 5.0
#: Seconds within which nothing is left of a launcher that was killed.
_KILL_PATIENCE = 10.0
_LOOK = 0.02


@command(
    "cancel",
    epilog="""
    canobatch cancel last
    canobatch cancel 20261121-081812-ab12cd34 --now
    """,
)
@run_argument
@click.option("--now", is_flag=True, help="Kill the process that has the run, and with it everything that it runs.")
@home_option
@click.pass_context
def cancel_command(ctx: click.Context, run: str, now: bool) -> None:
    """Cancel the run RUN and wait for its end; what can be rolled back is rolled back.

    With --now its whole process is killed at once; the run can be resumed then.
    """
    home = Home(home_of(ctx))
    summary = home.find(run)
    run_id, owner = summary.run_id, summary.owner
    if not home.is_running(run_id):
        raise Failure(f"run {run_id} does not run: {summary.status.value}")
    if now:
        _kill(home, run_id, owner)
        return
    bell = home.bell(run_id)
    if not ring(bell):
        raise Failure(
            f"process {owner.pid} on {owner.host}, which has run {run_id}, takes no commands; --now kills the process"
        )
    if not _within(_PATIENCE, lambda: not bell.exists() or not home.is_running(run_id)):
        raise Failure(f"process {owner.pid} has not heard of it in {_PATIENCE:g} s; --now kills it")
    say(f"run {run_id} is being cancelled")
    while home.is_running(run_id):
        _clock.sleep(_LOOK)
    say(f"run {run_id} has ended: {home.find(run_id).status.value}")


def _kill(home: Home, run_id: str, owner: Owner) -> None:
    """Kill the launcher; its keeper does the rest."""
    if (owner.boot_id, owner.pid_namespace) != (_procs.boot_id(), _procs.pid_namespace()):
        raise Failure(f"run {run_id} is in process {owner.pid} on {owner.host}, which cannot be reached from here")
    if not _procs.kill_known(owner.pid, owner.start_ticks):
        raise Failure(f"process {owner.pid} of run {run_id} is gone, or not yours to kill")
    if not _within(_KILL_PATIENCE, lambda: not home.is_running(run_id)):
        raise Failure(f"process {owner.pid} was killed and run {run_id} is still held")
    say(f"run {run_id}: process {owner.pid} killed; go on with: canobatch resume {run_id}")


def _within(seconds: float, is_so: Callable[[], bool]) -> bool:
    until = _clock.monotonic() + seconds
    while not is_so():
        if _clock.monotonic() > until:
            return False
        _clock.sleep(_LOOK)
    return True
