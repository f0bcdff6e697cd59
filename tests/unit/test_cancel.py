"""Tokens: one cancel, seen by all."""

from __future__ import annotations

import contextlib
import threading

import pytest

from canobatch import CancelToken


def test_a_token_begins_uncancelled():
    """A new token is not cancelled and has no reason."""
    token = CancelToken()
    assert (token.is_cancelled, token.reason) == (False, "")


def test_a_cancel_is_seen_with_its_reason():
    """After a cancel the token says so, and why."""
    token = CancelToken()
    token.cancel("maintenance")
    assert (token.is_cancelled, token.reason) == (True, "maintenance")


def test_a_cancel_without_reason_has_a_standard_one():
    """Without a reason the token is cancelled all the same."""
    token = CancelToken()
    token.cancel()
    assert (token.is_cancelled, token.reason) == (True, "cancelled")


@pytest.mark.parametrize("reason", ["", None, 5])
def test_any_reason_cancels(reason):
    """Whatever is given as reason, the token is cancelled, and its reason is text."""
    token = CancelToken()
    token.cancel(reason)
    assert token.is_cancelled
    assert isinstance(token.reason, str)


def test_the_first_reason_stays():
    """Cancelling twice is fine and keeps the first reason."""
    token = CancelToken()
    token.cancel("first")
    token.cancel("second")
    assert token.reason == "first"


def test_watchers_are_called_once():
    """Every watcher is called by the first cancel, and by it only."""
    token, called = CancelToken(), []
    for name in "ab":
        token.watch(lambda name=name: called.append(name))
    assert called == []
    token.cancel()
    token.cancel()
    assert sorted(called) == ["a", "b"]


def test_a_watcher_of_a_cancelled_token_is_called_at_once():
    """Who comes late is told too."""
    token, called = CancelToken(), []
    token.cancel("early")
    stop = token.watch(lambda: called.append(token.reason))
    assert called == ["early"]
    stop()


def test_a_watcher_can_stop():
    """After it has stopped watching a watcher is not called; stopping twice is fine."""
    token, called = CancelToken(), []
    stop = token.watch(lambda: called.append("stopped"))
    token.watch(lambda: called.append("other"))
    stop()
    stop()
    token.cancel()
    stop()
    assert called == ["other"]


def test_a_watcher_sees_the_token_cancelled():
    """When a watcher is called the token already says that it is cancelled."""
    token, seen = CancelToken(), []
    token.watch(lambda: seen.append((token.is_cancelled, token.reason)))
    token.cancel("now")
    assert seen == [(True, "now")]


def test_a_watcher_may_cancel_again_and_watch():
    """A watcher may use the token: nothing waits for a lock."""
    token, called = CancelToken(), []

    def watcher():
        token.cancel("again")
        token.watch(lambda: called.append("inner"))
        called.append("outer")

    token.watch(watcher)
    token.cancel("first")
    assert called == ["inner", "outer"]
    assert token.reason == "first"


def test_a_signal_handler_may_cancel_in_the_midst_of_a_cancel():
    """Handlers run between any two steps of the main thread, also while it has the token's lock."""
    token = CancelToken()

    def cancel():
        with token._lock:
            token.cancel("handler")

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    thread.join(30)
    assert token.reason == "handler"


def test_a_watcher_that_fails_keeps_none_from_knowing():
    """All watchers are called although one raises: a cancel must reach every run."""
    token, called = CancelToken(), []

    def fail():
        raise RuntimeError("a watcher failed")

    for watcher in (fail, lambda: called.append("second"), fail, lambda: called.append("fourth")):
        token.watch(watcher)
    with contextlib.suppress(RuntimeError):
        token.cancel()
    assert called == ["second", "fourth"]


def test_one_of_many_threads_cancels():
    """Of threads that cancel at once one gives the reason, and each watcher is called once."""
    token, called, start = CancelToken(), [], threading.Barrier(8)
    token.watch(lambda: called.append(token.reason))

    def cancel(number):
        start.wait()
        token.cancel(f"thread {number}")

    threads = [threading.Thread(target=cancel, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert called == [token.reason]


def test_many_wait_for_one_token():
    """Every thread that waits for a cancel is woken."""
    token, woken = CancelToken(), []

    def wait():
        event = threading.Event()
        token.watch(event.set)
        woken.append(event.wait(30))

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    token.cancel()
    for thread in threads:
        thread.join()
    assert woken == [True] * 5
