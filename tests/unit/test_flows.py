"""What becomes of ticks: the status of a flow, backoff and trip, overlaps, and ticks that were missed."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canobatch.errors import ConfigurationError
from canobatch.scheduler import BackoffPolicy, Cron, FlowStatus, Interval, Manual
from canobatch.scheduler.flows import (
    FlowState,
    Overlap,
    SkipReason,
    Verdict,
    info_of,
    next_tick,
    resolve_overlap,
    settle_due,
    start_delay,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
#: The largest number that ``random.random`` can return.
ALMOST_ONE = 1.0 - 2.0**-53


def after(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def fail(state: FlowState, policy: BackoffPolicy | None = None, *, pauses: bool = False) -> FlowState:
    """One run that begins and fails at noon."""
    return state.begun(NOON).failed(
        "S", 2.0, "ValueError: no", now=NOON, policy=policy, random=lambda: 0.5, pauses=pauses
    )


# -- backoff


@pytest.mark.parametrize(
    ("policy", "streaks"),
    [
        (BackoffPolicy(0.1, 2.0, 300, 0.0), {1: 0.1, 2: 0.2, 3: 0.4, 4: 0.8}),
        (BackoffPolicy(0.1, 10.0, 0.5, 0.0), {5: 0.5, 20: 0.5}),
        (BackoffPolicy(0.1, 2.0, 300, 0.0), {0: 0.1}),
        (BackoffPolicy(1.0, 2.0, 300, 0.0), {100_000: 300.0}),
        (BackoffPolicy(0.0, 2.0, 300, 0.0), {100_000: 0.0}),
        (BackoffPolicy(timedelta(minutes=1), 2.0, timedelta(minutes=3), 0.0), {1: 60.0, 2: 120.0, 3: 180.0}),
    ],
)
def test_the_rest_grows_with_each_failure_up_to_its_bound(policy, streaks):
    """Rest number k is initial × multiplier^(k-1), capped, also where the power overflows."""
    assert {streak: policy.delay(streak) for streak in streaks} == pytest.approx(streaks)


@given(st.floats(0, ALMOST_ONE))
def test_jitter_stays_within_its_part_and_the_bound(random):
    """Half of 1 s either way is 0.5 to 1.5 s, and never above max_delay."""
    assert 0.5 <= BackoffPolicy(1.0, jitter=0.5).delay(1, lambda: random) <= 1.5
    assert BackoffPolicy(1.0, max_delay=1.2, jitter=0.5).delay(1, lambda: random) <= 1.2


def test_the_default_policy():
    """1 s, doubling, up to 300 s, a tenth of it random, never tripping."""
    assert BackoffPolicy() == BackoffPolicy(1.0, 2.0, 300.0, 0.1, None)
    assert BackoffPolicy.with_trip(3) == BackoffPolicy(streak_limit=3)


@pytest.mark.parametrize(
    ("limit", "streak", "is_tripped"),
    [(None, 10**6, False), (3, 2, False), (3, 3, True), (3, 4, True), (0, 0, True), (0, 1, True)],
)
def test_a_policy_trips_at_its_limit(limit, streak, is_tripped):
    """As many failures in a row as the limit trip; without a limit none do."""
    assert BackoffPolicy(streak_limit=limit).is_tripped(streak) is is_tripped


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("initial", -1),
        ("initial", float("nan")),
        ("initial", "1"),
        ("multiplier", 0.5),
        ("max_delay", -1),
        ("jitter", 1.5),
        ("jitter", True),
        ("streak_limit", -1),
        ("streak_limit", 1.5),
        ("streak_limit", True),
    ],
)
def test_an_impossible_policy_is_refused(name, value):
    """The error names the field and the value."""
    with pytest.raises(ConfigurationError, match=f"{name} must be .* got {value!r}"):
        BackoffPolicy(**{name: value})


# -- status


def test_a_new_flow_is_idle():
    """Nothing has run, nothing is wrong."""
    state = FlowState()
    assert (state.status, state.run_count, state.last_run, state.refusal(NOON)) == (FlowStatus.IDLE, 0, None, None)


def test_a_success_completes():
    """Running while it runs, then completed, with the exit state and the duration."""
    running = FlowState().begun(NOON)
    assert (running.status, running.run_count, running.last_run) == (FlowStatus.RUNNING, 1, NOON)
    done = running.succeeded("DONE", 2.5, now=NOON)
    assert (done.status, done.last_state, done.last_duration, done.last_error) == (
        FlowStatus.COMPLETED,
        "DONE",
        2.5,
        None,
    )


def test_a_failure_without_a_policy_leaves_the_flow_idle():
    """Backoff is off unless asked for: the streak and the error are kept, the next tick runs."""
    state = fail(fail(FlowState()))
    assert (state.status, state.failure_streak, state.last_error) == (FlowStatus.IDLE, 2, "ValueError: no")
    assert (state.last_state, state.refusal(NOON)) == ("S", None)


def test_failures_rest_longer_and_longer_then_trip():
    """Backoff until now + delay(streak); at the limit tripped, without an end."""
    policy = BackoffPolicy(10, jitter=0, streak_limit=3)
    first = fail(FlowState(), policy)
    assert (first.status, first.eligible_at) == (FlowStatus.BACKOFF, after(10))
    assert first.refusal(after(9)) is SkipReason.BACKOFF
    assert first.refusal(after(10)) is None
    second = fail(first, policy)
    assert (second.status, second.eligible_at) == (FlowStatus.BACKOFF, after(20))
    third = fail(second, policy)
    assert (third.status, third.eligible_at, third.failure_streak) == (FlowStatus.TRIPPED, None, 3)
    assert third.refusal(after(10**9)) is SkipReason.TRIPPED


def test_a_success_ends_the_streak():
    """After it the flow is completed, and the next failure is the first."""
    state = fail(FlowState(), BackoffPolicy()).begun(NOON).succeeded("DONE", 1.0, now=NOON)
    assert (state.status, state.failure_streak, state.eligible_at) == (FlowStatus.COMPLETED, 0, None)


def test_a_cancel_is_neither_success_nor_failure():
    """The flow is idle again; streak and backoff are as they were."""
    failed = fail(FlowState(), BackoffPolicy(10, jitter=0))
    state = failed.begun(NOON).cancelled("S", 1.0, "cancelled", now=NOON)
    assert (state.status, state.failure_streak, state.eligible_at) == (FlowStatus.IDLE, 1, after(10))


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_reset_forgets_failures_and_trips(failures):
    """From backoff, trip or anything else a reset leads to idle with no streak."""
    state = FlowState()
    for _ in range(failures):
        state = fail(state, BackoffPolicy.with_trip(2))
    assert state.reset().status is FlowStatus.IDLE
    assert (state.reset().failure_streak, state.reset().refusal(NOON)) == (0, None)


def test_a_reset_while_running_lets_the_run_go_on():
    """It stays running with no streak; if the run then fails, that is the first failure."""
    state = fail(FlowState(), BackoffPolicy.with_trip(2)).begun(NOON).reset()
    assert (state.status, state.failure_streak) == (FlowStatus.RUNNING, 0)
    ended = state.failed("S", 1.0, "no", now=NOON, policy=BackoffPolicy.with_trip(2), random=lambda: 0.5, pauses=False)
    assert (ended.status, ended.failure_streak) == (FlowStatus.BACKOFF, 1)


def test_a_pause_shows_when_the_run_has_ended():
    """Paused while running is running, then paused; unpaused it is what it would have been."""
    state = FlowState().begun(NOON).paused()
    assert state.status is FlowStatus.RUNNING
    ended = state.succeeded("DONE", 1.0, now=NOON)
    assert (ended.status, ended.refusal(NOON)) == (FlowStatus.PAUSED, SkipReason.PAUSED)
    assert ended.unpaused().status is FlowStatus.COMPLETED


def test_a_failure_may_pause():
    """With pause_on_failure the flow is paused, whatever its backoff; a success does not pause."""
    for policy in (None, BackoffPolicy()):
        assert fail(FlowState(), policy, pauses=True).status is FlowStatus.PAUSED


def test_several_runs_are_running_until_the_last_has_ended():
    """Two runs at a time, as with allow, end one by one."""
    state = FlowState().begun(NOON).begun(after(1)).succeeded("DONE", 1.0, now=NOON)
    assert (state.status, state.running) == (FlowStatus.RUNNING, 1)
    assert state.succeeded("DONE", 1.0, now=NOON).status is FlowStatus.COMPLETED


def test_info_tells_what_a_state_holds():
    """FlowInfo has the figures and the next run, and survives a pickle."""
    state = fail(FlowState(), BackoffPolicy(90, jitter=0))
    info = info_of("etl", state, Interval(60, anchor=NOON), NOON)
    assert (info.id, info.status, info.run_count, info.last_run) == ("etl", FlowStatus.BACKOFF, 1, NOON)
    assert (info.last_state, info.last_duration, info.last_error) == ("S", 2.0, "ValueError: no")
    assert (info.failure_streak, info.next_run) == (1, after(120))
    assert pickle.loads(pickle.dumps(info)) == info


def test_a_flow_that_is_off_is_not_due():
    """A paused flow and a tripped one have no next run; neither has a manual one."""
    hourly = Interval(3600, anchor=NOON)
    assert info_of("f", FlowState().paused(), hourly, NOON).next_run is None
    assert info_of("f", fail(FlowState(), BackoffPolicy.with_trip(1)), hourly, NOON).next_run is None
    assert info_of("f", FlowState(), Manual(), NOON).next_run is None
    assert info_of("f", FlowState(), hourly, NOON).next_run == after(3600)


def test_the_next_tick_waits_for_the_end_of_a_backoff():
    """A grid's first tick at or after it; with a fixed delay that very instant, if it is later."""
    resting = fail(FlowState(), BackoffPolicy(100, jitter=0))
    assert next_tick(Interval(50, anchor=NOON), NOON, resting) == after(100)
    assert next_tick(Interval(60, anchor=NOON), NOON, resting) == after(120)
    assert next_tick(Cron("* * * * *"), NOON, resting) == after(120)
    assert next_tick(Interval(60, mode="fixed_delay", anchor=NOON), NOON, resting) == after(100)
    assert next_tick(Interval(200, mode="fixed_delay", anchor=NOON), NOON, resting) == after(200)


