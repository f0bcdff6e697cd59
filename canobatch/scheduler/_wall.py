"""Between instants and what the clock on the wall shows in a zone. Pure.

A wall time is a naive datetime. A change of the zone's offset forwards makes a gap of wall times that no clock
shows; one backwards makes wall times that it shows twice.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

#: No zone changes its offset twice within it.
_STEP = timedelta(hours=12)
_SECOND = timedelta(seconds=1)


def offset_at(zone: tzinfo, instant: datetime) -> timedelta:
    """Return the offset from UTC that holds in ``zone`` at an instant."""
    offset = instant.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def first_change(zone: tzinfo, after: datetime, until: datetime) -> datetime | None:
    """Return the first whole second in ``(after, until]`` with another offset than the one at ``after``."""
    offset = offset_at(zone, after)
    low = after
    while low < until:
        high = min(low + _STEP, until)
        if offset_at(zone, high) != offset:
            return _bisect(zone, offset, low, high)
        low = high
    return None


def _bisect(zone: tzinfo, offset: timedelta, low: datetime, high: datetime) -> datetime:
    """Return the whole second in ``(low, high]`` from which the offset is no longer ``offset``."""
    while high - low > _SECOND:
        middle = low + (high - low) / 2
        if offset_at(zone, middle) == offset:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)


def first_showing(zone: tzinfo, wall: datetime) -> datetime:
    """Return the first instant at which the clock shows ``wall``; for a time in a gap, the instant after the gap."""
    before, after = (wall.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    assert before is not None
    assert after is not None
    instant = wall.replace(tzinfo=UTC) - before
    if after <= before or offset_at(zone, instant) == before:
        return instant
    return _bisect(zone, before, wall.replace(tzinfo=UTC) - after, instant)


def is_second_showing(zone: tzinfo, instant: datetime) -> bool:
    """Return whether the clock has shown this wall time before, until it was set back."""
    return instant.astimezone(zone).fold == 1


def end_of_second_showing(zone: tzinfo, instant: datetime) -> datetime:
    """Return the first wall time after those that are shown for the second time at ``instant``."""
    local = instant.astimezone(zone)
    offset, before = local.utcoffset(), local.replace(fold=0).utcoffset()
    assert offset is not None
    assert before is not None
    change = _bisect(zone, before, instant - (before - offset) - _SECOND, instant)
    return change.replace(tzinfo=None) + before
