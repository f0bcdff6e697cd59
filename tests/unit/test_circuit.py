"""The breaker's decisions, with a clock that is an argument."""

from __future__ import annotations

import gc
import pickle
import threading
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from canobatch.circuit import CircuitBreaker, CircuitState
from canobatch.errors import CircuitOpenError, ConfigurationError

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


def breaker(threshold=2, reset=10.0, trials=1):
    return CircuitBreaker(threshold, reset, trials)


def call(guard, now, outcome):
    """One call that is let through and ends at once."""
    guard.give_back(guard.admit(now), outcome, now)


def tripped(now=0.0, **settings):
    """A breaker that has opened at ``now``."""
    guard = breaker(**settings)
    for _ in range(guard.failure_threshold):
        call(guard, now, False)
    assert guard.state is OPEN
    return guard


# ---------------------------------------------------------------- the states


def test_it_starts_closed_and_lets_calls_through():
    """A new breaker is closed."""
    guard = breaker()
    assert guard.state is CLOSED
    assert guard.refusal(0.0) is None


def test_it_opens_after_as_many_failures_in_a_row_as_it_takes():
    """Failures below the threshold do not trip it, the one that reaches it does."""
    guard = breaker(3)
    call(guard, 0.0, False)
    call(guard, 0.0, False)
    assert guard.state is CLOSED
    call(guard, 0.0, False)
    assert guard.state is OPEN


def test_the_default_trips_after_five_failures():
    """Without arguments: five failures, thirty seconds, one trial."""
    guard = CircuitBreaker()
    for _ in range(5):
        assert guard.state is CLOSED
        call(guard, 0.0, False)
    assert guard.state is OPEN
    assert guard.refusal(0.0) == 30.0
    assert guard.half_open_max_calls == 1


def test_a_success_begins_the_count_anew():
    """Only failures in a row count."""
    guard = breaker(2)
    for _ in range(5):
        call(guard, 0.0, False)
        call(guard, 0.0, True)
    assert guard.state is CLOSED


def test_an_open_one_refuses_and_says_for_how_long():
    """Until its time has passed every call is refused, with the seconds that are left."""
    guard = tripped(now=5.0, reset=10.0)
    with pytest.raises(CircuitOpenError, match=r"is open: 2 calls in a row have failed.* 8 s") as caught:
        guard.admit(7.0)
    assert caught.value.retry_after == 8.0
    assert caught.value.attempt == 0


def test_it_turns_half_open_with_the_first_call_after_its_time():
    """Reading the state never changes it; the first call after the time does."""
    guard = tripped(reset=10.0)
    assert guard.refusal(10.0) is None
    assert guard.report(100.0) == "open"
    guard.admit(10.0)
    assert guard.state is HALF_OPEN


def test_successful_trials_close_it():
    """As many successes as there may be trials close it, and it takes a full row of failures to open it again."""
    guard = tripped(trials=2)
    call(guard, 10.0, True)
    assert guard.state is HALF_OPEN
    call(guard, 10.0, True)
    assert guard.state is CLOSED
    call(guard, 10.0, False)
    assert guard.state is CLOSED


def test_one_failed_trial_opens_it_again():
    """A failed trial starts the time anew."""
    guard = tripped()
    call(guard, 12.0, False)
    assert guard.state is OPEN
    assert guard.refusal(12.0) == 10.0


def test_successes_of_an_earlier_half_open_time_do_not_count():
    """Each time it is half open it wants all successes."""
    guard = tripped(trials=2)
    call(guard, 10.0, True)
    call(guard, 10.0, False)
    call(guard, 20.0, True)
    assert guard.state is HALF_OPEN


def test_it_can_open_and_close_over_and_over():
    """The whole round works more than once."""
    guard = breaker(1)
    for start in (0.0, 100.0, 200.0):
        call(guard, start, False)
        assert guard.state is OPEN
        call(guard, start + 10.0, True)
        assert guard.state is CLOSED


# ---------------------------------------------------------------- trials and tickets


def test_only_so_many_trials_at_a_time():
    """When half open, calls beyond the trials are refused, and a trial that ends makes room."""
    guard = tripped(trials=2)
    first, _second = guard.admit(10.0), guard.admit(10.0)
    with pytest.raises(CircuitOpenError, match=r"half open: its 2 trial calls are under way"):
        guard.admit(10.0)
    guard.give_back(first, True, 11.0)
    guard.admit(11.0)


def test_w7_a_call_that_was_cut_counts_as_neither():
    """A killed loser neither trips a closed breaker nor mends its row of failures."""
    guard = breaker(2)
    call(guard, 0.0, False)
    for _ in range(10):
        call(guard, 0.0, None)
    assert guard.state is CLOSED
    call(guard, 0.0, False)
    assert guard.state is OPEN


def test_w7_a_trial_that_was_cut_gives_its_place_back():
    """A trial that ends as neither frees its place, and the breaker stays half open."""
    guard = tripped()
    call(guard, 10.0, None)
    assert guard.state is HALF_OPEN
    assert guard.refusal(10.0) is None


def test_w32_a_trial_that_hangs_does_not_keep_it_half_open_for_ever():
    """A trial that never ends loses its place: after ten reset times, and a minute at least."""
    guard = tripped(reset=1.0)
    guard.admit(1.0)
    assert guard.refusal(60.0) == pytest.approx(1.0)
    assert guard.refusal(61.0) is None
    guard = tripped(reset=10.0)
    guard.admit(10.0)
    assert guard.refusal(109.0) == pytest.approx(1.0)
    call(guard, 110.0, True)
    assert guard.state is CLOSED