# -- overlaps


@pytest.mark.parametrize("policy", ["skip", "queue_one", "queue_all", "cancel_old", "kill_old", "allow"])
def test_what_meets_nothing_starts(policy):
    """With nothing running or waiting every policy starts what is due."""
    assert resolve_overlap(policy, 0, 0) == Overlap(Verdict.START)


@pytest.mark.parametrize(
    ("policy", "running", "waiting", "expected"),
    [
        ("skip", 1, 0, Overlap(Verdict.SKIP)),
        ("queue_one", 1, 0, Overlap(Verdict.QUEUE)),
        ("queue_one", 1, 1, Overlap(Verdict.SKIP)),
        ("queue_all", 1, 7, Overlap(Verdict.QUEUE)),
        ("cancel_old", 1, 0, Overlap(Verdict.QUEUE, "cancel", drops_waiting=True)),
        ("cancel_old", 1, 1, Overlap(Verdict.QUEUE, "cancel", drops_waiting=True)),
        ("kill_old", 1, 0, Overlap(Verdict.QUEUE, "kill", drops_waiting=True)),
        ("allow", 3, 0, Overlap(Verdict.START)),
    ],
)
def test_what_meets_a_run(policy, running, waiting, expected):
    """Each of the six policies, with a run and with one that waits."""
    assert resolve_overlap(policy, running, waiting) == expected


