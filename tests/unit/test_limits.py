"""The limiters' and the semaphore's decisions, with a clock that is an argument."""

from __future__ import annotations

import gc
import math
import threading
import time
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canobatch.errors import ConfigurationError, RateLimitedError, ResourceError
from canobatch.limits import MultiRateLimiter, RateLimiter, Semaphore, WindowedRateLimiter
from tests.support.watch import await_that


def takes(limiter, now, cost=1):
    """Whether a call of this cost is let through now."""
    return limiter.take(cost, now) is None


def admitted(limiter, now, most=1000):
    """How many calls of cost 1 are let through at this moment."""
    return next(count for count in range(most) if not takes(limiter, now))


# ---------------------------------------------------------------- token bucket


def test_a_bucket_starts_full_and_saves_up_a_burst():
    """Two per second and a burst of five: seven at once."""
    assert admitted(RateLimiter(2, burst=5), 0.0) == 7
    assert admitted(RateLimiter(2), 0.0) == 2


def test_a_refusal_says_how_long_to_wait_and_takes_nothing():
    """An empty bucket names the seconds until there is enough, and refusals cost nothing."""
    bucket = RateLimiter(2, per=1.0)
    assert takes(bucket, 0.0, 2)
    for _ in range(10):
        assert bucket.take(1, 0.0) == (0.5, "")
    assert bucket.take(2, 0.0) == (1.0, "")
    assert takes(bucket, 0.5)


def test_tokens_come_back_with_time_and_never_exceed_the_bucket():
    """Refilled at its rate, up to its size."""
    bucket = RateLimiter(10, per=2.0)
    assert admitted(bucket, 0.0) == 10
    assert admitted(bucket, 1.0) == 5
    assert admitted(bucket, 1000.0) == 10


def test_a_clock_that_stands_or_goes_back_gives_nothing():
    """Time that does not pass brings no tokens."""
    bucket = RateLimiter(1)
    assert takes(bucket, 10.0)
    assert not takes(bucket, 9.0)
    assert not takes(bucket, 10.0)
    assert not takes(bucket, 10.5)
    assert takes(bucket, 11.0)


def test_a_call_may_cost_more_than_one_or_nothing():
    """Costs are taken as they are; 0 is always let through."""
    bucket = RateLimiter(10)
    assert takes(bucket, 0.0, 10)
    assert takes(bucket, 0.0, 0)
    assert not takes(bucket, 0.0, 3)
    assert takes(bucket, 0.3, 3)


@pytest.mark.parametrize("make", [lambda: RateLimiter(2, burst=1), lambda: WindowedRateLimiter(3, 10.0)])
@pytest.mark.parametrize("cost", [4, 10**30, math.inf])
def test_w30_an_impossible_cost_is_an_error_at_once(make, cost):
    """What can never be paid is refused with a ConfigurationError and takes nothing."""
    limiter = make()
    with pytest.raises(ConfigurationError, match=r"can never be made: .* has at most 3"):
        limiter.take(cost, 0.0)
    with pytest.raises(ConfigurationError):
        limiter.acquire(cost)
    assert takes(limiter, 0.0, 3)


@pytest.mark.parametrize("cost", [-1, math.nan, "1", None, True])
def test_what_is_no_cost_is_an_error(cost):
    """A cost is a number of at least 0."""
    with pytest.raises(ConfigurationError, match="cost of a call must be a number of at least 0"):
        RateLimiter(2).try_acquire(cost)


def test_waiting_as_long_as_it_says_is_enough():
    """After exactly the seconds it named, the call is let through: rounding must not make it wait twice."""
    bucket = RateLimiter(3, per=7.0)
    now = 0.1
    for _ in range(1000):
        refusal = bucket.take(1, now)
        if refusal is not None:
            now += refusal[0]
            assert bucket.take(1, now) is None


@given(
    tokens=st.integers(1, 20),
    burst=st.integers(0, 20),
    per=st.floats(0.1, 100.0),
    calls=st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(0, 5)), max_size=80),
)
def test_no_stretch_of_time_lets_more_through_than_it_may(tokens, burst, per, calls):
    """Between any two moments: at most a full bucket and what flows in meanwhile."""
    bucket = RateLimiter(tokens, per, burst)
    now, paid = 0.0, []
    for pause, cost in calls:
        now += pause
        if cost <= bucket.capacity and bucket.take(cost, now) is None:
            paid.append((now, cost))
    for first in range(len(paid)):
        total = 0
        for at, cost in paid[first:]:
            total += cost
            assert total <= bucket.capacity + (at - paid[first][0]) * tokens / per + 1e-6


