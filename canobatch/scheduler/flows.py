"""What becomes of a flow's ticks: its status, its backoff, overlaps, and ticks that were missed. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from canobatch.errors import ConfigurationError, FlowOverlapError, FlowPausedError, FlowTrippedError
from canobatch.scheduler.schedules import Interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from canobatch.scheduler.schedules import Schedule

OverlapPolicy = Literal["skip", "queue_one", "queue_all", "cancel_old", "kill_old", "allow"]
CatchUpPolicy = Literal["skip", "last", "all"]
OnInterrupted = Literal["leave", "restart", "resume"]

#: Seconds by which a tick may be late, on a busy machine, without having been missed.
GRACE = 60.0
#: How many missed ticks are counted one by one.
_COUNTED = 1000


class FlowStatus(StrEnum):
    """What a flow does at the moment."""

    IDLE = "idle"
    RUNNING = "running"
    COMPLETED = "completed"
    BACKOFF = "backoff"
    TRIPPED = "tripped"
    PAUSED = "paused"


class SkipReason(StrEnum):
    """Why a tick did not run."""

    OVERLAP = "overlap"
    BACKOFF = "backoff"
    TRIPPED = "tripped"
    PAUSED = "paused"
    MISSED = "missed"
    REPLACED = "replaced"
    STOPPED = "stopped"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """How long a flow rests after failures in a row, and when it is taken out of service.

    Args:
        initial: Seconds of rest after the first failure.
        multiplier: Growth of the rest with each failure more.
        max_delay: Upper bound in seconds, also with jitter.
        jitter: Part of the rest that is random, 0 to 1, both ways.
        streak_limit: Failures in a row that trip the flow: it does not run again until it is reset. None: never.

    Raises:
        ConfigurationError: An argument is impossible.

    Example:
        >>> BackoffPolicy(initial=10, jitter=0).delay(3)
        40.0
    """

    initial: float | timedelta = 1.0
    multiplier: float = 2.0
    max_delay: float | timedelta = 300.0
    jitter: float = 0.1
    streak_limit: int | None = None

    def __post_init__(self) -> None:
        problems = []
        lowest: dict[str, float] = {"initial": 0, "multiplier": 1, "max_delay": 0, "jitter": 0}
        for name, low in lowest.items():
            value = getattr(self, name)
            if isinstance(value, timedelta):
                value = value.total_seconds()
                object.__setattr__(self, name, value)
            if not _is_number(value) or not value >= low or (name == "jitter" and value > 1):
                bound = "between 0 and 1" if name == "jitter" else f"at least {low:g}"
                problems.append(f"{name} must be a number of {bound}, got {value!r}")
        limit = self.streak_limit
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            problems.append(f"streak_limit must be a whole number of at least 0, or None, got {limit!r}")
        if problems:
            raise ConfigurationError("BackoffPolicy: " + "; ".join(problems), problems)

    @classmethod
    def with_trip(cls, streak_limit: int) -> BackoffPolicy:
        """Return the default policy that trips after so many failures in a row; 0 trips on the first."""
        return cls(streak_limit=streak_limit)

    def delay(self, streak: int, random: Callable[[], float] = lambda: 0.5) -> float:
        """Return the seconds of rest after ``streak`` failures; ``random`` gives a number in [0, 1)."""
        initial, longest = _seconds(self.initial), _seconds(self.max_delay)
        try:
            delay = min(initial * self.multiplier ** (max(streak, 1) - 1), longest)
        except OverflowError:
            delay = longest if initial else 0.0
        return min(delay * (1.0 + self.jitter * (2.0 * random() - 1.0)), longest)

    def is_tripped(self, streak: int) -> bool:
        """Return whether ``streak`` failures in a row are too many."""
        return self.streak_limit is not None and streak >= self.streak_limit


@dataclass(frozen=True, slots=True)
class FlowState:
    """Where a flow stands. Each method is one transition and returns the new state.

    Attributes:
        running: How many runs there are at the moment; above 1 only with ``overlap="allow"``.
        rest: The status when neither running nor paused.
        eligible_at: The end of a backoff; ticks before it are skipped.
        last_run: When the last run began.
        ended_at: When the run that ended last did; ``last_state``, ``last_duration`` and ``last_error`` are of it.
    """

    running: int = 0
    rest: FlowStatus = FlowStatus.IDLE
    is_paused: bool = False
    run_count: int = 0
    failure_streak: int = 0
    eligible_at: datetime | None = None
    last_run: datetime | None = None
    ended_at: datetime | None = None
    last_state: Any = None
    last_duration: float | None = None
    last_error: str | None = None

    @property
    def status(self) -> FlowStatus:
        """The status of the flow."""
        if self.running:
            return FlowStatus.RUNNING
        return FlowStatus.PAUSED if self.is_paused else self.rest

    def refusal(self, now: datetime) -> SkipReason | None:
        """Return why a tick must not run now, whatever runs already; None if it may."""
        if self.is_paused:
            return SkipReason.PAUSED
        if self.rest is FlowStatus.TRIPPED:
            return SkipReason.TRIPPED
        if self.eligible_at is not None and now < self.eligible_at:
            return SkipReason.BACKOFF
        return None

    def begun(self, now: datetime) -> FlowState:
        """A run begins."""
        return replace(self, running=self.running + 1, run_count=self.run_count + 1, last_run=now)

    def succeeded(self, state: Any, duration: float, *, now: datetime) -> FlowState:
        """A run reached an exit state."""
        ended = self._ended(state, duration, None, now)
        return replace(ended, rest=FlowStatus.COMPLETED, failure_streak=0, eligible_at=None)

    def failed(
        self,
        state: Any,
        duration: float,
        error: str,
        *,
        now: datetime,
        policy: BackoffPolicy | None,
        random: Callable[[], float],
        pauses: bool,
    ) -> FlowState:
        """A run failed, in ``state``; with ``pauses`` the flow is paused."""
        ended = replace(
            self._ended(state, duration, error, now),
            failure_streak=self.failure_streak + 1,
            is_paused=self.is_paused or pauses,
        )
        if policy is None:
            return replace(ended, rest=FlowStatus.IDLE)
        if policy.is_tripped(ended.failure_streak):
            return replace(ended, rest=FlowStatus.TRIPPED, eligible_at=None)
        until = now + timedelta(seconds=policy.delay(ended.failure_streak, random))
        return replace(ended, rest=FlowStatus.BACKOFF, eligible_at=until)

    def cancelled(self, state: Any, duration: float | None, error: str, *, now: datetime) -> FlowState:
        """A run was cancelled, or its process ended: neither a success nor a failure."""
        return replace(self._ended(state, duration, error, now), rest=FlowStatus.IDLE)

    def reset(self) -> FlowState:
        """Forget failures, backoff and trip; a run that goes on goes on."""
        return replace(self, rest=FlowStatus.IDLE, failure_streak=0, eligible_at=None)

    def paused(self) -> FlowState:
        """Let nothing new begin."""
        return replace(self, is_paused=True)

    def unpaused(self) -> FlowState:
        """Let runs begin again."""
        return replace(self, is_paused=False)

    def _ended(self, state: Any, duration: float | None, error: str | None, now: datetime) -> FlowState:
        return replace(
            self,
            running=self.running - 1,
            ended_at=now,
            last_state=state,
            last_duration=duration,
            last_error=error,
        )


@dataclass(frozen=True, slots=True)
class FlowInfo:
    """What is to be known of a flow.

    Attributes:
        id: Its id.
        status: What it does.
        run_count: How many runs have begun.
        last_run: When the last one began, UTC, or None.
        last_state: The state that the run that ended last was in.
        last_duration: The seconds it took, or None.
        last_error: What it failed with, or None.
        failure_streak: How many runs failed in a row.
        next_run: When it is due next, UTC; None if it is not, or not while paused or tripped.
    """

    id: str
    status: FlowStatus
    run_count: int = 0
    last_run: datetime | None = None
    last_state: Any = None
    last_duration: float | None = None
    last_error: str | None = None
    failure_streak: int = 0
    next_run: datetime | None = None


def info_of(flow_id: str, state: FlowState, schedule: Schedule, last_tick: datetime) -> FlowInfo:
    """Describe a flow whose ticks up to ``last_tick`` are done with."""
    is_off = state.is_paused or state.rest is FlowStatus.TRIPPED
    return FlowInfo(
        flow_id,
        state.status,
        state.run_count,
        state.last_run,
        state.last_state,
        state.last_duration,
        state.last_error,
        state.failure_streak,
        None if is_off else next_tick(schedule, last_tick, state),
    )


# -- overlaps


class Verdict(StrEnum):
    """What is done with something that is due."""

    START = "start"
    SKIP = "skip"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Overlap:
    """What is done with something due, and to what runs or waits already.

    Attributes:
        verdict: Whether it starts, waits for the running one's end, or does not run.
        ends_running: Whether what runs is ended for it, and how.
        drops_waiting: Whether what waits is dropped for it.
    """

    verdict: Verdict
    ends_running: Literal["cancel", "kill"] | None = None
    drops_waiting: bool = False


def resolve_overlap(policy: OverlapPolicy, running: int, waiting: int) -> Overlap:
    """Say what is done with something that is due while so many runs of its flow run and wait."""
    if policy == "allow" or not (running or waiting):
        return Overlap(Verdict.START)
    if policy == "cancel_old":
        return Overlap(Verdict.QUEUE, "cancel", drops_waiting=True)
    if policy == "kill_old":
        return Overlap(Verdict.QUEUE, "kill", drops_waiting=True)
    if policy == "queue_all" or (policy == "queue_one" and not waiting):
        return Overlap(Verdict.QUEUE)
    return Overlap(Verdict.SKIP)


def overlap_error(flow_id: str, policy: OverlapPolicy, run_ids: list[str], waiting: int) -> FlowOverlapError:
    """Return why a trigger cannot begin a run; without ``run_ids`` it is another process that runs the flow."""
    runs = f"run {', '.join(run_ids)}" if run_ids else "in another process"
    waits = ", and one run waits already" if waiting else ""
    return FlowOverlapError(
        f"flow {flow_id!r} is running ({runs}){waits}; wait for it, cancel it, or give the flow another overlap "
        f"policy than {policy!r}",
        flow=flow_id,
        run_ids=run_ids,
    )


def trigger_refusal(flow_id: str, state: FlowState) -> FlowPausedError | FlowTrippedError | None:
    """Return why a flow cannot be triggered, whatever runs; None if it can. A backoff is no reason."""
    if state.is_paused:
        return FlowPausedError(f"flow {flow_id!r} is paused; call unpause_flow({flow_id!r}) first", flow=flow_id)
    if state.rest is FlowStatus.TRIPPED:
        return FlowTrippedError(
            f"flow {flow_id!r} has tripped after {state.failure_streak} failures in a row "
            f"(the last: {state.last_error}); call reset_flow({flow_id!r}) first",
            flow=flow_id,
        )
    return None


# -- ticks


@dataclass(frozen=True, slots=True)
class Missed:
    """Ticks in a row that did not run because nobody was there in time.

    Attributes:
        first: The first of them.
        last: The last.
        count: How many; None if more than a thousand.
    """

    first: datetime
    last: datetime
    count: int | None


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done with all ticks that came due since somebody looked.

    Attributes:
        ticks: Those to run, in order.
        missed: Those before them that will not run, or None.
        last: The last that came due; everything up to it is accounted for.
    """

    ticks: tuple[datetime, ...]
    missed: Missed | None
    last: datetime