# -- ticks that came due

MINUTELY = Interval(60, anchor=NOON)


def settled(schedule, since, now, policy="skip", window=86400.0):
    """What is run, and what is missed as (first, last, count), in seconds after noon."""
    due = settle_due(schedule, after(since), after(now), policy=policy, window=window)
    if due is None:
        return None
    seconds = [(tick - NOON).total_seconds() for tick in due.ticks]
    missed = due.missed
    if missed is None:
        return seconds, None
    return seconds, ((missed.first - NOON).total_seconds(), (missed.last - NOON).total_seconds(), missed.count)


def test_nothing_due_is_nothing():
    """Before the next tick there is nothing to settle."""
    assert settled(MINUTELY, 0, 59.999) is None
    assert settled(Manual(), 0, 10**6) is None


@pytest.mark.parametrize("policy", ["skip", "last", "all"])
def test_a_tick_in_time_runs_whatever_the_policy(policy):
    """What is due now, or a little late on a busy machine, is not missed."""
    assert settled(MINUTELY, 0, 60, policy) == ([60], None)
    assert settled(MINUTELY, 0, 63, policy) == ([60], None)
    assert settled(Cron("0 13 * * *"), 0, 3600 + 59, policy, window=0) == ([3600], None)


@pytest.mark.parametrize(
    ("policy", "window", "expected"),
    [
        # Down from 12:00 to 13:30; hourly at full hours, so 13:00 is half an hour late.
        ("skip", 86400, ([], (3600, 3600, 1))),
        ("last", 86400, ([3600], None)),
        ("last", 600, ([], (3600, 3600, 1))),
        ("all", 86400, ([3600], None)),
        ("all", 600, ([], (3600, 3600, 1))),
    ],
)
def test_one_missed_tick(policy, window, expected):
    """Skipped, or run late if it is not older than the window."""
    assert settled(Interval(3600, anchor=NOON), 0, 5400, policy, window) == expected


