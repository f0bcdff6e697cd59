"""The gate of a split, without a pool: who goes when, and what they hold meanwhile."""

from __future__ import annotations

import math

import pytest

from canobatch import CircuitBreaker, RateLimiter, Retry, Semaphore, TaskConfig, WindowedRateLimiter
from canobatch.engine.admission import Turnstile, enter, refused
from canobatch.engine.attempt import Where, delay_before_next, may_retry, wrap
from canobatch.errors import (
    CircuitOpenError,
    ConfigurationError,
    RateLimitedError,
    ResourceError,
    ResourceLookupError,
    TaskError,
)
from canobatch.pool import Call

NEVER = 100_000.0
WHERE = Where("s", 3, 2, ("s",))


def gate(bulkhead=None):
    """Return a turnstile, and the list to which each wake-up is added."""
    woken = []
    return Turnstile(bulkhead, lambda: woken.append(1)), woken


def gone(turnstile, slots=10):
    """Return the branches that may go now, and those that are refused."""
    went = list(turnstile.admit(slots))
    return [call.branch for call, error in went if error is None], [call.branch for call, error in went if error]


def stand(turnstile, config, *branches):
    calls = [Call(branch) for branch in branches]
    for call in calls:
        turnstile.add(call, config)
    return calls


def tripped(reset=NEVER):
    breaker = CircuitBreaker(1, reset)
    breaker.acquire().fail()
    return breaker


# ---------------------------------------------------------------- the turnstile


def test_calls_go_in_order_and_no_more_than_can_run():
    """What was admitted and has not left takes a slot; each call has a worker to itself."""
    turnstile, _ = gate()
    first, second, third = stand(turnstile, TaskConfig(), 0, 1, 2)
    assert first.is_alone
    assert gone(turnstile, slots=2) == ([0, 1], [])
    assert gone(turnstile, slots=2) == ([], [])
    assert len(turnstile) == 1
    assert turnstile.due is None
    turnstile.leave(second, True)
    assert gone(turnstile, slots=2) == ([2], [])
    turnstile.leave(third, True)


def test_a_limiter_lets_them_go_one_by_one_and_says_when_to_ask_again():
    """Who waits for a token is due when it comes; the others in that line are not asked for."""
    turnstile, woken = gate()
    stand(turnstile, TaskConfig(rate_limiter=RateLimiter(2, per=NEVER)), *range(5))
    assert gone(turnstile) == ([0, 1], [])
    assert turnstile.due is not None
    assert gone(turnstile) == ([], [])
    assert woken == []


def test_one_line_does_not_hold_up_another():
    """Calls that need other things, or nothing, pass those that wait."""
    turnstile, _ = gate()
    empty = WindowedRateLimiter(1, NEVER)
    empty.acquire()
    stand(turnstile, TaskConfig(rate_limiter=empty), 0, 1)
    stand(turnstile, TaskConfig(), 2)
    stand(turnstile, TaskConfig(rate_limiter=RateLimiter(1)), 3)
    assert gone(turnstile) == ([2, 3], [])


def test_who_waits_holds_nothing_and_wakes_nobody():
    """A call that waits for a token takes no place of the bulkhead, not even for a moment."""
    places = Semaphore(1)
    touched = []
    places.watch(lambda: touched.append(1))
    turnstile, woken = gate(places)
    empty = WindowedRateLimiter(1, NEVER)
    empty.acquire()
    stand(turnstile, TaskConfig(rate_limiter=empty), 0)
    for _ in range(3):
        assert gone(turnstile) == ([], [])
    assert (touched, woken, places.free) == ([], [], 1)


def test_a_place_that_comes_free_wakes_the_split():
    """Whoever gives it back: then the split asks again at once."""
    places = Semaphore(1)
    held = places.acquire()
    turnstile, woken = gate(places)
    stand(turnstile, TaskConfig(), 0)
    assert gone(turnstile) == ([], [])
    assert turnstile.due is None
    held.release()
    assert woken == [1]
    assert gone(turnstile) == ([0], [])
    assert places.free == 0


def test_splits_that_share_a_bulkhead_take_turns():
    """Who gives a place back does not get it again while another split waits for it."""
    places = Semaphore(1)
    (first, _), (second, _) = gate(places), gate(places)
    calls = stand(first, TaskConfig(), 0, 1, 2)
    (other, _) = stand(second, TaskConfig(), 0, 1)
    assert (gone(first), gone(second)) == (([0], []), ([], []))
    first.leave(calls[0], True)
    assert (gone(second), gone(first)) == (([], []), ([1], []))
    first.leave(calls[1], True)
    assert (gone(first), gone(second)) == (([], []), ([0], []))
    second.leave(other, True)
    assert gone(second) == ([], [])
    second.close()
    assert gone(first) == ([2], [])


def test_a_split_that_could_not_use_a_place_holds_up_nobody():
    """Without a free worker, or a token, it does not stand in the bulkhead's line."""
    places, bucket = Semaphore(1), RateLimiter(1, per=NEVER)
    (first, _), (second, _) = gate(places), gate(places)
    stand(first, TaskConfig(rate_limiter=bucket), 0, 1)
    stand(second, TaskConfig(), 0, 1)
    held = places.acquire()
    assert (gone(first), gone(second)) == (([], []), ([], []))
    assert len(places._line) == 2
    assert gone(first, slots=0) == ([], [])
    assert len(places._line) == 1
    assert gone(first) == ([], [])
    bucket.acquire()
    held.release()
    assert gone(first) == ([], [])
    assert gone(second) == ([0], [])


