"""What all journals say alike of a run: its line in the history, and whether a definition may resume it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from canobatch.errors import VersionMismatchError
from canobatch.journal.records import RunStatus, RunSummary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from canobatch.errors import JournalError
    from canobatch.journal.records import RunFacts


def status_of(facts: RunFacts, *, is_held: bool) -> RunStatus:
    """Return how a run stands, given whether somebody holds its lock."""
    if facts.status == "running":
        return RunStatus.RUNNING if is_held else RunStatus.INTERRUPTED
    return RunStatus(facts.status)


def summary_of(facts: RunFacts, status: RunStatus) -> RunSummary:
    """Return a run's line in the history."""
    return RunSummary(
        facts.run_id,
        facts.workflow,
        facts.version,
        status,
        facts.state,
        facts.started,
        facts.ended,
        None if facts.error is None else f"{facts.error.type_name}: {facts.error.text}",
        facts.owner,
    )


def damaged(known: RunSummary, error: JournalError) -> RunSummary:
    """Return the line of a run that cannot be read."""
    return dataclasses.replace(known, status=RunStatus.DAMAGED, error=str(error))


def select(
    runs: Iterable[RunSummary], workflow: str | None, status: RunStatus | None, since: float | None
) -> list[RunSummary]:
    """Return the runs that fit, the latest first."""
    found = [
        run
        for run in runs
        if (workflow is None or run.workflow == workflow)
        and (status is None or run.status == status)
        and (since is None or run.started_at >= since)
    ]
    return sorted(found, key=lambda run: (run.started_at, run.run_id), reverse=True)


def check_definition(facts: RunFacts, workflow: str, version: int, path: object = "") -> None:
    """Refuse a run of another workflow or version.

    Raises:
        VersionMismatchError: It is one.
    """
    if (facts.workflow, facts.version) == (workflow, version):
        return
    recorded = f"{facts.workflow} version {facts.version}"
    present = f"{workflow} version {version}"
    raise VersionMismatchError(
        f"run {facts.run_id} was begun by workflow {recorded}, not by {present}; resume it with the definition that "
        f"began it, or begin a new run",
        run_id=facts.run_id,
        recorded=recorded,
        present=present,
        path=str(path),
    )


def prunable(runs: Iterable[RunSummary], now: float, older_than: float | None, keep: int | None) -> list[str]:
    """Return which of the runs, the latest first, may go: they have ended, and are neither young nor spared."""
    unfinished = {RunStatus.RUNNING, RunStatus.INTERRUPTED, RunStatus.DAMAGED}
    ended = [run for run in runs if run.status not in unfinished]
    return [
        run.run_id
        for run in ended[keep or 0 :]
        if older_than is None or (run.ended_at is not None and run.ended_at < now - older_than)
    ]