def settle_due(
    schedule: Schedule, since: datetime, now: datetime, *, policy: CatchUpPolicy, window: float, grace: float = GRACE
) -> Due | None:
    """Sort the ticks in ``(since, now]`` into those to run and those missed; None if there are none.

    The newest is on time if it is not later than ``grace``; what else is due was missed. "skip" runs none of the
    missed, "last" the newest, "all" every one, if not older than ``window`` seconds.
    """
    first = schedule.next_after(since)
    if first is None or first > now:
        return None
    if isinstance(schedule, Interval) and schedule.mode == "fixed_delay":
        # Due once, until it has run: there is no grid of ticks that could be missed.
        return Due((first,), None, first)
    following = schedule.next_after(first)
    is_only = following is None or following > now
    if is_only and (now - first).total_seconds() <= grace:
        return Due((first,), None, first)
    last = first if is_only else _newest(schedule, since, now)
    if policy == "all":
        older = now - timedelta(seconds=max(window, grace), microseconds=1)
        runs = tuple(_until(schedule, max(since, older), now))
    else:
        lateness = (now - last).total_seconds()
        allowed = grace if policy == "skip" else max(window, grace)
        runs = (last,) if lateness <= allowed else ()
    missed = _missed(schedule, since, first, runs[0] if runs else None, last)
    return Due(runs, missed, last)


