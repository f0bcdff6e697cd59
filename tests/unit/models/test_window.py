"""Windows: full by count, over by time on a fixed grid, or whichever comes first."""

from __future__ import annotations

from datetime import timedelta

import pytest

from canobatch.errors import ConfigurationError
from canobatch.models import Count, Duration, Window


def test_a_count_closes_when_it_is_full():
    """A window of three is full at three, and never over by time."""
    window = Count(3)
    assert [window.is_full(n) for n in (0, 2, 3, 4)] == [False, False, True, True]
    assert window.boundary(since=0.0, now=5.0) is None


def test_a_duration_closes_at_the_next_multiple():
    """The boundary is the next multiple of the duration since the start."""
    window = Duration(2.0)
    assert window.boundary(since=10.0, now=10.0) == 12.0
    assert window.boundary(since=10.0, now=11.9) == 12.0
    assert window.boundary(since=10.0, now=12.0) == 14.0
    assert not window.is_full(1_000_000)


def test_w13_boundaries_do_not_drift():
    """A flush that takes its time does not move the boundaries after it, and empty intervals are passed over."""
    window = Duration(1.0)
    now, boundaries = 100.0, []
    for _ in range(5):
        boundary = window.boundary(since=100.0, now=now)
        boundaries.append(boundary)
        now = boundary + 0.3
    assert boundaries == [101.0, 102.0, 103.0, 104.0, 105.0]
    assert window.boundary(since=100.0, now=150.5) == 151.0


def test_w13_a_window_may_close_by_count_or_time():
    """A count and a duration together close at whichever comes first."""
    window = Count(100) | Duration(timedelta(seconds=5))
    assert window == Duration(5.0) | Count(100) == Window(100, 5.0)
    assert window.is_full(100)
    assert window.boundary(since=0.0, now=1.0) == 5.0


@pytest.mark.parametrize("make", [lambda: Count(0), lambda: Count(-1), lambda: Count(1.5), lambda: Count(True)])
def test_w30_an_impossible_count_is_refused(make):
    """A count is a whole number of at least 1, and is not silently made one."""
    with pytest.raises(ConfigurationError, match="Count must be a whole number of at least 1"):
        make()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1", True])
def test_w30_an_impossible_duration_is_refused(seconds):
    """A duration is above 0 seconds."""
    with pytest.raises(ConfigurationError, match="Duration must be above 0 seconds"):
        Duration(seconds)


def test_a_window_goes_with_windows_only():
    """What is no window cannot be combined with one."""
    with pytest.raises(TypeError, match="unsupported operand"):
        Count(5) | 5


def test_a_window_needs_one_of_both():
    """A window that never closes is refused."""
    with pytest.raises(ConfigurationError, match="needs a count or a duration"):
        Window()
