"""The seam between a run and whatever executes its calls: submit, kill, receive events.

`WorkerPool` is the implementation for one host. Another engine needs no more than this.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from canobatch.effects import Data
    from canobatch.segments import Segments


@dataclass(slots=True, eq=False)
class Call:
    """One attempt of one branch, on its way to a worker.

    Attributes:
        branch: Index of the branch, None for a single task.
        attempt: From 1.
        item: The packed item of a map, or None.
        timeout: Seconds the attempt may run, or None.
        memory_limit: Bytes it may use, or None.
        is_alone: Whether nothing may share its worker's window, because it may be killed by itself.
        sends: How often it was given to a worker that died before beginning it.
    """

    branch: int | None
    attempt: int = 1
    item: Data | None = None
    timeout: float | None = None
    memory_limit: int | None = None
    is_alone: bool = False
    sends: int = 0


class Header(NamedTuple):
    """What the calls of one visit of a state have in common; numbers name what `Backend.share` was given."""

    needs: tuple[int, ...]
    run: int
    definition: int
    #: The layers of the store's version, lowest first.
    snapshot: tuple[int, ...]
    splits: int
    deadline: float | None


class Finished(NamedTuple):
    """A worker sent a complete outcome; what is packed in it is unopened.

    ``output``: where its worker kept what it printed, if it was told to and there was any: file, start, end.
    """

    lane: Any
    call: Call
    succeeded: bool
    payload: Any
    operations: tuple[Any, ...]
    started: float
    duration: float
    cpu_time: float
    max_rss: int | None
    output: tuple[str, int, int] | None = None


class Lost(NamedTuple):
    """The worker of a call died, or was killed for the ``reason`` "timeout" or "memory"."""

    lane: Any
    call: Call
    reason: str
    pid: int
    exitcode: int | None
    started: float | None
    duration: float | None
    used: int | None


class Progressed(NamedTuple):
    """A task reported how far it is."""

    lane: Any
    call: Call
    done: float
    total: float | None
    message: str | None


class Logged(NamedTuple):
    """A task logged something; ``what`` names run and state, ``record`` is for `logs.relay`."""

    lane: Any
    what: tuple[str, Any]
    branch: int | None
    attempt: int
    record: dict[str, Any]


class Began(NamedTuple):
    """Calls were given to the worker with this pid; told only where `LaneHandle.begin` asked for it."""

    lane: Any
    calls: list[Call]
    pid: int


class Stopped(NamedTuple):
    """Every process of a stopped lane is dead; ``begun`` are the calls that had begun: (call, seconds run)."""

    lane: Any
    begun: list[tuple[Call, float]]
    is_certain: bool


class Broken(NamedTuple):
    """The lane can have no more outcomes."""

    lane: Any
    error: Exception


Event = Began | Finished | Logged | Lost | Progressed | Stopped | Broken


def deliver(events: Sequence[Event]) -> None:
    """Give events to their lanes, in order."""
    for lane, group in itertools.groupby(events, key=lambda event: event.lane):
        lane.deliver(list(group))


class LaneHandle(Protocol):
    """The calls of one state of one run: a queue of their own, shared workers."""

    def begin(self, header: Header, limit: int | None, may_kill: int, *, tells_begin: bool = False) -> None:
        """Start a visit: at most ``limit`` calls run at a time; up to ``may_kill`` may be cut by its join.

        With ``tells_begin`` there is a `Began` event for every call, ahead of all others of it.
        """

    def submit(self, calls: Sequence[Call]) -> None:
        """Queue calls; raises if the pool is closed."""

    def stop(self) -> bool:
        """Drop what waits and kill what runs; returns whether a `Stopped` event will follow."""

    @property
    def is_hungry(self) -> bool:
        """Whether a worker could begin one more call at once."""

    @property
    def slots(self) -> int:
        """How many calls may run at a time."""

    def room(self) -> int:
        """Return how many more calls it is worth to submit now."""


class Backend(Protocol):
    """Executes calls."""

    def open_lane(
        self, run: Hashable, deliver: Callable[[list[Event]], None], what: tuple[str, Any], segments: Segments
    ) -> LaneHandle:
        """Return a lane of ``run``, whose events are given to ``deliver``; ``what`` names run and state.

        Large values that its calls make are counted by ``segments``.
        """

    def share(self, kind: int, data: Data) -> int:
        """Keep ``data`` for the workers, which get it when a header names it; returns its number."""

    def forget(self, numbers: Sequence[int]) -> None:
        """Drop what `share` kept."""
