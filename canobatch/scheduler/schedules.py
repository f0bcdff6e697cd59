"""When a flow is due: intervals, cron expressions, or never by itself. Pure: an instant in, the next one out.

Instants are aware datetimes; those that come out are UTC.
"""

from __future__ import annotations

import copy
import functools
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter

from canobatch.errors import ConfigurationError
from canobatch.scheduler import _wall
from canobatch.scheduler._cron_fields import CronFields, parse_cron

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT = timedelta(microseconds=1)
_SHORTEST = timedelta(milliseconds=1)


class Schedule:
    """What all schedules can be asked."""

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the first tick strictly after ``instant``; None if there is none.

        Raises:
            ConfigurationError: ``instant`` has no zone.
        """
        raise NotImplementedError

    def preview(self, instant: datetime, count: int) -> list[datetime]:
        """Return the next ``count`` ticks after ``instant``, or as many as there are."""
        ticks: list[datetime] = []
        while len(ticks) < count:
            tick = self.next_after(ticks[-1] if ticks else instant)
            if tick is None:
                break
            ticks.append(tick)
        return ticks

    def anchored(self, instant: datetime) -> Self:
        """Return the schedule as it is for a flow that was first started at ``instant``."""
        _utc(instant)
        return self


@dataclass(frozen=True)
class Manual(Schedule):
    """Never due by itself; runs when triggered."""

    def next_after(self, instant: datetime) -> None:
        """Return None."""
        _utc(instant)

    def __str__(self) -> str:
        return "manual"


@dataclass(frozen=True)
class Interval(Schedule):
    """Due every so many seconds.

    Args:
        every: Seconds, at least 0.001.
        mode: "fixed_rate": at anchor + k × every, however long a run takes; "fixed_delay": ``every`` after the
            end of the run before.
        start: Whether the first tick is at the anchor ("now") or one interval later ("after_interval").
        anchor: When the flow was first started; None: the epoch.

    Raises:
        ConfigurationError: An argument is impossible.

    Example:
        >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
        >>> print(Interval(90, anchor=noon).next_after(noon))
        2026-01-01 12:01:30+00:00
    """

    every: float | timedelta
    mode: Literal["fixed_rate", "fixed_delay"] = "fixed_rate"
    start: Literal["now", "after_interval"] = "now"
    anchor: datetime | None = None
    _every: timedelta = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in ("fixed_rate", "fixed_delay"):
            raise ConfigurationError(f"mode must be 'fixed_rate' or 'fixed_delay', got {self.mode!r}")
        if self.start not in ("now", "after_interval"):
            raise ConfigurationError(f"start must be 'now' or 'after_interval', got {self.start!r}")
        if self.anchor is not None:
            object.__setattr__(self, "anchor", _utc(self.anchor))
        object.__setattr__(self, "_every", _interval(self.every))

    @property
    def seconds(self) -> float:
        """The interval in seconds."""
        return self._every.total_seconds()

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the first tick strictly after ``instant``; for a fixed delay, ``instant`` is the end of a run."""
        instant = _utc(instant)
        anchor = self.anchor or _EPOCH
        try:
            first = anchor if self.start == "now" else anchor + self._every
            if instant < first:
                return first
            if self.mode == "fixed_delay":
                return instant + self._every
            return anchor + ((instant - anchor) // self._every + 1) * self._every
        except OverflowError:
            return None

    def anchored(self, instant: datetime) -> Self:
        """Return it with its anchor, if it has none yet."""
        return replace(self, anchor=instant) if self.anchor is None else self

    def __str__(self) -> str:
        return f"every {self.seconds:g} s, {self.mode.replace('_', ' ')}"


@dataclass(frozen=True)
class Cron(Schedule):
    """Due by a cron expression on the wall clock of a zone.

    Five fields (minute hour day-of-month month day-of-week), or six with seconds first; names of months and
    weekdays; ``@daily`` and the like; Sunday is 0 and 7; ``L`` is a month's last day, ``FRI#2`` its second Friday.
    If both days are restricted, either suffices; if one begins with ``*``, both must match.

    Where clocks are changed it does as cron does: times of day (neither minute nor hour begins with ``*``) that
    are skipped fire once right after the gap, and those shown twice fire the first time only. With a wildcard the
    spacing is kept: nothing fires for a wall time that is skipped, and one that is shown twice fires twice.

    Args:
        expression: The expression.
        tz: An IANA name such as "Europe/London", or a `tzinfo`.

    Raises:
        ConfigurationError: The expression is wrong or never fires, or the zone is unknown.

    Example:
        >>> spring = datetime(2026, 3, 8, tzinfo=UTC)
        >>> print(Cron("30 2 * * *", "America/New_York").next_after(spring))
        2026-03-08 07:00:00+00:00
    """

    expression: str
    tz: str | tzinfo = "UTC"
    _zone: tzinfo = field(init=False, repr=False, compare=False)
    _fields: CronFields = field(init=False, repr=False, compare=False)
    _walls: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_zone", _zone(self.tz))
        fields = parse_cron(self.expression)
        object.__setattr__(self, "_fields", fields)
        # The fields are numbers by now; croniter sees neither steps nor ranges, whose meaning it changed before.
        walls = croniter(fields.text, _EPOCH.replace(tzinfo=None), day_or=fields.either_day, second_at_beginning=True)
        object.__setattr__(self, "_walls", walls)
        if self._next_wall(datetime(2000, 1, 1)) is None:  # noqa: DTZ001 - a wall time
            raise ConfigurationError(f"cron {self.expression!r} never fires: no month has such a day")

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the first tick strictly after ``instant``."""
        instant = _utc(instant)
        # Zones that are objects need not have a hash.
        return _known_next(self, instant) if isinstance(self.tz, str) else self._next(instant)

    def _next(self, instant: datetime) -> datetime | None:
        try:
            return self._next_spaced(instant) if self._fields.is_wildcard else self._next_time_of_day(instant)
        except OverflowError:
            return None

    def _next_time_of_day(self, instant: datetime) -> datetime | None:
        if _wall.is_second_showing(self._zone, instant):
            since = _wall.end_of_second_showing(self._zone, instant) - _INSTANT
        else:
            since = _naive(instant.astimezone(self._zone))
        wall = self._next_wall(since)
        return None if wall is None else _wall.first_showing(self._zone, wall)

    def _next_spaced(self, instant: datetime) -> datetime | None:
        since = _naive(instant.astimezone(self._zone))
        while True:
            offset = _wall.offset_at(self._zone, instant)
            wall = self._next_wall(since)
            if wall is None:
                return None
            tick = wall.replace(tzinfo=UTC) - offset
            change = _wall.first_change(self._zone, instant, tick)
            if change is None:
                return tick
            instant, since = change, _naive(change.astimezone(self._zone)) - _INSTANT

    def _next_wall(self, since: datetime) -> datetime | None:
        """Return the first matching wall time after ``since``."""
        walls = copy.copy(self._walls)
        # croniter adds a second and cuts off the rest: right for what is within a second, too.
        walls.set_current(since.replace(microsecond=0))
        try:
            wall: datetime = walls.get_next(datetime)
        except (CroniterBadDateError, ValueError, OverflowError):
            return None
        return wall

    def __str__(self) -> str:
        return f"cron '{self.expression}' in {self.tz}"


@functools.lru_cache(maxsize=4096)
def _known_next(cron: Cron, instant: datetime) -> datetime | None:
    """Return the next tick; many flows have the same expression, and each asks more than once."""
    return cron._next(instant)  # noqa: SLF001 - the rest of next_after


def parse_schedule(text: str) -> Schedule:
    """Return the schedule that describes itself by ``text``.

    Raises:
        ConfigurationError: There is none, or its zone was given as an object that only its own process has.

    Example:
        >>> print(parse_schedule("cron '0 9 * * *' in Europe/London"))
        cron '0 9 * * *' in Europe/London
    """
    if text == "manual":
        return Manual()
    if found := re.fullmatch(r"every (\S+) s, fixed (rate|delay)", text):
        return Interval(float(found[1]), "fixed_rate" if found[2] == "rate" else "fixed_delay")
    if found := re.fullmatch(r"cron '(.*)' in (.*)", text):
        return Cron(found[1], found[2])
    raise ConfigurationError(f"{text!r} is no schedule that can be told from its text")


def _naive(local: datetime) -> datetime:
    return local.replace(tzinfo=None, fold=0)


def _utc(instant: datetime) -> datetime:
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise ConfigurationError(f"an instant must be a datetime with a zone, got {instant!r}; add tzinfo=UTC")
    return instant.astimezone(UTC)


def _interval(every: float | timedelta) -> timedelta:
    try:
        interval = every if isinstance(every, timedelta) else timedelta(seconds=every)
    except (TypeError, ValueError, OverflowError):
        interval = timedelta(0)
    if isinstance(every, bool) or interval < _SHORTEST:
        raise ConfigurationError(f"an interval must be from 0.001 s to 86399999999999 s, got {every!r}")
    return interval


def _zone(tz: str | tzinfo) -> tzinfo:
    if isinstance(tz, tzinfo):
        return tz
    try:
        return ZoneInfo(tz)
    except (KeyError, ValueError, TypeError, OSError):
        raise ConfigurationError(f"unknown time zone {tz!r}; use an IANA name such as 'Europe/London'") from None
