"""``flows``, ``trigger``, ``pause``, ``unpause``, ``reset``, ``next``: the flows of a home, from another process."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from canobatch import _clock
from canobatch.cli import exits, text
from canobatch.cli.command import Command, Failure, Option, colour, command, home_option, json_option, say
from canobatch.cli.params import free
from canobatch.cli.place import home_of
from canobatch.cli.types import DURATION
from canobatch.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import tzinfo

    from canobatch.scheduler import FlowHome, FlowInfo, Schedule

_COLOURS = {"running": "cyan", "completed": "green", "idle": None, "paused": "yellow"}


def _open(ctx: click.Context) -> FlowHome:
    from canobatch.scheduler.remote import FlowHome  # noqa: PLC0415 - not to show a help

    home = home_of(ctx)
    if not (home / "flows.db").exists():
        # Looking must not make one.
        raise Failure(
            f"there are no flows in {home}; canobatch serve TARGET runs some, --home names another home", exits.USAGE
        )
    return FlowHome(home)


@command(
    "flows",
    epilog="""
    canobatch flows
    canobatch flows --json | jq -r '.[] | select(.failure_streak > 0).id'
    """,
)
@json_option
@home_option
@click.pass_context
def flows_command(ctx: click.Context, as_json: bool) -> None:
    """List the flows of the home, with how they stand and when they are due."""
    with _open(ctx) as home:
        schedules = home.schedules()
        flows = [(info, schedules[info.id], _next_tick(home, info)) for info in home.list()]
    if as_json:
        facts = [_facts(info, schedule, tick) for info, schedule, tick in flows]
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    now = _clock.epoch()
    rows = [
        (
            text.one_line(info.id, 30),
            click.style(str(info.status.value), fg=_COLOURS.get(info.status.value, "red")),
            text.one_line(schedule, 40),
            f"{info.run_count:,}",
            "" if info.last_run is None else text.short_time(info.last_run.timestamp(), now),
            text.duration(info.last_duration),
            "" if tick is None else text.short_time(tick.timestamp(), now),
        )
        for info, schedule, tick in flows
    ]
    if rows:
        headers = ("flow", "status", "schedule", "runs", "last run", "took", "next")
        click.echo(text.table(headers, rows, right=("runs", "took")), color=colour(1))
    for info, _, _ in flows:
        if info.last_error:
            what = f"{text.one_line(info.id, 30)}: {text.one_line(info.last_error, 300)}"
            click.echo(f"{click.style('last error', fg='red')} of {what}", color=colour(1))


def _next_tick(home: FlowHome, info: FlowInfo) -> datetime | None:
    if info.status.value in {"paused", "tripped"}:
        return None
    try:
        return home.schedule(info.id).next_after(_clock.as_utc(_clock.epoch()))
    except ConfigurationError:
        return None


def _facts(info: FlowInfo, schedule: str, tick: datetime | None) -> dict[str, Any]:
    return {
        "id": info.id,
        "status": info.status.value,
        "schedule": schedule,
        "run_count": info.run_count,
        "last_run": None if info.last_run is None else info.last_run.isoformat(),
        "last_state": None if info.last_state is None else str(info.last_state),
        "last_duration": info.last_duration,
        "last_error": info.last_error,
        "failure_streak": info.failure_streak,
        "next_run": None if tick is None else tick.isoformat(),
    }


@command(
    "trigger",
    epilog="""
    canobatch trigger nightly
    canobatch trigger nightly -p day=2026-11-20
    """,
)
@click.argument("flow")
@click.option("-p", "--param", "given", cls=Option, metavar="NAME=VALUE", multiple=True, help="A parameter of the run.")
@click.option("--timeout", type=DURATION, default="5", help="How long to wait for a scheduler to take it. Default: 5.")
@home_option
@click.pass_context
def trigger_command(ctx: click.Context, flow: str, given: tuple[str, ...], timeout: float) -> None:
    """Have the scheduler that serves FLOW run it now, and print the run's id."""
    params = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise click.UsageError(f"{each!r} is not name=value")
        params[name] = free(value)
    with _open(ctx) as home:
        click.echo(home.trigger(flow, params or None, timeout=timeout))


def _changing(name: str, method: str, done: str, words: str) -> Command:
    @command(name, help=words, epilog=f"canobatch {name} nightly")
    @click.argument("flow")
    @home_option
    @click.pass_context
    def change(ctx: click.Context, flow: str) -> None:
        with _open(ctx) as home:
            getattr(home, method)(flow)
        say(f"flow {flow} {done}")

    return change


pause_command = _changing(
    "pause", "pause_flow", "is paused", "Let no run of FLOW begin until it is unpaused; what runs goes on."
)
unpause_command = _changing("unpause", "unpause_flow", "is no longer paused", "Let the paused FLOW run again.")
reset_command = _changing(
    "reset", "reset_flow", "is reset", "Forget the failures of FLOW: it may run again after a backoff or a trip."
)


@command(
    "next",
    epilog="""
    canobatch next nightly
    canobatch next nightly -n 3 --json
    """,
)
@click.argument("flow")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many.")
@json_option
@home_option
@click.pass_context
def next_command(ctx: click.Context, flow: str, count: int, as_json: bool) -> None:
    """Show when FLOW is due, in local time and UTC; days on which clocks are changed are marked."""
    with _open(ctx) as home:
        schedule = home.schedule(flow)
    ticks = schedule.preview(_clock.as_utc(_clock.epoch()), count)
    zone = _zone_of(schedule)
    if as_json:
        facts = [
            {
                "utc": tick.isoformat(),
                "local": tick.astimezone().isoformat(),
                "zone": tick.astimezone(zone).isoformat(),
                "clocks_change": _changes(tick, zone),
            }
            for tick in ticks
        ]
        click.echo(json.dumps(facts))
        return
    rows = [
        (
            f"{tick.astimezone():%a %Y-%m-%d %H:%M:%S %Z}",
            f"{tick:%Y-%m-%d %H:%M:%S}",
            f"{tick.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}" if zone is not None else "",
            click.style("clocks change on this day", fg="yellow") if _changes(tick, zone) else "",
        )
        for tick in ticks
    ]
    if rows:
        where = str(zone) if zone is not None else "zone"
        click.echo(text.table(("local", "UTC", where, "note"), rows), color=colour(1))
    else:
        say(f"flow {flow} is not due by itself: {schedule}")


def _zone_of(schedule: Schedule) -> tzinfo | None:
    """Return the zone of a cron schedule; None: there is none but the local one."""
    name = getattr(schedule, "tz", None)
    if name is None or name == "UTC":
        return None
    return ZoneInfo(name) if isinstance(name, str) else name


def _changes(tick: datetime, zone: tzinfo | None) -> bool:
    """Return whether clocks are changed on the day of a tick, where the schedule is or here."""
    for each in {zone, None}:
        midnight = tick.astimezone(each).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
        bounds = (midnight, midnight + timedelta(days=1))
        before, after = (
            (bound.replace(tzinfo=each) if each is not None else bound.astimezone()).utcoffset() for bound in bounds
        )
        if before != after:
            return True
    return False