def next_tick(schedule: Schedule, last_tick: datetime, state: FlowState) -> datetime | None:
    """Return the next tick after ``last_tick`` that no backoff keeps from running."""
    tick = schedule.next_after(last_tick)
    if tick is None or state.eligible_at is None or tick >= state.eligible_at:
        return tick
    if isinstance(schedule, Interval) and schedule.mode == "fixed_delay":
        return state.eligible_at
    return schedule.next_after(state.eligible_at - timedelta(microseconds=1))


def start_delay(jitter: float, random: Callable[[], float]) -> timedelta:
    """Return by how much a tick is put off; ``random`` gives a number in [0, 1)."""
    return timedelta(seconds=jitter * random()) if jitter else timedelta(0)


def _until(schedule: Schedule, since: datetime, now: datetime) -> Iterator[datetime]:
    tick = schedule.next_after(since)
    while tick is not None and tick <= now:
        yield tick
        tick = schedule.next_after(tick)


def _newest(schedule: Schedule, since: datetime, now: datetime) -> datetime:
    """Return the last tick in ``(since, now]``, where there is one, without going through all of them."""
    span = timedelta(minutes=1)
    while True:
        start = max(since, now - span) if now - since > span else since
        newest = None
        for tick in _until(schedule, start, now):
            newest = tick
        if newest is not None:
            return newest
        span *= 8


def _missed(
    schedule: Schedule, since: datetime, first: datetime, run: datetime | None, last: datetime
) -> Missed | None:
    """Describe the ticks from ``first`` to before ``run``, or to ``last`` if none runs."""
    if run == first:
        return None
    end = last if run is None else run - timedelta(microseconds=1)
    counted = list(islice(_until(schedule, since, end), _COUNTED + 1))
    if len(counted) <= _COUNTED:
        return Missed(first, counted[-1], len(counted))
    return Missed(first, _newest(schedule, since, end), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _seconds(duration: float | timedelta) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else duration
