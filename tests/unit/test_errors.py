"""What users catch: which builtin stands for which error, and what each carries."""

from __future__ import annotations

import pickle

import pytest

import canobatch.errors as e

FACTS = {"state": "S", "branch": 3, "attempt": 2, "path": ["A", "S"], "traceback": "Traceback ..."}


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (e.ConfigurationError, ValueError),
        (e.WorkflowTimeoutError, TimeoutError),
        (e.TaskTimeoutError, TimeoutError),
        (e.MemoryLimitError, MemoryError),
        (e.PayloadError, TypeError),
        (e.StoreKeyError, KeyError),
        (e.ResourceLookupError, LookupError),
        (e.StoreTypeError, TypeError),
        (e.StoreFullError, MemoryError),
        (e.PoolClosedError, RuntimeError),
        (e.UnknownFlowError, KeyError),
    ],
)
def test_the_builtin_a_caller_would_catch_is_mixed_in(cls, builtin):
    """Who catches the builtin catches ours too."""
    assert issubclass(cls, builtin)
    assert issubclass(cls, e.CanobatchError)


@pytest.mark.parametrize(
    ("family", "members"),
    [
        (e.WorkflowError, [e.WorkflowTimeoutError]),
        (
            e.TaskError,
            [e.TaskTimeoutError, e.MemoryLimitError, e.WorkerLostError, e.PayloadError, e.RetryExhaustedError],
        ),
        (e.TaskError, [e.CircuitOpenError]),
        (e.ResourceError, [e.ResourceLookupError]),
        (e.StoreError, [e.StoreKeyError, e.StoreTypeError, e.StoreFullError, e.CommitError]),
        (e.SchedulerError, [e.UnknownFlowError, e.FlowOverlapError, e.FlowPausedError, e.FlowTrippedError]),
    ],
)
def test_errors_come_in_families(family, members):
    """What happens to an attempt is a TaskError, to a run a WorkflowError, to a store a StoreError."""
    assert all(issubclass(member, family) for member in members)
    assert not issubclass(e.JoinError, e.TaskError)
    assert not issubclass(e.RunCancelledError, e.WorkflowError)


def test_a_missing_key_reads_as_a_sentence():
    """The text of a StoreKeyError is its message, not the repr that KeyError makes of it."""
    assert str(e.StoreKeyError("no key 'a' in the store", key="a")) == "no key 'a' in the store"


@pytest.mark.parametrize(
    "cls",
    [e.TaskError, e.TaskTimeoutError, e.MemoryLimitError, e.WorkerLostError, e.PayloadError, e.RetryExhaustedError],
)
def test_an_attempt_s_error_says_whose_it_is(cls):
    """Every TaskError has state, branch, attempt, path and the worker's traceback."""
    error = cls("text", **FACTS)
    assert (error.state, error.branch, error.attempt, error.path) == ("S", 3, 2, ("A", "S"))
    assert error.traceback == "Traceback ..."
    assert (cls("text").state, cls("text").branch, cls("text").attempt, cls("text").path) == (None, None, 1, ())


def test_exhausted_retries_count_attempts():
    """RetryExhaustedError has the number of attempts and the last error, and is that attempt's error."""
    last = ValueError("no")
    error = e.RetryExhaustedError("text", attempts=4, last_error=last, state="S")
    assert (error.attempts, error.attempt, error.last_error, error.state) == (4, 4, last, "S")


def test_facts_of_the_other_errors():
    """Each error has as attributes what its text says."""
    assert e.WorkerLostError("t", pid=5, signal=9).signal == 9
    assert e.WorkerLostError("t", pid=5, exitcode=3).exitcode == 3
    assert (e.MemoryLimitError("t", limit=10, used=20).limit, e.MemoryLimitError("t", limit=10, used=20).used) == (
        10,
        20,
    )
    assert e.TaskTimeoutError("t", limit=1.5).limit == 1.5
    timeout = e.WorkflowTimeoutError("t", elapsed=2.0, limit=1.0, state="S", path=["S"])
    assert (timeout.elapsed, timeout.limit, timeout.state, timeout.path) == (2.0, 1.0, "S", ("S",))
    assert e.CommitError("t", writer="branch 3", key="k").writer == "branch 3"
    cancelled = e.RunCancelledError("t", reason="why", state="S", path=["S"])
    assert (cancelled.reason, cancelled.state, cancelled.path) == ("why", "S", ("S",))
    assert e.JoinError("t", state="S", result=[1]).result == [1]
    assert e.ConfigurationError("one").problems == ("one",)
    assert e.ConfigurationError("two", ["a", "b"]).problems == ("a", "b")


@pytest.mark.parametrize(
    ("error", "retry_after", "text"),
    [
        (e.RateLimitedError("429", retry_after=2.5), 2.5, "429"),
        (e.RateLimitedError(2.5), 2.5, "too many calls; try again in 2.5 s"),
        (e.RateLimitedError(retry_after=3), 3, "too many calls; try again in 3 s"),
        (e.RateLimitedError(), None, "too many calls"),
        (e.CircuitOpenError("open", retry_after=4.0), 4.0, "open"),
    ],
)
def test_errors_that_say_when_to_come_again(error, retry_after, text):
    """The seconds are an attribute; they survive pickling, as does the text."""
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (each.retry_after, str(each)) == (retry_after, text)
    assert e.ResourceError("t", key="db").key == "db"
