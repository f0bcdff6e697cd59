"""Observers: what they make of events."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
from datetime import UTC, datetime, timedelta
from enum import Enum

import pytest
from rich.console import Console

from canobatch.errors import ConfigurationError, RunCancelledError
from canobatch.join import BranchResult, BranchStatus, SplitResult
from canobatch.observe import Event, LoggingObserver, ProgressObserver, RunProgress
from canobatch.observe.log import describe
from canobatch.observe.progress import clock_text
from canobatch.scheduler.ledger import FlowRecord
from tests.support.watch import await_that

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class S(Enum):
    """A state."""

    COUNT = 1
    DONE = 2


def branch(status, index=0, error=None):
    """What became of a branch, after a quarter of a second."""
    return BranchResult(index, status, None, error, 1, BEGAN, 0.25)


OK, LOSER = branch(BranchStatus.SUCCEEDED), branch(BranchStatus.CANCELLED)
BAD = branch(BranchStatus.TIMED_OUT, error=ValueError("too late\nfor this"))


def story(*what, every=1.0):
    """Make events, one a second: kind, and then facts as a dictionary."""
    return [
        Event("r1", number, BEGAN + timedelta(seconds=every * (number - 1)), kind, **facts)
        for number, (kind, facts) in enumerate(what, 1)
    ]


RUN = story(
    ("run_started", {"state": S.COUNT, "detail": "words"}),
    ("state_entered", {"state": S.COUNT}),
    ("split_started", {"state": S.COUNT, "detail": 4}),
    ("branch_started", {"state": S.COUNT, "branch": 0, "attempt": 1}),
    ("branch_started", {"state": S.COUNT, "branch": 1, "attempt": 1}),
    ("branch_started", {"state": S.COUNT, "branch": 2, "attempt": 1}),
    ("progress", {"state": S.COUNT, "branch": 0, "attempt": 1, "detail": (3, 10, "pages")}),
    ("branch_finished", {"state": S.COUNT, "branch": 0, "attempt": 1, "detail": OK}),
    ("retry", {"state": S.COUNT, "branch": 1, "attempt": 1, "detail": ValueError("no")}),
    ("branch_finished", {"state": S.COUNT, "branch": 1, "attempt": 2, "detail": BAD}),
    ("branch_killed", {"state": S.COUNT, "branch": 2, "attempt": 1, "detail": LOSER}),
    ("split_finished", {"state": S.COUNT, "detail": SplitResult([OK, BAD, LOSER])}),
    ("state_entered", {"state": S.DONE}),
    ("run_finished", {"state": S.DONE}),
)


def test_events_are_sentences():
    """Each says what happened, where, and why."""
    assert [describe(event, 13.0) for event in RUN] == [
        "started workflow 'words' in state COUNT",
        "entered state COUNT",
        "state COUNT: 4 branches",
        "state COUNT, branch 0: started",
        "state COUNT, branch 1: started",
        "state COUNT, branch 2: started",
        "state COUNT, branch 0: 3 of 10 (pages)",
        "state COUNT, branch 0: succeeded after 0.25 s",
        "state COUNT, branch 1: attempt 1 failed, another follows: ValueError: no",
        "state COUNT, branch 1: timed out after 0.25 s: ValueError: too late",
        "state COUNT, branch 2: killed after 0.25 s",
        "state COUNT: 1 succeeded, 1 failed, 1 cancelled",
        "entered state DONE",
        "finished in state DONE (13.0 s)",
    ]
    (failed, cancelled, other) = story(
        ("run_failed", {"detail": ValueError("no")}),
        ("run_cancelled", {"detail": RunCancelledError("enough")}),
        ("circuit_open", {"state": S.COUNT, "detail": ValueError("open")}),
    )
    assert describe(failed, 2.0) == "failed: ValueError: no (2.0 s)"
    assert describe(cancelled) == "cancelled: RunCancelledError: enough"
    assert describe(other) == "state COUNT: circuit open: ValueError: open"


def test_flows_are_told_by_their_names(caplog):
    """What a scheduler does is logged under the flow's id, and is nothing that has progress."""
    skipped = FlowRecord("nightly", BEGAN, "skipped", reason="it is running")
    event = Event("", 1, BEGAN, "flow_skipped", detail=skipped)
    LoggingObserver("test.runs").on_event(event)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("WARNING", "flow 'nightly' skipped: it is running")
    assert event.to_dict()["flow"] == "nightly"
    observer = ProgressObserver(Console(file=io.StringIO()))
    observer.on_event(event)
    assert observer.runs == []