# ---------------------------------------------------------------- fixed window


def test_a_window_lets_its_limit_through_and_then_waits_for_its_end():
    """Up to the limit, then a refusal until the window ends."""
    window = WindowedRateLimiter(3, 10.0)
    assert admitted(window, 5.0) == 3
    assert window.take(1, 6.0) == (9.0, "")
    assert admitted(window, 15.0) == 3


def test_a_window_begins_with_its_first_call():
    """Not when it was made, and not when it is looked at."""
    window = WindowedRateLimiter(1, 10.0)
    window.report(0.0)
    window.wait_for(1, 3.0)
    assert takes(window, 8.0, 0)
    assert takes(window, 9.0)
    assert window.take(1, 10.0) == (9.0, "")


def test_a_window_counts_costs():
    """What does not fit any more waits, what still fits is let through."""
    window = WindowedRateLimiter(10, 60.0)
    assert takes(window, 0.0, 7)
    assert not takes(window, 0.0, 4)
    assert takes(window, 0.0, 3)
    assert window.report(1.0) == (0, 10, 59.0)
    assert window.report(61.0) == (10, 0, 0.0)


@given(
    limit=st.integers(1, 10),
    length=st.floats(0.5, 20.0),
    calls=st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(0, 10)), max_size=80),
)
def test_no_window_lets_more_through_than_its_limit(limit, length, calls):
    """Costs between the beginnings of two windows never exceed the limit."""
    window = WindowedRateLimiter(limit, length)
    now, begun, paid = 0.0, None, 0
    for pause, cost in calls:
        now += pause
        if cost > limit or window.take(cost, now) is not None or cost == 0:
            continue
        if begun is None or now >= begun + length:
            begun, paid = now, 0
        paid += cost
        assert paid <= limit


# ---------------------------------------------------------------- several tiers


def tiers():
    """Five calls and twenty words at once."""
    calls, words = RateLimiter(5), WindowedRateLimiter(20, 60.0)
    return calls, words, MultiRateLimiter({"calls": calls, "words": words})


def test_all_tiers_pay_or_none():
    """A call that one tier refuses takes nothing from the others."""
    calls, words, both = tiers()
    assert takes(both, 0.0, {"calls": 1, "words": 20})
    assert both.take({"calls": 1, "words": 1}, 1.0) == (59.0, "words")
    assert both.report(1.0) == {"calls": 5.0, "words": 0}
    assert (calls.report(1.0)[0], words.report(1.0)[0]) == (5.0, 0)


def test_it_names_the_tier_that_has_to_be_waited_for_longest():
    """Not the first that refuses, but the one that decides."""
    _, _, both = tiers()
    assert takes(both, 0.0, {"calls": 5, "words": 20})
    assert both.take(1, 0.5) == (59.5, "words")
    assert both.take({"calls": 4}, 0.5) == (pytest.approx(0.3), "calls")


def test_a_number_is_the_cost_in_every_tier():
    """Without names every tier pays the same."""
    _, _, both = tiers()
    assert takes(both, 0.0)
    assert both.report(0.0) == {"calls": 4.0, "words": 19}


def test_only_the_tiers_that_are_named_pay():
    """Tiers without a cost are left alone, and a cost of 0 is inert."""
    calls, _, both = tiers()
    assert takes(calls, 0.0, 5)
    assert takes(both, 0.0, {"words": 3})
    assert takes(both, 0.0, {"calls": 0, "words": 3})
    assert takes(both, 0.0, {})
    assert both.report(0.0) == {"calls": 0.0, "words": 14}


def test_a_tier_that_is_not_there_is_an_error():
    """A misspelt tier does not let everything through: it is a ConfigurationError that lists the tiers."""
    _, _, both = tiers()
    with pytest.raises(ConfigurationError, match=r"no tier 'word'; tiers: calls, words"):
        both.acquire({"word": 1})


def test_w30_an_impossible_cost_in_one_tier_is_an_error_at_once():
    """Also when it is the same limiter twice that could never pay for both."""
    calls, _, both = tiers()
    with pytest.raises(ConfigurationError, match="can never be made"):
        both.take({"calls": 6, "words": 1}, 0.0)
    with pytest.raises(ConfigurationError, match="can never be made"):
        MultiRateLimiter({"a": calls, "b": calls}).take(3, 0.0)
    assert both.report(0.0) == {"calls": 5.0, "words": 20}


