"""The summary of a run: a table of states and splits, the failures, or one JSON object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from canobatch.cli import text
from canobatch.definition import label

if TYPE_CHECKING:
    from canobatch.engine import RunReport
    from canobatch.engine.report import StateReport
    from canobatch.join import SplitResult

#: Failed branches that are told; all of them are in the JSON.
_TOLD = 10


def status_of(report: RunReport, code: int) -> str:
    """Return how a run ended, in one word."""
    if report.error is None:
        return "completed"
    name = type(report.error).__name__
    if name == "WorkflowTimeoutError":
        return "timed_out"
    return "cancelled" if name == "RunCancelledError" or code >= 128 else "failed"


def as_json(report: RunReport, code: int) -> str:
    """Return a run's report as one line of JSON."""
    facts = {"schema": 1, "status": status_of(report, code), "exit_code": code, **report.to_dict()}
    return json.dumps(facts, ensure_ascii=False, default=str)


def as_text(report: RunReport, code: int) -> str:
    """Return the table of states and splits, and how it ended."""
    visits: dict[Any, list[StateReport]] = {}
    for visit in report.states:
        visits.setdefault(visit.state, []).append(visit)
    rows = [_row(state, of_state, report.splits.get(state)) for state, of_state in visits.items()]
    lines = []
    if rows:
        lines.append(text.table(("state", "visits", "attempts", "time", "branches", "error"), rows, right=_NUMBERS))
    status = status_of(report, code)
    styled = click.style(status.replace("_", " "), fg="green" if status == "completed" else "red", bold=True)
    where = "" if report.state is None else f" in {text.one_line(label(report.state))}"
    lines.append(f"run {report.run_id} {styled}{where} after {text.duration(report.duration)}")
    return "\n".join(lines)


_NUMBERS = ("visits", "attempts", "time")


def _row(state: Any, visits: list[StateReport], split: SplitResult | None) -> tuple[str, ...]:
    taken = [visit.duration for visit in visits if visit.duration is not None]
    error = visits[-1].error
    return (
        text.one_line(label(state), 40),
        f"{len(visits):,}",
        f"{sum(visit.attempts for visit in visits):,}",
        text.duration(sum(taken)) if taken else "",
        "" if split is None else _counts(split),
        "" if error is None else text.one_line(type(error).__name__),
    )


def _counts(split: SplitResult) -> str:
    counts = split.counts
    total = sum(counts.values())
    words = {"succeeded": "succeeded", "failed": "failed", "cancelled": "killed or not begun"}
    parts = [f"{count:,} {words[name]}" for name, count in counts.items() if count]
    return f"{total:,}: {', '.join(parts)}" if parts else "0"


def failures(report: RunReport) -> list[str]:
    """Return a line for each of the first branches that failed."""
    lines = []
    for state, split in report.splits.items():
        errors = split.errors
        # It says itself which state, branch and attempt it was.
        lines += [text.one_line(str(branch.error), 300) for branch in errors[:_TOLD]]
        if len(errors) > _TOLD:
            lines.append(f"{text.one_line(label(state), 40)}: {len(errors) - _TOLD:,} more failed")
    return lines