@pytest.mark.parametrize(
    ("policy", "window", "expected"),
    [
        ("skip", 86400, ([], (3600, 18000, 5))),
        ("last", 86400, ([18000], (3600, 14400, 4))),
        ("all", 86400, ([3600, 7200, 10800, 14400, 18000], None)),
        ("all", 7200, ([14400, 18000], (3600, 10800, 3))),
    ],
)
def test_many_missed_ticks(policy, window, expected):
    """Each tick is either run or counted as missed, with the first and last of those."""
    assert settled(Interval(3600, anchor=NOON), 0, 5.4 * 3600, policy, window) == expected


def test_a_week_of_seconds_is_accounted_for_without_a_storm():
    """604800 missed ticks are one record, of more than can be counted, and the one in time runs."""
    assert settled(Interval(1, anchor=NOON), 0, 604800.5) == ([604800], (1, 604799, None))
    assert settled(Cron("* * * * * *"), 0, 604800.5, "last") == ([604800], (1, 604799, None))


def test_a_fixed_delay_misses_nothing():
    """It is due once, however late, as its ticks count from the end of the run before."""
    delayed = Interval(60, mode="fixed_delay", anchor=NOON)
    for policy in ("skip", "last", "all"):
        assert settled(delayed, 5, 10**6, policy, window=0) == ([65], None)


@given(
    st.sampled_from([Interval(37, anchor=NOON), Cron("*/7 * * * *"), Cron("0 */5 * * *"), Cron("30 0-9 3 * * *")]),
    st.integers(0, 100_000),
    st.integers(0, 30_000),
    st.sampled_from(["skip", "last", "all"]),
    st.integers(0, 30_000),
)
def test_every_tick_is_run_or_missed_and_none_twice(schedule, since, span, policy, window):
    """What is run and what is missed are together exactly the ticks that came due, in order."""
    start, now = after(since), after(since + span)
    ticks = [tick for tick in schedule.preview(start, 900) if tick <= now]
    due = settle_due(schedule, start, now, policy=policy, window=float(window))
    if not ticks:
        assert due is None
        return
    missed = due.missed
    skipped = [] if missed is None else [tick for tick in ticks if missed.first <= tick <= missed.last]
    assert skipped + list(due.ticks) == ticks
    assert len(skipped) == (0 if missed is None else missed.count)
    assert due.last == ticks[-1]


def test_jitter_puts_a_start_off_by_less_than_itself():
    """Without jitter nothing is put off; with it by a random part."""
    assert start_delay(0, lambda: 0.7) == timedelta(0)
    assert start_delay(10, lambda: 0.7) == timedelta(seconds=7)
