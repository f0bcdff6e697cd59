"""Source: a thread that pulls as many items as it was asked for, and ends with what it pulls from."""

from __future__ import annotations

import threading

import pytest

from canobatch.engine.source import Source
from tests.support.watch import await_that


class Items:
    """An iterator that counts what was pulled, and knows that it was closed."""

    def __init__(self, last, failure=None):
        self.last = last
        self.failure = failure
        self.pulled = 0
        self.is_closed = False

    def __iter__(self):
        return self

    def __next__(self):
        if self.pulled == self.last:
            raise self.failure or StopIteration
        self.pulled += 1
        return self.pulled

    def close(self):
        self.is_closed = True


@pytest.fixture
def woken():
    """What a source calls when there is news."""
    return threading.Semaphore(0)


def source_of(items, woken):
    """Return a source of these items."""
    return Source("test-source", lambda: items, woken.release)


def test_nothing_is_pulled_unasked(woken):
    """A source is opened at once, and pulls what it was asked for, no more."""
    items = Items(9)
    source = source_of(items, woken)
    await_that(lambda: source.is_open, "it should open")
    assert items.pulled == 0
    source.ask(2)
    await_that(lambda: items.pulled == 2, "two should be pulled")
    assert woken.acquire(timeout=10)
    await_that(lambda: source.take() or items.pulled == 2, "they should come")
    source.close()
    assert items.pulled == 2
    assert items.is_closed


def test_what_has_come_counts_as_asked_for(woken):
    """Items that were not taken yet are part of what is asked for."""
    items = Items(9)
    source = source_of(items, woken)
    source.ask(2)
    await_that(lambda: items.pulled == 2, "two should be pulled")
    source.ask(2)
    source.ask(1)
    source.close()
    assert items.pulled == 2
    assert source.take() == [1, 2]


def test_it_is_exhausted_when_the_last_item_was_taken(woken):
    """The end of the source is the end when nothing waits any more."""
    source = source_of(Items(2), woken)
    source.ask(5)
    taken = []
    await_that(lambda: taken.extend(source.take()) or source.is_exhausted, "it should end")
    assert taken == [1, 2]
    assert source.error is None
    source.close()


@pytest.mark.parametrize("failure", [OSError("lost"), SystemExit(1)], ids=["error", "exit"])
def test_w33_what_pulling_raises_is_kept(failure, woken):
    """A failure ends the source; the run's own thread finds it."""
    source = source_of(Items(0, failure), woken)
    source.ask(1)
    await_that(lambda: source.is_exhausted, "it should end")
    assert source.error is failure
    source.close()


def test_an_open_that_fails_is_kept_too(woken):
    """It was never open then."""

    def fail():
        raise OSError("where?")

    source = Source("test-source", fail, woken.release)
    await_that(lambda: source.is_exhausted, "it should end")
    assert not source.is_open
    assert str(source.error) == "where?"
    source.close()


def test_a_closed_source_has_no_thread(woken):
    """Closing waits for the thread, also when it was never asked for anything."""
    before = threading.active_count()
    source = source_of(Items(3), woken)
    source.close()
    assert threading.active_count() <= before
