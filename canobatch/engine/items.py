"""The items of a batch or stream on their way: processed here or in workers, given back in their order."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import random
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, Self

from canobatch import _clock
from canobatch.effects import loads, pack
from canobatch.engine.admission import Turnstile, refused
from canobatch.engine.attempt import delay_before_next, error_of, may_retry, unpacking_error
from canobatch.errors import PayloadError, TaskError
from canobatch.pool import Call, Finished, Lost, Progressed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from canobatch.effects import Data, Operation, Place
    from canobatch.engine.visit import Visit
    from canobatch.pool import Event, LaneHandle

_PHASE = "process_item"


@dataclasses.dataclass(frozen=True, slots=True)
class ItemOutcome:
    """What became of an item: a value and what was written, or an error with the item."""

    index: int
    item: Any
    value: Any
    error: TaskError | None
    operations: Sequence[Operation]


def packed_item(item: Any, place: Place) -> Data:
    """Return what a worker gets for an item.

    Raises:
        PayloadError: It cannot be pickled.
    """
    return pack((_PHASE, (item,)), place)


class Items(Protocol):
    """Processes items, each with its own retries."""

    #: How many were submitted so far.
    submitted: int

    @property
    def lane(self) -> LaneHandle | None:
        """What to wait for."""

    @property
    def next_due(self) -> float | None:
        """When to look again, without an event."""

    @property
    def is_idle(self) -> bool:
        """Whether every item that was submitted has been given back."""

    def room(self) -> int:
        """Return how many more items it is worth to submit now."""

    def submit(self, item: Any) -> None:
        """Take one more item."""

    def give(self, value: Any, operations: Sequence[Operation]) -> None:
        """Take one more item that was processed before."""

    def send(self) -> None:
        """Do not wait for more items."""

    def take(self, events: Sequence[Event]) -> None:
        """Take what the pool reports."""

    def ready(self) -> Iterator[ItemOutcome]:
        """Return, once, the outcomes that are next in the items' order."""

    def refresh(self) -> None:
        """Let items see what was committed meanwhile."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class ItemsHere:
    """Processes each item at once, in the parent."""

    lane = None
    next_due = None

    def __init__(self, visit: Visit, *, is_kept: bool = False) -> None:
        self._visit = visit
        self._is_kept = is_kept
        self._config = dataclasses.replace(visit.config, retry=visit.model.item_retry)
        self._ready: deque[ItemOutcome] = deque()
        self.submitted = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be given back."""
        return not self._ready

    def room(self) -> int:
        """Return 1 if the item before was taken."""
        return 0 if self._ready else 1

    def submit(self, item: Any) -> None:
        """Process an item."""
        index, visit = self.submitted, self._visit
        self.submitted += 1
        for attempt in itertools.count(1):
            visit.driver.check()
            try:
                with visit.admitted(index, attempt):
                    value, operations = visit.call_here(_PHASE, (item,), branch=index, attempt=attempt)
            except TaskError as error:
                if may_retry(self._config, error):
                    visit.driver.back_off(self._config, error)
                    continue
                self._ready.append(ItemOutcome(index, item, None, error, ()))
            else:
                self._ready.append(ItemOutcome(index, None, value, None, operations))
                if self._is_kept:
                    self._keep(index, attempt, item, value, operations)
            return

    def send(self) -> None:
        """Nothing waits."""

    def _keep(self, index: int, attempt: int, item: Any, value: Any, operations: Sequence[Operation]) -> None:
        """Record a success, if it can be packed: here it need not be."""
        scribe, place = self._visit.driver.scribe, self._visit.driver.store.segments.place
        if not scribe.is_on:
            return
        with suppress(PayloadError):
            data, packed = packed_item(item, place), pack(value, place)
            scribe.succeed(index, attempt, packed, operations, data)

    def give(self, value: Any, operations: Sequence[Operation]) -> None:
        """Take one more item that was processed before."""
        self._ready.append(ItemOutcome(self.submitted, None, value, None, operations))
        self.submitted += 1

    def take(self, events: Sequence[Event]) -> None:
        """Nothing comes from elsewhere."""

    def ready(self) -> Iterator[ItemOutcome]:
        """Return what was processed."""
        while self._ready:
            yield self._ready.popleft()

    def refresh(self) -> None:
        """Every item sees the present version anyway."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ItemsInWorkers:
    """Processes up to ``concurrency`` items at a time in the worker pool, on a lane of its own."""

    def __init__(self, visit: Visit, concurrency: int, ahead: int | None = None, *, is_kept: bool = False) -> None:
        self._visit = visit
        #: Whether each success is recorded by itself.
        self._is_kept = is_kept
        self._concurrency = concurrency
        #: How many items may be submitted and not yet given back.
        self._ahead = ahead
        self._config = dataclasses.replace(visit.config, retry=visit.model.item_retry)
        self.lane = visit.driver.station().lane(visit.state, "items")
        self.submitted = 0
        self._next = 0
        self._done: dict[int, ItemOutcome] = {}
        self._back_off: list[tuple[float, int, Call]] = []
        #: Calls that are to be submitted together.
        self._batch: list[Call] = []
        self._gate = Turnstile(None, visit.driver.mailbox.wake) if self._config.has_gate else None
        self._header = visit.header()
        self._aside = visit.driver.mailbox.aside(self.lane)

    @property
    def next_due(self) -> float | None:
        """When the next attempt of an item is due, or the gate is to be asked again."""
        due = self._back_off[0][0] if self._back_off else None
        gate = None if self._gate is None else self._gate.due
        return min((at for at in (due, gate) if at is not None), default=None)

    @property
    def is_idle(self) -> bool:
        """Whether every item that was submitted has been given back."""
        return self._next == self.submitted

    def room(self) -> int:
        """Return how many more items it is worth to submit now."""
        waiting = len(self._batch) if self._gate is None else len(self._gate)
        room = self.lane.room() - waiting
        return room if self._ahead is None else min(room, self._ahead - (self.submitted - self._next))

    def submit(self, item: Any) -> None:
        """Send an item on its way."""
        index = self.submitted
        self.submitted += 1
        try:
            data = packed_item(item, self._visit.driver.store.segments.place)
        except PayloadError as error:
            where = self._visit.where(index, 1)
            failure = PayloadError(f"{where}: its item cannot be sent to a worker: {error}", **where.facts)
            failure.__cause__ = error.__cause__
            self._done[index] = ItemOutcome(index, item, None, failure, ())
            return
        header = self._visit.driver.station().need_mains(data, self._header)
        if header is not self._header:
            self._header = header
            self._begin()
        config = self._config
        self._send(Call(index, 1, data, config.attempt_timeout, config.memory_limit, config.runs_alone))

    def give(self, value: Any, operations: Sequence[Operation]) -> None:
        """Take one more item that was processed before."""
        self._done[self.submitted] = ItemOutcome(self.submitted, None, value, None, operations)
        self.submitted += 1

    def take(self, events: Sequence[Event]) -> None:
        """Take outcomes, and send attempts whose back-off is over."""
        for event in events:
            if self._gate is not None and isinstance(event, Finished | Lost):
                self._gate.leave(event.call, isinstance(event, Finished) and event.succeeded)
            if isinstance(event, Finished):
                self._take(event)
            elif isinstance(event, Lost):
                self._fail(event, error_of(event, self._visit.where(event.call.branch, event.call.attempt)))
            elif isinstance(event, Progressed):
                self._visit.driver.progress(self._visit.state, event)
        now = _clock.monotonic()
        while self._back_off and self._back_off[0][0] <= now:
            self._send(heapq.heappop(self._back_off)[2])
        self.send()
        self._admit()

    def ready(self) -> Iterator[ItemOutcome]:
        """Return, once, the outcomes that are next in the items' order."""
        while self._next in self._done:
            outcome = self._done.pop(self._next)
            self._next += 1
            yield outcome

    def refresh(self) -> None:
        """Let items that are sent from now on see what was committed."""
        self._header = self._visit.header()
        self._begin()

    def _send(self, call: Call) -> None:
        if self._gate is None:
            self._batch.append(call)
            # An idle worker gets an item as soon as there is one.
            if self.lane.is_hungry:
                self.send()
        else:
            self._gate.add(call, self._config)
            self._admit()

    def send(self) -> None:
        """Submit what was to be submitted together."""
        if self._batch:
            batch, self._batch = self._batch, []
            self.lane.submit(batch)

    def _admit(self) -> None:
        """Submit what the gate lets through, and fail what it refuses."""
        for call, refusal in () if self._gate is None else self._gate.admit(self.lane.slots):
            if refusal is None:
                self.lane.submit([call])
                continue
            visit, index = self._visit, call.branch
            assert index is not None
            visit.driver.emit("circuit_open", state=visit.state, branch=index, attempt=call.attempt, detail=refusal)
            failure = refused(refusal, visit.where(index, call.attempt))
            self._done[index] = self._failed(call, failure)

    def _begin(self) -> None:
        self.lane.begin(self._header, self._concurrency, 0)

    def _take(self, event: Finished) -> None:
        index, call = event.call.branch, event.call
        assert index is not None
        where = self._visit.where(index, call.attempt)
        if not event.succeeded:
            self._fail(event, error_of(event, where))
            return
        value = None
        if event.payload is not None:
            try:
                value = loads(event.payload)
            except BaseException as error:  # noqa: BLE001 - user classes may do anything
                self._fail(event, unpacking_error(error, where))
                return
        if self._is_kept:
            self._visit.driver.scribe.accept(event)
        self._done[index] = ItemOutcome(index, None, value, None, event.operations)

    def _fail(self, event: Finished | Lost, error: TaskError) -> None:
        call = event.call
        index = call.branch
        assert index is not None
        if may_retry(self._config, error):
            self._visit.driver.emit("retry", state=self._visit.state, branch=index, attempt=call.attempt, detail=error)
            again = Call(index, call.attempt + 1, call.item, call.timeout, call.memory_limit, True)
            due = _clock.monotonic() + delay_before_next(self._config, error, random.random)
            heapq.heappush(self._back_off, (due, index, again))
            return
        self._done[index] = self._failed(call, error)

    @staticmethod
    def _failed(call: Call, error: TaskError) -> ItemOutcome:
        assert call.branch is not None
        assert call.item is not None
        return ItemOutcome(call.branch, loads(call.item)[1][0], None, error, ())

    def __enter__(self) -> Self:
        self._aside.__enter__()
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._aside.__exit__(None, None, None)
        self._visit.driver.mailbox.kill(self.lane)
        if self._gate is not None:
            self._gate.close()
