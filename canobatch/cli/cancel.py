"""``cancel``: end a run of another process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from canobatch import _clock, _procs
from canobatch.cli import text
from canobatch.cli.command import Failure, command, home_option, run_argument, say
from canobatch.cli.home import Home, ring
from canobatch.cli.place import home_of
from canobatch.errors import SchedulerError
from canobatch.journal import RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from canobatch.journal import Owner, RunSummary

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

    A run of a flow is cancelled alone: its scheduler and all other runs go on. With --now the whole process is killed
    at once, a scheduler with all that it runs; the runs can be resumed then.
    """
    home = Home(home_of(ctx))
    summary = home.find(run)
    if not home.is_running(summary.run_id):
        raise Failure(f"run {summary.run_id} does not run: {summary.status.value}")
    end_run(home, summary, kills=now)


def end_run(home: Home, summary: RunSummary, *, kills: bool) -> None:
    """Cancel a run that goes on, or kill its process, and wait for its end; says what happens.

    Raises:
        Failure: That cannot be done.
    """
    run_id, owner = summary.run_id, summary.owner
    if kills:
        _kill(home, run_id, owner)
        return
    _ask(home, run_id, owner)
    while home.is_running(run_id):
        _clock.sleep(_LOOK)
    say(f"run {run_id} has ended: {home.find(run_id).status.value}")


def _ask(home: Home, run_id: str, owner: Owner) -> None:
    """Have the process that has the run cancel it: a launcher by the bell of the run, a scheduler by a command."""
    bell = home.bell(run_id)
    is_launched = home.launch_of(run_id) is not None
    if _within(_PATIENCE if is_launched else 0.0, lambda: ring(bell) or not home.is_running(run_id)):
        if not _within(_PATIENCE, lambda: not bell.exists() or not home.is_running(run_id)):
            raise Failure(_deaf(owner))
        say(f"run {run_id} is being cancelled")
        return
    flow = _ask_scheduler(home, run_id, owner)
    if flow is not None:
        say(f"run {run_id} of flow {flow} is being cancelled; its scheduler goes on")
    elif home.is_running(run_id):
        raise Failure(
            f"process {owner.pid} on {owner.host}, which has run {run_id}, takes no commands; --now kills the process"
        )


def _ask_scheduler(home: Home, run_id: str, owner: Owner) -> str | None:
    """Return the flow of a run once its scheduler has heard of it; None: no scheduler has the run any more."""
    if not (home.directory / "flows.db").exists():
        return None
    from canobatch.scheduler.remote import FlowHome  # noqa: PLC0415 - not for the runs of launchers

    with FlowHome(home.directory) as flows:
        try:
            return flows.cancel_run(run_id, timeout=_PATIENCE)
        except SchedulerError as error:
            if home.is_running(run_id):
                raise Failure(_deaf(owner)) from error
            return None


def _deaf(owner: Owner) -> str:
    return f"process {owner.pid} has not heard of it in {_PATIENCE:g} s; --now kills it"


def _kill(home: Home, run_id: str, owner: Owner) -> None:
    """Kill the launcher; its keeper does the rest."""
    others = [
        each.run_id
        for each in home.journal.runs(status=RunStatus.RUNNING)
        if each.owner[:4] == owner[:4] and each.run_id != run_id
    ]
    if (owner.boot_id, owner.pid_namespace) != (_procs.boot_id(), _procs.pid_namespace()):
        raise Failure(f"run {run_id} is in process {owner.pid} on {owner.host}, which cannot be reached from here")
    if not _procs.kill_known(owner.pid, owner.start_ticks):
        raise Failure(f"process {owner.pid} of run {run_id} is gone, or not yours to kill")
    if not _within(_KILL_PATIENCE, lambda: not home.is_running(run_id)):
        raise Failure(f"process {owner.pid} was killed and run {run_id} is still held")
    more = f", and with it {text.plural(len(others), 'other run')}: {', '.join(others)}" if others else ""
    say(f"run {run_id}: process {owner.pid} killed{more}; go on with: canobatch resume {run_id}")


def _within(seconds: float, is_so: Callable[[], bool]) -> bool:
    until = _clock.monotonic() + seconds
    while not is_so():
        if _clock.monotonic() > until:
            return False
        _clock.sleep(_LOOK)
    return True
