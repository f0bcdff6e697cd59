"""What is written down of flows: where they stand, who runs them, which ticks are taken, what happened."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from canobatch.scheduler.flows import FlowState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

#: What another process may ask for.
Asked = Literal["trigger", "cancel", "kill"]

#: How many records of a flow are kept.
KEPT = 1000


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """One thing that happened to a flow.

    Attributes:
        flow: The flow's id.
        time: When it happened, UTC.
        kind: "fired": a run begins; "queued": it waits for the end of another; "skipped": a tick or a trigger
            does not run; "finished", "failed", "cancelled": a run has ended; "interrupted": its process had.
        tick: The nominal instant, UTC; None for what was triggered.
        run_id: The run, if there is one.
        reason: Why it was skipped, or what the run failed with.
        until: The last of several ticks that were missed in a row; ``tick`` is the first.
        count: How many ticks it is about; None if more than a thousand.
        state: The state that an ended run was in; its label, where the record comes from a home.
    """

    flow: str
    time: datetime
    kind: Literal["fired", "queued", "skipped", "finished", "failed", "cancelled", "interrupted"]
    tick: datetime | None = None
    run_id: str | None = None
    reason: str = ""
    until: datetime | None = None
    count: int | None = 1
    state: Any = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for the end of another run of its flow: a tick, or the run of a trigger."""

    tick: datetime | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that somebody claimed a flow for.

    Attributes:
        run_id: The run.
        owner: The process, in words.
        token: What everything that it started carries in its environment; "" if it cannot be found.
    """

    run_id: str
    owner: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """What another process asks of the schedulers of a home."""

    number: int
    flow: str
    what: Asked
    params: Any = None
    #: What is to be cancelled; None: all that runs of the flow.
    run_id: str | None = None


class Ledger(Protocol):
    """Where schedulers that share flows agree on them.

    Thread-safe. Several steps are one if they are made inside `transaction`.
    """

    def transaction(self) -> AbstractContextManager[None]:
        """Make what is done inside one step."""

    def part(self, flow: str) -> AbstractContextManager[None]:
        """Undo what is done of one flow inside if it fails, and nothing else of the transaction."""

    def output_of(self, run_id: str) -> Path | None:
        """Return the directory for what the tasks of a run print; None: they print where this process does."""

    def enrol(self, flow: str, schedule: str, now: datetime) -> datetime:
        """Return when a flow was first started: now, if it never was.

        Raises:
            SchedulerError: The flow is known with another schedule.
        """

    def state(self, flow: str) -> FlowState:
        """Return where a flow stands; its ``running`` means nothing."""

    def put_state(self, flow: str, state: FlowState) -> None:
        """Write down where it stands."""

    def last_tick(self, flow: str) -> datetime | None:
        """Return the last tick that was taken."""

    def take_tick(self, flow: str, tick: datetime) -> bool:
        """Take a tick; False if it was taken before."""

    def claim(self, flow: str) -> bool:
        """Claim a flow for a run; False if another process has. To claim it twice is fine."""

    def holds(self, flow: str) -> bool:
        """Return whether this scheduler has claimed a flow."""

    def is_claimed(self, flow: str) -> bool:
        """Return whether anybody has claimed a flow."""

    def left_over(self, flow: str) -> Claim | None:
        """Return what the last holder of a flow that is claimed here did not bring to its end."""

    def describe_claim(self, flow: str, claim: Claim | None) -> None:
        """Write down what a flow was claimed for; None: nothing any more."""

    def describe_run(self, flow: str, run: Claim) -> None:
        """Write down a run that needs no claim."""

    def forget_run(self, run_id: str) -> None:
        """Forget it: it has ended."""

    def lost_runs(self, flow: str) -> Sequence[Claim]:
        """Return, once, the runs without a claim whose scheduler is no more."""

    def release(self, flow: str) -> None:
        """Give a claim back, if there is one."""

    def push(self, flow: str, waiting: Waiting) -> None:
        """Let something wait."""

    def pop(self, flow: str, *, only_own: bool = False) -> Waiting | None:
        """Take the oldest of what waits, if this scheduler may; with ``only_own``, if no other may."""

    def take_out(self, run_id: str) -> None:
        """Let a run wait no more."""

    def waiting(self, flow: str) -> int:
        """Return how much waits."""

    def unsettled(self) -> Sequence[str]:
        """Return the flows for which something waits, or that have runs which nobody brought to their end."""

    def record(self, record: FlowRecord) -> None:
        """Write down what happened."""

    def history(self, flow: str, limit: int) -> list[FlowRecord]:
        """Return the newest records of a flow, oldest first."""

    def ask(self, flow: str, what: Asked, params: Any = None, *, run_id: str | None = None) -> int:
        """Ask the schedulers for something, and wake them; returns the command's number."""

    def commands(self) -> Sequence[Command]:
        """Return what was asked and not answered."""

    def answer(self, command: Command, *, run_id: str = "", error: str = "") -> bool:
        """Answer a command; False if somebody else has. Before it is done, in the same step."""

    def listen(self, tell: Callable[[], None]) -> None:
        """Call ``tell``, from a thread of its own, when another scheduler says that something is written, or ends."""

    def wake_others(self) -> None:
        """Make the other schedulers look at what is written."""

    def close(self) -> None:
        """Let go of everything."""