@pytest.mark.parametrize(
    ("kind", "reason", "level", "text"),
    [
        ("finished", "", "INFO", "flow 'nightly' finished"),
        ("failed", "ValueError: no", "ERROR", "flow 'nightly' failed: ValueError: no"),
        ("interrupted", "", "WARNING", "flow 'nightly' interrupted"),
    ],
)
def test_how_a_run_of_a_flow_ended_is_told(kind, reason, level, text, caplog):
    """The level says whether to look at it, the plain data which of the endings it is."""
    event = Event("r1", 1, BEGAN, "flow_ended", detail=FlowRecord("nightly", BEGAN, kind, run_id="r1", reason=reason))
    with caplog.at_level(logging.INFO, "test.runs"):
        LoggingObserver("test.runs").on_event(event)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (level, f"run r1: {text}")
    assert (event.to_dict()["outcome"], event.to_dict()["reason"]) == (kind, reason)


def test_they_are_logged_at_the_level_they_are_worth(caplog):
    """Runs and states at INFO, branches at DEBUG, what went wrong above; with the facts as attributes."""
    observer = LoggingObserver("test.runs")
    with caplog.at_level(logging.DEBUG, "test.runs"):
        for event in RUN:
            observer.on_event(event)
    assert "".join(record.levelname[0] for record in caplog.records) == "IIIDDDDDWWDIII"
    record = caplog.records[9]
    assert (record.run_id, record.state, record.branch, record.attempt) == ("r1", "COUNT", 1, 2)
    assert (record.name, record.event) == ("test.runs", "branch_finished")
    assert caplog.records[-1].getMessage() == "run r1: finished in state DONE (13.0 s)"
    (failed,) = story(("run_failed", {"detail": ValueError("no")}))
    observer.on_event(failed)
    assert caplog.records[-1].levelname == "ERROR"


def test_they_are_logged_as_json(caplog):
    """One object a line, with all facts as plain data."""
    observer = LoggingObserver(logging.getLogger("test.runs"), as_json=True)
    with caplog.at_level(logging.DEBUG, "test.runs"):
        for event in RUN:
            observer.on_event(event)
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert lines[0] == {
        "run_id": "r1",
        "seq": 1,
        "time": "2026-01-02T03:04:05+00:00",
        "kind": "run_started",
        "state": "COUNT",
        "branch": None,
        "attempt": None,
        "workflow": "words",
        "level": "INFO",
    }
    assert lines[6]["total"] == 10
    assert lines[9]["error"] == "ValueError: too late\nfor this"
    assert lines[11]["cancelled"] == 1


def test_nothing_is_made_that_nobody_logs(caplog):
    """A text is not put together below the logger's level."""

    class Loud:
        def __format__(self, spec):
            raise AssertionError

    observer = LoggingObserver("test.runs")
    with caplog.at_level(logging.INFO, "test.runs"):
        for event in story(("progress", {"state": S.COUNT, "detail": (Loud(), None, None)})):
            observer.on_event(event)
    assert caplog.records == []