def test_one_limiter_in_two_tiers_pays_twice():
    """And never more than it has."""
    calls = RateLimiter(5)
    both = MultiRateLimiter({"a": calls, "b": calls})
    assert takes(both, 0.0, 2)
    assert calls.report(0.0) == (1.0,)
    assert both.take(1, 0.0) == (0.2, "b")


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(0, 5), st.integers(0, 20)), max_size=60))
def test_several_tiers_never_let_more_through_than_the_scarcest(steps):
    """Whatever is asked of it, it lets through only what each of its tiers would have let through as well."""
    _, _, both = tiers()
    twin_calls, twin_words, _ = tiers()
    now = 0.0
    for pause, calls, words in steps:
        now += pause
        fits = twin_calls.wait_for(calls, now)[0] == 0 and twin_words.wait_for(words, now)[0] == 0
        assert takes(both, now, {"calls": calls, "words": words}) is fits
        if fits:
            twin_calls.pay(calls, now)
            twin_words.pay(words, now)


# ---------------------------------------------------------------- by hand


def test_by_hand_what_is_there_is_given_at_once():
    """Without waiting, and with figures of what is left."""
    bucket = RateLimiter(100, per=1000.0)
    bucket.acquire(40)
    assert bucket.try_acquire(60)
    assert not bucket.try_acquire(60)
    assert bucket.available == pytest.approx(0.0, abs=1.0)
    assert bucket.time_until(50) == pytest.approx(500.0, abs=10.0)
    window = WindowedRateLimiter(10, 1000.0)
    window.acquire(4)
    assert (window.used, window.remaining) == (4, 6)
    assert 0 < window.resets_in <= 1000.0
    _, _, both = tiers()
    both.acquire({"words": 5})
    assert both.available == {"calls": 5.0, "words": 15}


def test_by_hand_what_takes_too_long_is_refused_at_once():
    """A wait that cannot be kept is not begun: the error says how long it would take, and which tier is to blame."""
    bucket = RateLimiter(1, per=1000.0)
    both = MultiRateLimiter({"slow": bucket, "fast": RateLimiter(5)})
    both.acquire()
    with pytest.raises(RateLimitedError, match=r"tier 'slow' of MultiRateLimiter") as caught:
        both.acquire(timeout=100.0)
    assert caught.value.tier == "slow"
    assert caught.value.retry_after == pytest.approx(1000.0, abs=10.0)
    with pytest.raises(RateLimitedError, match=r"RateLimiter\(1, per=1000\)"):
        bucket.acquire(timeout=timedelta(seconds=1))


def test_by_hand_it_waits_until_there_is_enough():
    """Waiting ends with what was asked for, and not before there can be so much."""
    bucket, window = RateLimiter(1, per=0.02), WindowedRateLimiter(1, 0.02)
    for limiter in (bucket, window, MultiRateLimiter({"bucket": bucket, "window": window})):
        began = time.monotonic()
        for _ in range(4):
            limiter.acquire(timeout=60.0)
        assert time.monotonic() - began >= 2.5 * 0.02