@pytest.mark.parametrize("outcome", [True, False])
def test_what_began_in_an_earlier_state_says_nothing_any_more(outcome):
    """A call from before the trip neither closes a half-open breaker nor opens it again."""
    guard = breaker(1)
    old = guard.admit(0.0)
    call(guard, 0.0, False)
    guard.give_back(old, outcome, 1.0)
    assert guard.state is OPEN
    assert guard.refusal(1.0) == 9.0
    trial = guard.admit(10.0)
    guard.give_back(old, outcome, 10.0)
    assert guard.state is HALF_OPEN
    guard.give_back(trial, True, 10.0)
    assert guard.state is CLOSED


def test_a_trial_of_before_the_last_failure_is_ignored():
    """When one of two trials fails, the success of the other does not count."""
    guard = tripped(trials=2)
    good, bad = guard.admit(10.0), guard.admit(10.0)
    guard.give_back(bad, False, 10.0)
    guard.give_back(good, True, 10.0)
    assert guard.state is OPEN


# ---------------------------------------------------------------- by hand


def test_leaving_a_permit_s_with_tells_how_it_ended():
    """No exception is a success, an exception a failure."""
    guard = breaker(1)
    with guard.acquire():
        pass
    assert guard.state is CLOSED
    with pytest.raises(KeyError), guard.acquire():
        raise KeyError
    assert guard.state is OPEN
    with pytest.raises(CircuitOpenError):
        guard.acquire()


def test_a_permit_can_be_ended_by_hand_and_counts_once():
    """What counts is how it was ended first."""
    guard = breaker(1)
    permit = guard.acquire()
    permit.succeed()
    permit.fail()
    assert guard.state is CLOSED
    guard.acquire().fail()
    assert guard.state is OPEN


def test_w7_a_dropped_permit_counts_as_neither():
    """A permit that is forgotten returns by itself."""
    guard = tripped(reset=0.0)
    guard.acquire()
    gc.collect()
    assert guard.state is HALF_OPEN
    guard.acquire().succeed()
    assert guard.state is CLOSED


def test_a_permit_stays_where_it_is():
    """A permit refuses to be pickled."""
    with pytest.raises(TypeError, match="belongs to the process"):
        pickle.dumps(breaker().acquire())


def test_failures_from_many_threads_trip_it_once():
    """A breaker that many threads use at a time counts right."""
    guard = breaker(100, 1000.0)
    barrier = threading.Barrier(4)

    def fail():
        barrier.wait()
        for _ in range(25):
            guard.acquire().fail()

    threads = [threading.Thread(target=fail) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guard.state is OPEN


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"failure_threshold": 0}, "failure_threshold must be a whole number of at least 1, got 0"),
        ({"failure_threshold": 1.5}, "failure_threshold"),
        ({"failure_threshold": True}, "failure_threshold"),
        ({"half_open_max_calls": 0}, "half_open_max_calls must be a whole number of at least 1, got 0"),
        ({"half_open_max_calls": -1}, "half_open_max_calls"),
        ({"reset_timeout": -1}, "reset_timeout must be a number of seconds of at least 0, got -1"),
        ({"reset_timeout": float("nan")}, "reset_timeout"),
        ({"reset_timeout": float("inf")}, "reset_timeout"),
        ({"reset_timeout": "5"}, "reset_timeout"),
    ],
)
def test_w30_impossible_settings_are_errors(settings, words):
    """A setting that cannot work is a ConfigurationError that names it."""
    with pytest.raises(ConfigurationError, match="CircuitBreaker") as caught:
        CircuitBreaker(**settings)
    assert words in caught.value.problems[0]


def test_a_reset_time_may_be_a_timedelta():
    """Durations are seconds or timedelta."""
    assert CircuitBreaker(reset_timeout=timedelta(minutes=1)).reset_timeout == 60.0


# ---------------------------------------------------------------- what always holds


class Breakers(RuleBasedStateMachine):
    """Calls begin and end in any order, and time passes."""

    def __init__(self):
        super().__init__()
        self.guard = CircuitBreaker(3, 5.0, 2)
        self.now = 0.0
        self.calls = []
        #: Failures in a row, as far as they were let through in the state that is.
        self.last = CLOSED

    @rule(seconds=st.floats(0.0, 20.0))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def begin(self):
        refused = self.guard.refusal(self.now)
        if refused is None:
            self.calls.append(self.guard.admit(self.now))
        else:
            assert refused > 0
            with pytest.raises(CircuitOpenError):
                self.guard.admit(self.now)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), outcome=st.sampled_from([True, False, None]))
    def end(self, data, outcome):
        ticket = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        before = self.guard.state
        self.guard.give_back(ticket, outcome, self.now)
        after = self.guard.state
        assert before is not OPEN or after is OPEN
        if outcome is None:
            assert after is before
        if outcome is True:
            assert after in (before, CLOSED)

    @invariant()
    def never_too_many_trials(self):
        if self.guard.state is HALF_OPEN:
            young = [began for began in self.guard._calls.values() if began + 60.0 > self.now]
            assert len(young) <= 2

    @invariant()
    def an_open_one_turns_with_time(self):
        assert self.guard.refusal(self.now + 1000.0) is None


TestBreakers = Breakers.TestCase


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_it_opens_at_the_first_row_of_failures(outcomes, threshold):
    """It is open exactly from the first ``threshold`` failures in a row on."""
    guard = CircuitBreaker(threshold, 100.0)
    row = 0
    for outcome in outcomes:
        if row >= threshold:
            assert guard.state is OPEN
            return
        call(guard, 0.0, outcome)
        row = 0 if outcome else row + 1
    assert guard.state is (OPEN if row >= threshold else CLOSED)
