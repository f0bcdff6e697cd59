"""``resume``: go on with a run where it stopped."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from canobatch.cli import exits, text
from canobatch.cli.command import Failure, command, home_option, json_option, run_argument, say
from canobatch.cli.place import home_of
from canobatch.cli.streams import data_stream
from canobatch.cli.types import DURATION

if TYPE_CHECKING:
    from canobatch.cli.home import Home, LaunchRecord
    from canobatch.journal import RunHistory, VisitRecord


@command(
    "resume",
    epilog="""
    canobatch resume last
    canobatch resume 20261121-081812-ab12cd34 -j 8
    canobatch resume 20261121-081812-ab12cd34 --target etl.py
    """,
)
@run_argument
@click.option("--target", help="The workflow, if the run was not begun by canobatch run, or it has moved.")
@click.option("-j", "--jobs", metavar="N", type=click.IntRange(min=1), help="Worker processes. Default: as before.")
@click.option("--timeout", type=DURATION, help="Cancel the run after so long. Default: as before.")
@json_option
@home_option
@click.pass_context
def resume_command(
    ctx: click.Context, run: str, target: str | None, jobs: int | None, timeout: float | None, as_json: bool
) -> None:
    """Go on with the run RUN, which was interrupted or failed; what was recorded is kept, the rest is done.

    RUN is its id, the beginning or end of it, or the word last. A map reads its inputs again.
    """
    from canobatch.cli.home import Home  # noqa: PLC0415 - not to show a help

    home = Home(home_of(ctx))
    summary = home.find(run)
    run_id = summary.run_id
    if home.is_running(run_id):
        raise Failure(f"run {run_id} is running, in process {summary.owner.pid}", exits.BUSY)
    record = _record(home, run_id, target)
    for line in plan(home.journal.run(run_id)):
        say(line)
    _go_to(record.directory)
    if record.command == "map":
        _resume_map(ctx, home, run_id, record, jobs)
    else:
        _resume_run(home, run_id, record, jobs, timeout, as_json=as_json)


def _record(home: Home, run_id: str, target: str | None) -> LaunchRecord:
    from canobatch.cli.home import LaunchRecord  # noqa: PLC0415

    known = home.launch_of(run_id)
    if target is not None:
        if known is None:
            return LaunchRecord("run", target)
        return LaunchRecord(known.command, target, options=known.options)
    if known is None:
        raise click.UsageError(f"it is not known what run {run_id} runs; say it with --target")
    return known


def _go_to(directory: str) -> None:
    """Work where the run worked, so that its paths mean the same."""
    try:
        os.chdir(directory)
    except OSError as error:
        raise Failure(f"the run worked in {directory}: {error.strerror}; give --target to work here") from error
    if directory not in sys.path:
        sys.path.insert(0, directory)


def _resume_run(
    home: Home, run_id: str, record: LaunchRecord, jobs: int | None, timeout: float | None, *, as_json: bool
) -> None:
    from canobatch.cli.launch import Settings, relaunch  # noqa: PLC0415 - slow to import
    from canobatch.cli.target import load_target, workflow_kind  # noqa: PLC0415

    jobs = jobs or record.options.get("jobs")
    timeout = timeout or record.options.get("timeout")
    with data_stream() as data:
        workflow = load_target(record.target, workflow_kind())
        relaunch(workflow, run_id, data, Settings(home, record, jobs, timeout, as_json))


def _resume_map(ctx: click.Context, home: Home, run_id: str, record: LaunchRecord, jobs: int | None) -> None:
    from canobatch.cli.launch import Settings  # noqa: PLC0415
    from canobatch.cli.mapping import MapOptions, run_map  # noqa: PLC0415

    options = dict(record.options)
    jobs = jobs or options.pop("jobs", None)
    options.pop("jobs", None)
    options["join"] = tuple(options["join"])
    run_map(ctx, record.target, MapOptions(**options), Settings(home, record, jobs), again=run_id)


def plan(history: RunHistory) -> list[str]:
    """Return what is kept of a run, and what will be done."""
    if not history.visits:
        return ["nothing was recorded; it begins anew"]
    *done, last = history.visits
    lines = []
    if done:
        names = ", ".join(dict.fromkeys(text.one_line(visit.state, 40) for visit in done))
        lines.append(f"kept: {names} ({text.plural(len(done), 'state')})")
    if history.summary.status == "completed":
        return [*lines, f"it has come to its end, in {text.one_line(last.state, 40)}: nothing is left to be done"]
    lines.append(f"goes on in {text.one_line(last.state, 40)}{_branches(history, last)}")
    return lines


def _branches(history: RunHistory, visit: VisitRecord) -> str:
    branches = {attempt.branch for attempt in history.attempts if attempt.visit == visit.visit}
    if not branches - {None}:
        return ""
    kept = {
        attempt.branch
        for attempt in history.attempts
        if attempt.visit == visit.visit and attempt.status == "succeeded" and attempt.branch is not None
    }
    again = len(branches - kept - {None})
    return f": {text.plural(len(kept), 'branch')} kept" + (f", {again:,} that failed are done again" if again else "")
