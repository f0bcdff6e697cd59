"""The threads in which runs are driven: shared by short runs, and no run waits for the end of another."""

from __future__ import annotations

import threading

import pytest

from canobatch.scheduler import _crew
from canobatch.scheduler._crew import Crew
from tests.support.watch import NEVER, await_that


class Driven:
    """Stands for a run."""

    def __init__(self, act=lambda: None) -> None:
        self.id = "r"
        self.error = None
        self.thread = None
        self._act = act

    def drive(self):
        self.thread = threading.current_thread()
        self._act()

    def fail(self, error):
        self.error = error


@pytest.fixture
def crew():
    """A crew; when the test ends its threads have ended."""
    before = set(threading.enumerate())
    yield Crew()
    await_that(lambda: set(threading.enumerate()) <= before, "the threads should end")


def test_short_runs_share_threads(crew):
    """Each is driven once, then told; fewer threads than runs do it."""
    runs, ended = [Driven() for _ in range(500)], []
    for run in runs:
        crew.begin(run, ended.append)
    crew.settle()
    await_that(lambda: len(ended) == len(runs), "all should end")
    assert set(ended) == set(runs)
    assert len({run.thread for run in runs}) < len(runs)


def test_no_run_waits_for_the_end_of_another(crew):
    """Forty that end only when all of them have begun."""
    barrier, ended = threading.Barrier(40), []
    for _ in range(40):
        crew.begin(Driven(lambda: barrier.wait(NEVER)), ended.append)
    crew.settle()
    await_that(lambda: len(ended) == 40, "all should end")


def test_runs_begin_while_others_are_made(crew, monkeypatch):
    """One that has waited for a moment begins with the next, before settle."""
    monkeypatch.setattr(_crew, "_MOMENT", 0.0)
    begun, ended = threading.Event(), []
    crew.begin(Driven(begun.set), ended.append)
    crew.begin(Driven(), ended.append)
    assert begun.wait(NEVER)
    crew.settle()
    await_that(lambda: len(ended) == 2, "both should end")


def test_runs_have_failed_if_there_is_no_thread(crew, monkeypatch):
    """Each is told once, and nothing waits any more."""
    runs, ended = [Driven() for _ in range(3)], []
    for run in runs:
        crew.begin(run, ended.append)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread")))
        crew.settle()
    assert ended == runs
    assert [str(run.error) for run in runs] == ["no thread"] * 3
    assert all(run.thread is None for run in runs)
