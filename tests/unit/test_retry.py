"""The arithmetic of retries."""

from __future__ import annotations

import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canobatch.errors import ConfigurationError
from canobatch.retry import Retry

#: The largest number that ``random.random`` can return.
ALMOST_ONE = 1.0 - 2.0**-53


def test_no_retry_means_one_attempt():
    """Without retries a task has one attempt."""
    assert Retry.none().max_attempts == 1


@pytest.mark.parametrize("retry", [Retry.fixed(3, 0.5), Retry.exponential(3)])
def test_the_first_attempt_is_no_retry(retry):
    """Three retries make four attempts."""
    assert retry.max_attempts == 4


def test_fixed_delays_are_all_the_same():
    """A fixed retry waits as long before the last retry as before the first, whatever the random number."""
    retry = Retry.fixed(5, 0.25)
    assert {retry.delay(n, lambda: random) for n in range(1, 6) for random in (0.0, 0.5, ALMOST_ONE)} == {0.25}


def test_exponential_delays_grow_by_the_multiplier():
    """Each delay is the one before times the multiplier, starting from the base."""
    retry = Retry.exponential(4, base=0.1, multiplier=3.0, jitter=0.0)
    assert [retry.delay(n) for n in range(1, 5)] == pytest.approx([0.1, 0.3, 0.9, 2.7])


def test_delays_stop_growing_at_the_maximum():
    """No delay is longer than max_delay."""
    retry = Retry.exponential(10, base=1.0, multiplier=2.0, max_delay=5.0, jitter=0.0)
    assert [retry.delay(n) for n in range(1, 6)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_jitter_goes_both_ways():
    """A random number of 0, a half, and nearly 1 gives the delay less the jitter, exact, and plus the jitter."""
    retry = Retry.exponential(1, base=10.0, max_delay=100.0, jitter=0.2)
    assert [retry.delay(1, lambda value=value: value) for value in (0.0, 0.5, ALMOST_ONE)] == pytest.approx([8, 10, 12])


def test_the_cap_comes_after_the_jitter():
    """Jitter upwards never lifts a delay above max_delay, and jitter downwards is not lost to the cap."""
    retry = Retry.exponential(1, base=10.0, max_delay=10.0, jitter=0.5)
    assert retry.delay(1, lambda: ALMOST_ONE) == 10.0
    assert retry.delay(1, lambda: 0.0) == 5.0


def test_a_huge_number_of_retries_does_not_overflow():
    """Growth beyond the largest float is the maximum, not an error."""
    assert Retry.exponential(10**6, multiplier=10.0, max_delay=7.0, jitter=0.0).delay(10**6) == 7.0


def test_no_base_means_no_wait():
    """A base of zero retries at once, every time."""
    assert [Retry.exponential(5000, base=0.0).delay(n, lambda: ALMOST_ONE) for n in (1, 2, 5000)] == [0.0, 0.0, 0.0]


def test_durations_may_be_timedeltas():
    """A delay and its maximum may be given as timedelta, and mean the same as in seconds."""
    assert Retry.fixed(1, timedelta(milliseconds=500)).delay(1) == 0.5
    given_as_seconds = Retry.exponential(3, base=0.25, max_delay=2.0)
    assert Retry.exponential(3, base=timedelta(milliseconds=250), max_delay=timedelta(seconds=2)) == given_as_seconds


@given(
    base=st.floats(0, 1e6),
    multiplier=st.floats(1, 1e3),
    max_delay=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
    number=st.integers(1, 10_000),
    random=st.floats(0, 1, exclude_max=True),
)
def test_every_delay_is_within_its_bounds(base, multiplier, max_delay, jitter, number, random):
    """For any valid settings a delay is between 0 and max_delay."""
    retry = Retry.exponential(number, base, multiplier, max_delay, jitter)
    assert 0.0 <= retry.delay(number, lambda: random) <= max_delay


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"retries": -1}, "retries"),
        ({"retries": 1.5}, "retries"),
        ({"retries": True}, "retries"),
        ({"retries": 1, "base": -0.1}, "delay"),
        ({"retries": 1, "base": float("nan")}, "delay"),
        ({"retries": 1, "multiplier": 0.5}, "multiplier"),
        ({"retries": 1, "multiplier": float("nan")}, "multiplier"),
        ({"retries": 1, "max_delay": -1.0}, "max_delay"),
        ({"retries": 1, "max_delay": float("nan")}, "max_delay"),
        ({"retries": 1, "jitter": 1.1}, "jitter"),
        ({"retries": 1, "jitter": -0.1}, "jitter"),
        ({"retries": 1, "jitter": float("nan")}, "jitter"),
    ],
)
def test_impossible_settings_are_refused(settings, named):
    """A setting that can never work is a ConfigurationError that names it and the value."""
    with pytest.raises(ConfigurationError, match=named) as caught:
        Retry.exponential(**settings)
    (value,) = (value for key, value in settings.items() if key != "retries" or len(settings) == 1)
    assert repr(value) in str(caught.value)


def test_all_problems_are_listed_at_once():
    """One error lists every impossible setting."""
    with pytest.raises(ConfigurationError) as caught:
        Retry.exponential(-1, base=-1.0, jitter=2.0)
    assert len(caught.value.problems) == 3


def test_a_negative_fixed_delay_is_refused():
    """A fixed delay below zero is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match="delay"):
        Retry.fixed(1, -0.5)


def test_it_is_a_value():
    """Retries with the same settings are equal, also after pickling, and cannot be changed."""
    retry = Retry.exponential(3)
    assert retry == Retry.exponential(3) == pickle.loads(pickle.dumps(retry))
    with pytest.raises(AttributeError):
        retry.retries = 5