@pytest.mark.parametrize(
    ("limiter", "most"),
    [(RateLimiter(10, per=10_000.0), 10), (WindowedRateLimiter(10, 10_000.0), 10), (Semaphore(10), 10)],
)
def test_many_threads_never_get_more_than_there_is(limiter, most):
    """Forty threads, ten let through."""
    got = []
    barrier = threading.Barrier(8)

    def grab():
        barrier.wait()
        for _ in range(5):
            taken = limiter.try_acquire()
            if taken:
                got.append(taken)

    threads = [threading.Thread(target=grab) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == most


# ---------------------------------------------------------------- semaphore


def test_a_semaphore_has_so_many_places():
    """Places that are given away come back, once each."""
    places = Semaphore(2)
    first, second = places.admit(0, 0.0), places.admit(0, 0.0)
    assert places.admit(0, 0.0) is None
    places.give_back(first, None, 0.0)
    places.give_back(first, None, 0.0)
    assert places.report(0.0) == 1
    places.give_back(second, True, 0.0)
    assert places.report(0.0) == 2


def test_a_semaphore_by_hand():
    """A permit is a context manager; a dropped one returns."""
    places = Semaphore(1)
    with places.acquire():
        assert places.free == 0
        assert places.try_acquire() is None
        with pytest.raises(ResourceError, match=r"Semaphore\(1\): none of its places came free within 0.01 s"):
            places.acquire(timeout=0.01)
    assert places.free == 1
    places.try_acquire()
    gc.collect()
    assert places.free == 1


def test_who_waits_for_a_place_gets_it_when_it_comes_free():
    """A thread that waits is woken by the one that leaves."""
    places = Semaphore(1)
    held = places.acquire()
    waits, got = threading.Event(), []

    def wait():
        waits.set()
        with places.acquire(timeout=60.0) as permit:
            got.append(permit)

    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait(60.0)
    held.release()
    thread.join(60.0)
    assert len(got) == 1
    assert places.free == 1


def test_places_go_to_those_that_wait_in_the_order_they_came():
    """As many as are free may go, who has no turn waits for them, and who leaves the line holds up nobody."""
    places = Semaphore(2)
    held = [places.admit(0, 0.0), places.admit(0, 0.0)]
    first, second, third = (places.stand_in_line(0, 0.0) for _ in range(3))
    assert places.stand_in_line(second, 0.0) == second
    places.give_back(held[0], None, 0.0)
    assert [places.admit(turn, 0.0) for turn in (0, third, second)] == [None] * 3
    places.give_back(held[1], None, 0.0)
    assert places.admit(third, 0.0) is None
    assert places.admit(second, 0.0)
    assert places.admit(third, 0.0) is None
    places.leave_line(first, 0.0)
    assert places.admit(0, 0.0) is None
    ticket = places.admit(third, 0.0)
    places.give_back(ticket, None, 0.0)
    assert places.admit(0, 0.0)


def test_threads_that_wait_are_let_in_in_order():
    """Each time the one that came first; one that gives up lets those behind it pass."""
    places, order, threads = Semaphore(1), [], []
    held = places.acquire()

    def wait(name, timeout):
        with suppress(ResourceError), places.acquire(timeout=timeout):
            order.append(name)

    for name, timeout in (("a", 60.0), ("gives up", 0.5), ("b", 60.0), ("c", 60.0)):
        stood = len(places._line)
        threads.append(threading.Thread(target=wait, args=(name, timeout)))
        threads[-1].start()
        await_that(lambda stood=stood: len(places._line) > stood, f"{name} should stand in line")
    threads[1].join()
    assert places.try_acquire() is None
    held.release()
    for thread in threads:
        thread.join(60.0)
    assert order == ["a", "b", "c"]
    assert places.try_acquire()


class Holds:
    """Gives its permit back when it goes, and is in a cycle with itself."""

    def __init__(self, permit):
        self.permit, self.itself = permit, self

    def __del__(self):
        self.permit.release()


def test_finalizers_may_give_permits_back_at_any_moment():
    """Garbage is collected in the midst of operations; what it holds returns without a deadlock."""
    # Enough for all: when garbage is collected differs between versions of Python.
    places = Semaphore(300)
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(300):
            Holds(places.acquire(timeout=60.0))
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert places.free == 300


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RateLimiter(0), "tokens must be a number above 0, got 0"),
        (lambda: RateLimiter(-1), "tokens"),
        (lambda: RateLimiter(math.nan), "tokens"),
        (lambda: RateLimiter("5"), "tokens"),
        (lambda: RateLimiter(5, per=0), "per must be a number above 0, got 0"),
        (lambda: RateLimiter(5, burst=-1), "burst must be a number of at least 0, got -1"),
        (lambda: WindowedRateLimiter(0, 1.0), "limit must be a number above 0, got 0"),
        (lambda: WindowedRateLimiter(1, 0), "window must be a number above 0, got 0"),
        (lambda: WindowedRateLimiter(1, math.inf), "window"),
        (lambda: MultiRateLimiter({}), "give a mapping of tiers"),
        (lambda: MultiRateLimiter([RateLimiter(1)]), "give a mapping of tiers"),
        (lambda: MultiRateLimiter({"a": Semaphore(1)}), "tier 'a' must be a RateLimiter"),
        (lambda: Semaphore(0), "n must be a whole number of at least 1, got 0"),
        (lambda: Semaphore(1.5), "n must be"),
        (lambda: Semaphore(True), "n must be"),
    ],
)
def test_w30_impossible_settings_are_errors(make, words):
    """A setting that cannot work is a ConfigurationError that names it."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert words in str(caught.value)


def test_lengths_of_time_may_be_timedeltas():
    """Durations are seconds or timedelta."""
    assert RateLimiter(1, per=timedelta(minutes=1)).per == 60.0
    assert WindowedRateLimiter(1, timedelta(hours=1)).window == 3600.0