def test_closing_gives_everything_back():
    """The split has ended: places are free, nobody is told any more, breakers have heard nothing."""
    places, breaker = Semaphore(2), CircuitBreaker(1, NEVER)
    turnstile, woken = gate(places)
    stand(turnstile, TaskConfig(circuit_breaker=breaker), 0, 1, 2)
    assert gone(turnstile) == ([0, 1], [])
    turnstile.close()
    assert (places.free, str(breaker.state)) == (2, "closed")
    places.acquire().release()
    assert woken == []


@pytest.mark.parametrize(("outcome", "state"), [(True, "closed"), (False, "open"), (None, "closed")])
def test_the_breaker_hears_how_a_call_ended_once(outcome, state):
    """Success, failure or neither; what is said of it later does not count."""
    breaker = CircuitBreaker(1, NEVER)
    turnstile, _ = gate()
    (call,) = stand(turnstile, TaskConfig(circuit_breaker=breaker), 0)
    assert gone(turnstile) == ([0], [])
    turnstile.leave(call, outcome)
    turnstile.leave(call, not outcome)
    assert breaker.state == state


def test_an_open_breaker_refuses_all_that_stand_before_it():
    """They are given back as refused, and have cost nothing."""
    limiter, places = WindowedRateLimiter(5, NEVER), Semaphore(1)
    turnstile, _ = gate(places)
    stand(turnstile, TaskConfig(circuit_breaker=tripped(), rate_limiter=limiter), 0, 1, 2)
    assert gone(turnstile) == ([], [0, 1, 2])
    assert (limiter.used, places.free, len(turnstile)) == (0, 1, 0)


def test_an_open_breaker_is_waited_for_by_those_who_retry_it():
    """They stay in line until its trial is due."""
    turnstile, _ = gate()
    stand(turnstile, TaskConfig(circuit_breaker=tripped(), retry_on=(CircuitOpenError,)), 0, 1)
    assert gone(turnstile) == ([], [])
    assert turnstile.due is not None
    turnstile, woken = gate()
    guard = tripped(reset=0.0)
    first, _second = stand(turnstile, TaskConfig(circuit_breaker=guard, retry_on=(OSError, CircuitOpenError)), 0, 1)
    assert gone(turnstile) == ([0], [])
    turnstile.leave(first, True)
    assert woken
    assert gone(turnstile) == ([1], [])


def test_entering_takes_all_or_nothing():
    """Without what one of them wants, the others have given nothing."""
    places, limiter, breaker = Semaphore(1), WindowedRateLimiter(1, NEVER), CircuitBreaker(1, NEVER)
    config = TaskConfig(circuit_breaker=breaker, rate_limiter=limiter)
    held = places.acquire()
    assert enter(config, places) == math.inf
    assert limiter.used == 0
    held.release()
    admitted = enter(config, places)
    assert (places.free, limiter.used) == (0, 1)
    assert enter(config, places) == pytest.approx(NEVER, rel=0.01)
    admitted.end(None)
    assert places.free == 1


# ---------------------------------------------------------------- what follows an error


def test_the_error_of_an_attempt_that_was_not_made():
    """It says which, counts those before it, and keeps the seconds."""
    error = refused(CircuitOpenError("the circuit breaker is open", retry_after=5.0), WHERE)
    assert str(error) == "state 's', branch 3, attempt 2, was not made: the circuit breaker is open"
    assert (error.state, error.branch, error.attempt, error.path, error.retry_after) == ("s", 3, 1, ("s",), 5.0)


@pytest.mark.parametrize(
    ("own", "delay"),
    [
        (OSError(), 1.0),
        (RateLimitedError("429", retry_after=0.5), 1.0),
        (RateLimitedError("429", retry_after=5.0), 5.0),
        (RateLimitedError("429"), 1.0),
        (CircuitOpenError("open", retry_after=7.0), 7.0),
    ],
)
def test_w9_an_error_may_ask_for_a_longer_delay(own, delay):
    """Not for a shorter one."""
    config = TaskConfig(retry=Retry.fixed(3, 1.0))
    assert delay_before_next(config, wrap(own, WHERE), lambda: 0.5) == delay


@pytest.mark.parametrize(
    ("own", "retry_on", "expected"),
    [
        (RateLimitedError("429"), (Exception,), True),
        (RateLimitedError("429"), (OSError,), False),
        (ResourceError("the database is starting up"), (Exception,), True),
        (ResourceLookupError("no such key"), (Exception,), False),
        (ConfigurationError("no"), (Exception,), False),
        (CircuitOpenError("open"), (Exception,), False),
        (CircuitOpenError("open"), (TaskError,), False),
        (CircuitOpenError("open"), (CircuitOpenError,), True),
        (OSError(), (CircuitOpenError,), False),
    ],
)
def test_w9_which_errors_may_be_retried(own, retry_on, expected):
    """What another attempt may mend; an open breaker only when it is named."""
    config = TaskConfig(retry=Retry.fixed(3, 1.0), retry_on=retry_on)
    assert may_retry(config, wrap(own, WHERE)) is expected
