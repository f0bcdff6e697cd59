"""Which lane is served next, and how much a worker is sent at a time."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canobatch.pool._assign import AHEAD, MOST, Pace, Share, choose, should_yield


def pace_of(*durations):
    """Return a pace that has seen these durations."""
    pace = Pace()
    for duration in durations:
        pace.note(duration)
    return pace


# -- how much at a time


def test_nothing_is_sent_ahead_before_anything_is_known():
    """Until a call has ended a worker holds one."""
    assert pace_of().window(1_000_000, 1) == 1


def test_long_calls_go_one_at_a_time():
    """A call as long as what a worker should hold ahead is sent alone, however many wait."""
    assert pace_of(AHEAD).window(10_000, 2) == 1
    assert pace_of(10.0).window(10_000, 2) == 1


def test_short_calls_go_in_windows_of_some_milliseconds():
    """A worker holds about as many short calls as take the time that hides a round trip."""
    window = pace_of(AHEAD / 10).window(10_000, 2)
    assert 10 <= window <= 11


def test_the_end_of_a_split_is_shared_out_finely():
    """The fewer calls wait, the fewer one worker gets, down to one, so that none idles while another has many."""
    pace = pace_of(1e-6)
    windows = [pace.window(pending, 4) for pending in (100_000, 800, 80, 8, 1, 0)]
    assert windows == sorted(windows, reverse=True)
    assert windows[2:] == [10, 1, 1, 1]


def test_a_window_has_an_end():
    """However short the calls, a worker holds no more than the most."""
    assert pace_of(0.0).window(10**9, 1) == MOST


def test_one_slow_call_ends_windows_but_not_for_good():
    """After a slow call calls go one at a time, and after many fast ones in windows again."""
    pace = pace_of(*[1e-5] * 50, 0.005)
    assert pace.window(10_000, 2) == 1
    for _ in range(100):
        pace.note(1e-5)
    assert pace.window(10_000, 2) > 1


def test_recent_calls_count_more():
    """The mean follows the calls when they become faster or slower."""
    pace = pace_of(*[1e-3] * 100)
    for _ in range(100):
        pace.note(1e-5)
    assert pace.mean == pytest.approx(1e-5, rel=0.1)


@given(
    durations=st.lists(st.floats(0, 100), max_size=30),
    pending=st.integers(0, 10**9),
    workers=st.integers(0, 1000),
)
def test_a_window_is_always_between_one_and_the_most(durations, pending, workers):
    """Whatever was seen, a window is at least 1, at most MOST, and 1 when any recent call was slow."""
    pace = pace_of(*durations)
    window = pace.window(pending, workers)
    assert 1 <= window <= MOST
    if durations and durations[-1] >= AHEAD:
        assert window == 1


# -- who is served


@dataclass
class Lane:
    """A lane as far as choosing goes."""

    share: Share
    turn: int = 0
    pending: int = 0
    served: list[int] = field(default_factory=list)


def share(busy=0, turn=0):
    """Return what a run has of the pool."""
    made = Share()
    made.busy, made.turn = busy, turn
    return made


def test_nobody_waits():
    """Without lanes there is none to serve."""
    assert choose([]) is None


def test_the_run_with_the_fewest_workers_is_served_first():
    """A run that has fewer workers goes before one that waited longer."""
    many, few = Lane(share(busy=2, turn=1)), Lane(share(busy=1, turn=9))
    assert choose([many, few]) is few


def test_among_equals_the_longest_waiting_run_is_served():
    """Of runs with as many workers the one that was served longest ago is next."""
    late, early = Lane(share(turn=5)), Lane(share(turn=3))
    assert choose([late, early]) is early


def test_lanes_of_one_run_take_turns():
    """Of two lanes of one run the one that was served longest ago is next."""
    one = share()
    late, early = Lane(one, turn=5), Lane(one, turn=3)
    assert choose([late, early]) is early


def test_a_worker_yields_to_a_run_that_has_fewer():
    """A worker runs dry for another run only if that has fewer workers, never for its own."""
    mine = Lane(share(busy=2))
    assert should_yield(mine, [Lane(share(busy=1))])
    assert should_yield(mine, [Lane(mine.share), Lane(share(busy=0))])
    assert not should_yield(mine, [Lane(share(busy=2))])
    assert not should_yield(mine, [Lane(mine.share)])
    assert not should_yield(mine, [])


@given(
    lanes_per_run=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    workers=st.integers(1, 6),
    steps=st.integers(20, 60),
    data=st.data(),
)
def test_workers_are_shared_out_evenly(lanes_per_run, workers, steps, data):
    """While every run has calls waiting, none has many more workers than another, and none is passed over."""
    turns = itertools.count(1)
    lanes = [Lane(run) for run, count in ((share(), n) for n in lanes_per_run) for _ in range(count)]
    runs = list({id(lane.share): lane.share for lane in lanes}.values())
    busy = []
    served = Counter()
    for step in range(steps):
        if len(busy) == workers:
            done = busy.pop(data.draw(st.integers(0, workers - 1)))
            done.share.busy -= 1
        lane = choose(lanes)
        lane.turn = lane.share.turn = next(turns)
        lane.share.busy += 1
        busy.append(lane)
        served[id(lane.share)] += 1
        if step >= workers:
            assert max(run.busy for run in runs) - min(run.busy for run in runs) <= 1 + workers // len(runs)
    if steps >= 4 * len(runs) * workers:
        assert set(served) == {id(run) for run in runs}
