"""``doctor``: what crashes left behind, and whether this machine is fit. What lives is never touched."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from canobatch import _procs, _sqlite
from canobatch.cli import exits, text
from canobatch.cli.command import colour, command, home_option, json_option
from canobatch.cli.home import Home
from canobatch.cli.place import home_of
from canobatch.journal import RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from canobatch.journal import RunSummary

_GOOD_KERNEL = (5, 4)
#: Bytes that are little for a home.
_LITTLE_SPACE = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: "orphan", "stale", "damaged", "space", "system", "home".
        what: What is wrong, in a sentence.
        cure: What to do, or what ``--fix`` does.
        fix: Does it; None: it is for people to do.
    """

    kind: str
    what: str
    cure: str
    fix: Callable[[], None] | None = None


@command(
    "doctor",
    epilog="""
    canobatch doctor
    canobatch doctor --fix
    canobatch doctor --json | jq '.findings[].what'
    """,
)
@click.option("--fix", is_flag=True, help="Repair what can be repaired.")
@json_option
@home_option
@click.pass_context
def doctor_command(ctx: click.Context, fix: bool, as_json: bool) -> None:
    """Look for processes, files and runs that crashes left, and for what this machine lacks.

    Exits with 1 if something is left to do. Nothing of a process that lives is touched.
    """
    home = Home(home_of(ctx))
    runs = home.journal.runs()
    findings = [*_system(), *_space(home), *_orphans(home, runs), *_damaged(runs), *_left_files(home, runs)]
    left = []
    for finding in findings:
        if fix and finding.fix is not None:
            finding.fix()
        else:
            left.append(finding)
    facts = _facts(home, runs)
    if as_json:
        listed = [
            {"kind": each.kind, "what": each.what, "cure": each.cure, "fixed": each not in left} for each in findings
        ]
        click.echo(json.dumps({"schema": 1, "ok": not left, "findings": listed, **facts}, ensure_ascii=False))
    else:
        _print(findings, left, facts)
    if left:
        ctx.exit(exits.FAILED)


def _print(findings: list[Finding], left: list[Finding], facts: dict[str, Any]) -> None:
    for name, fact in facts.items():
        words = ", ".join(f"{count:,} {what}" for what, count in fact.items()) if isinstance(fact, dict) else fact
        click.echo(f"{name.replace('_', ' ')}: {words or 'none'}")
    for each in findings:
        mark = click.style("left", fg="yellow") if each in left else click.style("fixed", fg="green")
        click.echo(f"{mark} {each.what}; {each.cure}", color=colour(1))
    if not findings:
        click.echo("nothing to repair")


def _facts(home: Home, runs: list[RunSummary]) -> dict[str, Any]:
    from importlib.metadata import version  # noqa: PLC0415 - slow to import

    counts = {status.value: sum(run.status is status for run in runs) for status in RunStatus}
    return {
        "canobatch": version("canobatch"),
        "python": ".".join(map(str, sys.version_info[:3])),
        "sqlite": _sqlite.VERSION,
        "kernel": os.uname().release,
        "home": str(home.directory),
        "runs": {status: count for status, count in counts.items() if count},
    }


def _system() -> Iterator[Finding]:
    kernel = tuple(int(part) for part in os.uname().release.split(".")[:2] if part.isdigit())
    if kernel < _GOOD_KERNEL:
        yield Finding("system", f"kernel {os.uname().release} has no pidfd", "use Linux 5.4 or later")


def _space(home: Home) -> Iterator[Finding]:
    place = next(path for path in (home.directory, *home.directory.parents) if path.exists())
    if not os.access(place, os.W_OK):
        yield Finding("home", f"{place} cannot be written to", "choose another home with --home")
    free = shutil.disk_usage(place).free
    if free < _LITTLE_SPACE:
        yield Finding(
            "space", f"{text.size(free)} are free at {place}", "remove old runs: canobatch gc --older-than 1d"
        )


def _orphans(home: Home, runs: list[RunSummary]) -> Iterator[Finding]:
    """Return processes of runs whose launcher is gone; its token is in their environment."""
    for run in runs:
        record = home.launch_of(run.run_id)
        token = run.owner.token or (record.token if record is not None else "")
        if not token or run.status is RunStatus.RUNNING or home.is_running(run.run_id):
            continue
        if _procs.start_ticks(run.owner.pid) == run.owner.start_ticks:
            # The launcher lives: it has other runs, which share the token.
            continue
        pids = _procs.marked_processes(token)
        if pids:
            listed = ", ".join(map(str, sorted(pids)))
            yield Finding(
                "orphan",
                f"run {run.run_id} left {text.plural(len(pids), 'process')}: {listed}",
                "they are killed by --fix",
                partial(_procs.kill_marked, token),
            )


def _damaged(runs: list[RunSummary]) -> Iterator[Finding]:
    for run in runs:
        if run.status is RunStatus.DAMAGED:
            yield Finding(
                "damaged", f"run {run.run_id}: {run.error}", "restore it from a copy, or remove its directory"
            )


def _left_files(home: Home, runs: list[RunSummary]) -> Iterator[Finding]:
    known = {home.bell(run.run_id) for run in runs if run.status is RunStatus.RUNNING}
    for path in sorted(path for name in ("bells", "wake") for path in (home.directory / name).glob("*")):
        if path.is_fifo() and path not in known and not _is_heard(path):
            yield Finding("stale", f"{path} is of a process that is gone", "it is removed by --fix", path.unlink)
    for run in runs:
        path = home.run(run.run_id) / "launch.new"
        if run.status is not RunStatus.RUNNING and path.exists():
            yield Finding("stale", f"{path} was not finished", "it is removed by --fix", path.unlink)


def _is_heard(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
