"""LoggingObserver: what happens in a run, in the launcher's logging."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from canobatch.definition import label
from canobatch.effects import first_line
from canobatch.join import BranchResult, BranchStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from canobatch.observe.events import Event

_LEVELS = {
    "run_failed": logging.ERROR,
    "run_cancelled": logging.WARNING,
    "retry": logging.WARNING,
    "circuit_open": logging.WARNING,
    "item_failed": logging.WARNING,
    "flow_skipped": logging.WARNING,
    "branch_kept": logging.DEBUG,
    "branch_started": logging.DEBUG,
    "branch_finished": logging.DEBUG,
    "branch_killed": logging.DEBUG,
    "progress": logging.DEBUG,
    "checkpoint": logging.DEBUG,
}
_ENDINGS = {"finished": logging.INFO, "failed": logging.ERROR}


class LoggingObserver:
    """Logs every event: branches at DEBUG, runs and states at INFO, what went wrong at WARNING and ERROR.

    Each record has ``run_id``, ``state``, ``branch`` and ``attempt``, as those have that tasks make in workers, and
    ``event``, its kind.

    Args:
        logger: Where to.
        as_json: Whether each message is one JSON object, `Event.to_dict` and the ``level``; else a sentence.

    Example:
        >>> logging.basicConfig(level=logging.INFO)                       # doctest: +SKIP
        >>> workflow.with_observer(LoggingObserver())                     # doctest: +SKIP
    """

    def __init__(self, logger: logging.Logger | str = "canobatch.runs", *, as_json: bool = False) -> None:
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self._as_json = as_json
        self._begun: dict[str, datetime] = {}

    def on_event(self, event: Event) -> None:
        """Log one event."""
        if event.kind in {"run_started", "run_resumed"}:
            self._begun[event.run_id] = event.time
        level = level_of(event)
        if self._logger.isEnabledFor(level):
            facts = {
                "run_id": event.run_id,
                "state": None if event.state is None else label(event.state),
                "branch": event.branch,
                "attempt": event.attempt,
                "event": event.kind,
            }
            self._logger.log(level, "%s", self._text(event, level), extra=facts)
        if event.kind in {"run_finished", "run_failed", "run_cancelled"}:
            self._begun.pop(event.run_id, None)

    def _text(self, event: Event, level: int) -> str:
        if self._as_json:
            return json.dumps({**event.to_dict(), "level": logging.getLevelName(level)}, default=repr)
        begun = self._begun.get(event.run_id)
        took = None if begun is None else (event.time - begun).total_seconds()
        return f"run {event.run_id}: {describe(event, took)}" if event.run_id else describe(event, took)


def level_of(event: Event) -> int:
    """Return the level at which an event is worth knowing."""
    if isinstance(event.detail, BranchResult) and event.error is not None:
        return logging.WARNING
    if event.kind == "compensation_finished" and event.detail is not None:
        return logging.ERROR
    if event.kind == "flow_ended":
        return _ENDINGS.get(event.detail.kind, logging.WARNING)
    return _LEVELS.get(event.kind, logging.INFO)


def describe(event: Event, took: float | None = None) -> str:
    """Return an event as a sentence; ``took``: how long its run has run, in seconds."""
    text = _SENTENCES.get(event.kind, _in_short)(event)
    if took is not None and event.kind in {"run_finished", "run_failed", "run_cancelled"}:
        text = f"{text} ({took:.1f} s)"
    return text


def _in_short(event: Event) -> str:
    return f"{_place(event)}{event.kind.replace('_', ' ')}{_because(event.error)}"


def _place(event: Event) -> str:
    if event.state is None:
        return ""
    branch = "" if event.branch is None else f", branch {event.branch}"
    return f"state {label(event.state)}{branch}: "


def _because(error: BaseException | None) -> str:
    return "" if error is None else f": {first_line(error)}"


def _of_branch(event: Event) -> str:
    result: BranchResult = event.detail
    after = "" if result.duration is None else f" after {result.duration:.2f} s"
    if event.kind == "branch_kept":
        return f"{_place(event)}kept as it was"
    if event.kind == "branch_killed":
        return f"{_place(event)}killed{after}"
    if result.status is BranchStatus.SUCCEEDED:
        return f"{_place(event)}succeeded{after}"
    return f"{_place(event)}{result.status.replace('_', ' ')}{after}{_because(result.error)}"


def _of_flow(event: Event) -> str:
    record = event.detail
    reason = f": {record.reason}" if record.reason else ""
    return f"flow {record.flow!r} {record.kind}{reason}"


def _of_progress(event: Event) -> str:
    done, total, message = event.detail
    return f"{_place(event)}{done:g}{'' if total is None else f' of {total:g}'}{f' ({message})' if message else ''}"


def _of_split(event: Event) -> str:
    if event.detail is None:
        return f"{_place(event)}the split failed"
    counts: dict[str, Any] = event.detail.counts
    return _place(event) + ", ".join(f"{count} {what}" for what, count in counts.items())


_SENTENCES: dict[str, Callable[[Event], str]] = {
    "run_started": lambda event: f"started workflow {event.detail!r} in state {label(event.state)}",
    "run_resumed": lambda event: f"resumed workflow {event.detail!r}",
    "run_finished": lambda event: f"finished in state {label(event.state)}",
    "run_failed": lambda event: f"failed{_because(event.error)}",
    "run_cancelled": lambda event: f"cancelled{_because(event.error)}",
    "state_entered": lambda event: f"entered state {label(event.state)}",
    "split_started": lambda event: f"{_place(event)}{'many' if event.detail is None else event.detail} branches",
    "split_finished": _of_split,
    "branch_started": lambda event: f"{_place(event)}started",
    "branch_finished": _of_branch,
    "branch_kept": _of_branch,
    "branch_killed": _of_branch,
    "retry": lambda event: f"{_place(event)}attempt {event.attempt} failed, another follows{_because(event.error)}",
    "progress": _of_progress,
    "flow_fired": _of_flow,
    "flow_skipped": _of_flow,
    "flow_ended": _of_flow,
}