class MemoryLedger:
    """The ledger of one scheduler, which ends with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, FlowState] = {}
        self._last: dict[str, datetime] = {}
        self._waiting: dict[str, deque[Waiting]] = {}
        self._records: dict[str, deque[FlowRecord]] = {}
        #: How many there have been.
        self._recorded = 0

    def output_of(self, run_id: str) -> Path | None:  # noqa: ARG002 - there is no home to keep it in
        """Return None."""
        return None

    def transaction(self) -> AbstractContextManager[None]:
        """Do nothing: nobody else looks."""
        return nullcontext()

    @contextmanager
    def part(self, flow: str) -> Iterator[None]:
        """Undo what is done of one flow inside if it fails."""
        state, tick, waiting = self._states[flow], self._last.get(flow), tuple(self._waiting[flow])
        recorded = self._recorded
        try:
            yield
        except BaseException:
            self._states[flow], self._waiting[flow] = state, deque(waiting)
            self._last.pop(flow, None)
            if tick is not None:
                self._last[flow] = tick
            for _ in range(self._recorded - recorded):
                self._records[flow].pop()
            raise

    def enrol(self, flow: str, schedule: str, now: datetime) -> datetime:  # noqa: ARG002 - known to nobody else
        """Return now."""
        self._states[flow] = FlowState()
        self._waiting[flow] = deque()
        self._records[flow] = deque(maxlen=KEPT)
        return now

    def state(self, flow: str) -> FlowState:
        """Return where a flow stands."""
        return self._states[flow]

    def put_state(self, flow: str, state: FlowState) -> None:
        """Keep it."""
        self._states[flow] = state

    def last_tick(self, flow: str) -> datetime | None:
        """Return the last tick that was taken."""
        return self._last.get(flow)

    def take_tick(self, flow: str, tick: datetime) -> bool:
        """Take a tick; False if it or a later one was taken before."""
        if flow in self._last and tick <= self._last[flow]:
            return False
        self._last[flow] = tick
        return True

    def claim(self, flow: str) -> bool:  # noqa: ARG002 - there is nobody else
        """Return True."""
        return True

    def holds(self, flow: str) -> bool:  # noqa: ARG002
        """Return False: there is nothing to give back."""
        return False

    def is_claimed(self, flow: str) -> bool:  # noqa: ARG002
        """Return False: what runs here is known here."""
        return False

    def left_over(self, flow: str) -> Claim | None:  # noqa: ARG002
        """Return None."""
        return None

    def describe_claim(self, flow: str, claim: Claim | None) -> None:
        """Do nothing."""

    def describe_run(self, flow: str, run: Claim) -> None:
        """Do nothing."""

    def forget_run(self, run_id: str) -> None:
        """Do nothing."""

    def lost_runs(self, flow: str) -> Sequence[Claim]:  # noqa: ARG002
        """Return nothing."""
        return ()

    def release(self, flow: str) -> None:
        """Do nothing."""

    def push(self, flow: str, waiting: Waiting) -> None:
        """Let something wait."""
        self._waiting[flow].append(waiting)

    def pop(self, flow: str, *, only_own: bool = False) -> Waiting | None:  # noqa: ARG002 - all is its own
        """Take the oldest of what waits."""
        return self._waiting[flow].popleft() if self._waiting[flow] else None

    def take_out(self, run_id: str) -> None:
        """Let a run wait no more."""
        for queue in self._waiting.values():
            for waiting in [each for each in queue if each.run_id == run_id]:
                queue.remove(waiting)

    def waiting(self, flow: str) -> int:
        """Return how much waits."""
        return len(self._waiting[flow])

    def unsettled(self) -> Sequence[str]:
        """Return nothing: what waits here begins when something ends here."""
        return ()

    def record(self, record: FlowRecord) -> None:
        """Keep it, and forget the oldest of too many."""
        with self._lock:
            self._records[record.flow].append(record)
            self._recorded += 1

    def history(self, flow: str, limit: int) -> list[FlowRecord]:
        """Return the newest records of a flow, oldest first."""
        with self._lock:
            return list(self._records[flow])[-limit:] if limit > 0 else []

    def ask(self, flow: str, what: Asked, params: Any = None, *, run_id: str | None = None) -> int:  # noqa: ARG002
        """Ask nobody."""
        return 0

    def commands(self) -> Sequence[Command]:
        """Return nothing."""
        return ()

    def answer(self, command: Command, *, run_id: str = "", error: str = "") -> bool:  # noqa: ARG002
        """Return False."""
        return False

    def listen(self, tell: Callable[[], None]) -> None:
        """Do nothing."""

    def wake_others(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