def test_progress_counts():
    """Done, failed, killed, retried and running branches; the rate and what is left of it."""
    run = RunProgress("r1")
    for event in RUN[:9]:
        run.take(event)
    split, now = run.split, BEGAN.timestamp() + 8
    assert (run.workflow, run.state, run.started) == ("words", "COUNT", BEGAN.timestamp())
    assert (split.total, split.running, split.done, split.failed, split.killed, split.retried) == (4, 2, 1, 0, 0, 1)
    assert split.rate(now) == pytest.approx(1 / 6)
    assert split.remaining(now) == pytest.approx(18.0)
    assert run.text(now) == "words r1: COUNT 0:08 · 1/4 · 10.0/min · 0:18 left · 1 retry"
    for event in RUN[9:12]:
        run.take(event)
    assert run.split is None
    assert (split.running, split.done, split.failed, split.killed) == (0, 1, 1, 1)
    assert split.parts(now + 100) == ["2/4", "1 failed", "1 killed", "13.3/min", "1 retry"]
    for event in RUN[12:]:
        run.take(event)
    assert run.text(now) == "words r1: finished in state DONE (13.0 s)"


def test_progress_without_a_total():
    """What is not known is not said."""
    run = RunProgress("r1")
    for event in story(
        ("run_started", {"detail": "w"}),
        ("state_entered", {"state": S.COUNT}),
        ("split_started", {"state": S.COUNT}),
    ):
        run.take(event)
    assert run.text(BEGAN.timestamp() + 3) == "w r1: COUNT 0:03 · 0"
    assert run.split.remaining(BEGAN.timestamp() + 3) is None


def test_progress_of_a_single_task():
    """What a task says of itself is shown until the next state."""
    run = RunProgress("r1")
    for event in story(
        ("run_started", {"detail": "w"}),
        ("state_entered", {"state": S.COUNT}),
        ("progress", {"state": S.COUNT, "attempt": 1, "detail": (3.0, 10.0, "pages")}),
    ):
        run.take(event)
    assert run.text(BEGAN.timestamp()) == "w r1: COUNT 0:00 · 3/10 pages"
    run.take(RUN[-2])
    assert run.text(BEGAN.timestamp()) == "w r1: DONE 0:00"


def test_durations_are_short():
    """Minutes and seconds, and hours where there are any."""
    assert [clock_text(s) for s in (-1, 0, 61.9, 3600)] == ["0:00", "0:00", "1:01", "1:00:00"]


def test_lines_where_there_is_no_terminal():
    """States, ends of splits and the end are told at once, the rest every few seconds, as whole lines."""
    out = io.StringIO()
    observer = ProgressObserver(Console(file=out, width=20))
    for event in RUN:
        observer.on_event(event)
    assert out.getvalue().splitlines() == [
        "words r1: COUNT 0:01",
        "words r1: COUNT 0:06 · 0/4",
        "words r1: COUNT · 2/4 · 1 failed · 1 killed · 13.3/min · 1 retry",
        "words r1: DONE 0:12",
        "words r1: finished in state DONE (13.0 s)",
    ]
    assert observer.runs == []


def test_a_live_display_on_a_terminal():
    """It shows each run that goes on, leaves a line of each that ended, and no thread."""
    out = io.StringIO()
    before = threading.active_count()
    observer = ProgressObserver(Console(file=out, width=200, force_terminal=True), footer=lambda: "2 workers busy")
    for event in RUN[:10]:
        observer.on_event(event)
    for event in RUN[:2]:
        observer.on_event(event._replace(run_id="r2"))
    shown = io.StringIO()
    Console(file=shown, width=200).print(observer._picture())
    lines = shown.getvalue().splitlines()
    assert re.match(r"COUNT  [\d:]+  words r1$", lines[0])
    assert re.match(r" *━+.* 2/4 · 1 failed", lines[1])
    assert lines[2].startswith("COUNT")
    assert lines[3] == "2 workers busy"
    assert threading.active_count() > before
    for event in RUN[10:]:
        observer.on_event(event)
    observer.on_event(RUN[-1]._replace(run_id="r2"))
    await_that(lambda: threading.active_count() == before, "the display's thread should end")
    assert "words r1: finished in state DONE (13.0 s)" in out.getvalue()


def test_without_rich_it_says_what_to_do(monkeypatch):
    """rich is needed only by this observer, and its lack is one clear error."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ConfigurationError, match=r"pip install canobatch\[progress\]"):
        ProgressObserver()
