"""``runs`` and ``show``: what happened, read from the journals; nothing is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from canobatch import _clock
from canobatch.cli import text
from canobatch.cli.command import Option, colour, command, home_option, json_option, run_argument
from canobatch.cli.home import Home
from canobatch.cli.place import home_of
from canobatch.cli.types import DURATION
from canobatch.journal import RunStatus

if TYPE_CHECKING:
    from canobatch.journal import AttemptRecord, RunHistory, RunSummary, VisitRecord

_COLOURS = {
    RunStatus.COMPLETED: "green",
    RunStatus.RUNNING: "cyan",
    RunStatus.INTERRUPTED: "yellow",
    RunStatus.CANCELLED: "yellow",
}
#: Branches that are listed without ``--all``.
_LISTED = 30


@command(
    "runs",
    epilog="""
    canobatch runs
    canobatch runs --status failed --since 2d
    canobatch runs --json | jq -r '.[0].run_id'
    """,
)
@click.option("--workflow", metavar="NAME", help="Only runs of this workflow.")
@click.option("--status", type=click.Choice([status.value for status in RunStatus]), help="Only runs that stand so.")
@click.option("--since", type=DURATION, help="Only runs that were begun within this time.")
@click.option("-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many.")
@json_option
@home_option
@click.pass_context
def runs_command(
    ctx: click.Context, workflow: str | None, status: str | None, since: float | None, limit: int, as_json: bool
) -> None:
    """List runs, the latest first."""
    now = _clock.epoch()
    journal = Home(home_of(ctx)).journal
    wanted = None if status is None else RunStatus(status)
    found = journal.runs(workflow=workflow, status=wanted, since=None if since is None else now - since)[:limit]
    if as_json:
        click.echo(json.dumps([_facts(run, now) for run in found], ensure_ascii=False))
        return
    rows = [
        (
            text.one_line(run.run_id, 40),
            text.one_line(run.workflow, 30),
            click.style(run.status.value, fg=_COLOURS.get(run.status, "red")),
            text.short_time(run.started_at, now),
            text.duration(_taken(run, now)),
            text.one_line(_short(run.error) or (f"in {run.state}" if run.state else ""), 100),
        )
        for run in found
    ]
    if rows:
        headers = ("run", "workflow", "status", "started", "took", "outcome")
        click.echo(text.table(headers, rows, right=("took",)), color=colour(1))


def _taken(run: RunSummary, now: float) -> float | None:
    if run.ended_at is None:
        return now - run.started_at if run.status is RunStatus.RUNNING else None
    return run.ended_at - run.started_at


def _facts(run: RunSummary, now: float) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "workflow": run.workflow,
        "version": run.version,
        "status": run.status.value,
        "state": run.state,
        "started_at": _iso(run.started_at),
        "ended_at": _iso(run.ended_at),
        "duration": _taken(run, now),
        "error": run.error,
        "pid": run.owner.pid,
        "host": run.owner.host,
    }


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else _clock.as_utc(seconds).isoformat()


@command(
    "show",
    epilog="""
    canobatch show last
    canobatch show 20261121-081812-ab12cd34 --all
    canobatch show last --json | jq '.attempts[] | select(.status == "failed")'
    """,
)
@run_argument
@click.option("--all", "is_all", cls=Option, is_flag=True, help="List every attempt, not only those that failed.")
@json_option
@home_option
@click.pass_context
def show_command(ctx: click.Context, run: str, is_all: bool, as_json: bool) -> None:
    """Show the run RUN: its states, branches, attempts, errors, CPU and memory.

    RUN is its id, the beginning or end of it, or the word last.
    """
    home = Home(home_of(ctx))
    history = home.journal.run(home.find(run).run_id)
    now = _clock.epoch()
    if as_json:
        click.echo(json.dumps(_history_facts(history, now), ensure_ascii=False))
    else:
        click.echo(_history_text(history, now, is_all=is_all), color=colour(1))


def _history_facts(history: RunHistory, now: float) -> dict[str, Any]:
    return {
        "schema": 1,
        **_facts(history.summary, now),
        "states": [
            {
                "visit": visit.visit,
                "state": visit.state,
                "next_state": visit.next_state,
                "entered_at": _iso(visit.entered_at),
                "left_at": _iso(visit.left_at),
                "duration": visit.duration,
                "attempts": visit.attempts,
                "branches": visit.total,
                "error": _error(visit),
            }
            for visit in history.visits
        ],
        "attempts": [
            {
                "visit": attempt.visit,
                "branch": attempt.branch,
                "attempt": attempt.attempt,
                "life": attempt.life,
                "status": attempt.status,
                "started_at": _iso(attempt.started),
                "duration": attempt.duration,
                "cpu_time": attempt.cpu_time,
                "max_rss": attempt.max_rss,
                "error": _error(attempt),
            }
            for attempt in history.attempts
        ],
        "compensations": [
            {"visit": each.visit, "state": each.state, "status": each.status, "error": _error(each)}
            for each in history.compensations
        ],
    }


def _error(record: Any) -> str | None:
    return None if record.error is None else f"{record.error.type_name}: {record.error.text}"


def _short(error: str | None) -> str:
    return (error or "").removeprefix("canobatch.errors.").removeprefix("builtins.")


def _history_text(history: RunHistory, now: float, *, is_all: bool) -> str:
    run = history.summary
    status = click.style(run.status.value, fg=_COLOURS.get(run.status, "red"), bold=True)
    took = _taken(run, now)
    lines = [
        f"run {run.run_id} of {text.one_line(run.workflow)}: {status}" + (f" in {run.state}" if run.state else ""),
        f"started {text.local_time(run.started_at)}" + ("" if took is None else f", took {text.duration(took)}"),
    ]
    if run.status is RunStatus.RUNNING:
        lines[-1] += f", process {run.owner.pid} on {run.owner.host}"
    if run.error:
        lines.append(click.style("error ", fg="red") + text.one_line(_short(run.error), 500))
    by_visit: dict[int, list[AttemptRecord]] = {}
    for attempt in history.attempts:
        by_visit.setdefault(attempt.visit, []).append(attempt)
    if history.visits:
        rows = [_visit_row(visit, by_visit.get(visit.visit, [])) for visit in history.visits]
        headers = ("state", "attempts", "time", "cpu", "memory", "branches", "goes to", "error")
        lines += ["", text.table(headers, rows, right=("attempts", "time", "cpu", "memory"))]
    names = {visit.visit: visit.state for visit in history.visits}
    listed = [attempt for attempt in history.attempts if is_all or attempt.status != "succeeded"]
    if listed:
        shown = listed if is_all else listed[:_LISTED]
        headers = ("branch", "attempt", "status", "started", "time", "cpu", "memory", "error")
        lines += ["", text.table(headers, [_attempt_row(each, names, now) for each in shown], right=("time", "cpu"))]
        if len(shown) < len(listed):
            lines.append(f"and {len(listed) - len(shown):,} more; see them with --all")
    lines += [
        f"compensation of {each.state}: {each.status}" + (f" ({_error(each)})" if each.error else "")
        for each in history.compensations
    ]
    return "\n".join(lines)


def _visit_row(visit: VisitRecord, attempts: list[AttemptRecord]) -> tuple[str, ...]:
    ended = {attempt.branch: attempt.status for attempt in attempts}
    cpu = [attempt.cpu_time for attempt in attempts if attempt.cpu_time is not None]
    memory = [attempt.max_rss for attempt in attempts if attempt.max_rss is not None]
    return (
        text.one_line(visit.state, 40),
        f"{visit.attempts or len(attempts):,}",
        text.duration(visit.duration),
        text.duration(sum(cpu)) if cpu else "",
        text.size(max(memory)) if memory else "",
        _branches(visit, list(ended.values())) if None not in ended and (ended or visit.total is not None) else "",
        text.one_line(visit.next_state or "", 30),
        text.one_line(_short(_error(visit)), 60),
    )


def _branches(visit: VisitRecord, statuses: list[str]) -> str:
    counts = {status: statuses.count(status) for status in dict.fromkeys(statuses)}
    total = "" if visit.total is None else f"{visit.total:,}: "
    return total + ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in counts.items())


def _attempt_row(attempt: AttemptRecord, names: dict[int, str], now: float) -> tuple[str, ...]:
    branch = "" if attempt.branch is None else f"[{attempt.branch}]"
    return (
        f"{text.one_line(names.get(attempt.visit, '?'), 40)}{branch}",
        str(attempt.attempt),
        attempt.status.replace("_", " "),
        "" if attempt.started is None else text.short_time(attempt.started, now),
        text.duration(attempt.duration),
        text.duration(attempt.cpu_time),
        text.size(attempt.max_rss),
        text.one_line(_short(_error(attempt)), 100),
    )
