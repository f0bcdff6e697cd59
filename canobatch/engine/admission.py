"""The gate before an attempt: breaker, bulkhead and limiter, asked in the parent before a call is sent.

Whoever is let through has a `Pass`, which ends with the attempt: as a success, as a failure, or as neither
when the attempt was cut because its split or run ended. Who waits holds nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from canobatch import _clock
from canobatch.errors import CircuitOpenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from canobatch.brokered import Brokered, Permit
    from canobatch.engine.attempt import Where
    from canobatch.engine.driver import Driver
    from canobatch.limits import Semaphore
    from canobatch.pool import Call
    from canobatch.task import TaskConfig

#: Seconds after which to ask again what lives in another process and tells nobody here.
_FAR = 0.05


class Pass:
    """What an attempt was let through with."""

    __slots__ = ("_permits",)

    def __init__(self, permits: list[Permit]) -> None:
        self._permits = permits

    def end(self, outcome: bool | None) -> None:
        """The attempt has succeeded (True), failed (False), or was cut (None); twice is fine."""
        for permit in self._permits:
            permit.end(outcome)


#: For what nothing is asked.
FREE = Pass([])


def enter(config: TaskConfig, bulkhead: Semaphore | None = None, turn: int = 0) -> Pass | float:
    """Return a pass, or the seconds after which to ask again; earlier, if a ticket is given back.

    Args:
        config: What says whom to ask.
        bulkhead: Where a place is needed too.
        turn: The caller's in its line; 0: none.

    Raises:
        CircuitOpenError: The breaker is open, and not to be waited for.
    """
    breaker, limiter = config.circuit_breaker, config.rate_limiter
    permits: list[Permit] = []
    try:
        # Asked before anything is taken: what is given back at once would wake all who wait for it.
        refusal = None if breaker is None else breaker.ask("refusal")
        if refusal is not None and config.waits_for_circuit:
            return float(refusal) if breaker is None or breaker.is_here else min(refusal, _FAR)
        if refusal is None:
            wait = 0.0 if limiter is None else limiter.time_until(1)
            if wait > 0:
                return wait
            if bulkhead is not None:
                place = bulkhead.try_in_turn(turn)
                if place is None:
                    return math.inf if bulkhead.is_here else _FAR
                permits.append(place)
            if limiter is not None and not limiter.try_acquire(1):
                # Somebody was faster.
                return 0.0
        if breaker is not None:
            permits.append(breaker.acquire())
        admitted, permits = permits, []
    except CircuitOpenError as error:
        if config.waits_for_circuit:
            return error.retry_after
        raise
    finally:
        for permit in permits:
            permit.release()
    return Pass(admitted)


def refused(error: CircuitOpenError, where: Where) -> CircuitOpenError:
    """Return the error of an attempt that was not made."""
    facts = {**where.facts, "attempt": where.attempt - 1}
    return CircuitOpenError(f"{where}, was not made: {error}", retry_after=error.retry_after, **facts)


def let_through(driver: Driver, config: TaskConfig, where: Where) -> Pass:
    """Wait at the gate of a single task's attempt.

    Raises:
        CircuitOpenError: The breaker is open, and not to be waited for.
        CanobatchError: The run was cancelled or its time is up.
    """
    if not config.has_gate:
        return FREE
    watched: Brokered | None = config.circuit_breaker
    forget = None if watched is None or not watched.is_here else watched.watch(driver.mailbox.wake)
    try:
        while True:
            answer = enter(config)
            if isinstance(answer, Pass):
                return answer
            driver.mailbox.read(None, _clock.monotonic() + answer)
    except CircuitOpenError as error:
        driver.emit("circuit_open", state=where.state, attempt=where.attempt, detail=error)
        raise refused(error, where) from None
    finally:
        if forget is not None:
            forget()


@dataclass(slots=True)
class _Line:
    """Calls that are asked for the same things, in order; only the first one asks."""

    config: TaskConfig
    calls: deque[Call] = field(default_factory=deque)
    due: float = 0.0


class Turnstile:
    """The gate of a split: lets calls through one by one, no more at a time than could run at once.

    What was admitted too early would spend tokens and hold places while it waits for a worker.
    """

    def __init__(self, bulkhead: Semaphore | None, wake: Callable[[], None]) -> None:
        self._bulkhead = bulkhead
        #: In the bulkhead's line, while a call waits for nothing but a place.
        self._turn = 0
        self._wake = wake
        self._lines: dict[tuple[object, ...], _Line] = {}
        self._passes: dict[Call, Pass] = {}
        self._watched: dict[Brokered, Callable[[], None]] = {}
        self._has_news = False
        self._is_full = False
        self._watch(bulkhead)

    def __len__(self) -> int:
        """How many calls wait."""
        return sum(len(line.calls) for line in self._lines.values())

    def add(self, call: Call, config: TaskConfig) -> None:
        """Let a call stand in line."""
        call.is_alone = True
        key = (config.circuit_breaker, config.rate_limiter, config.waits_for_circuit)
        if key not in self._lines:
            self._lines[key] = _Line(config)
            self._watch(config.circuit_breaker)
        self._lines[key].calls.append(call)

    def admit(self, slots: int) -> Iterator[tuple[Call, CircuitOpenError | None]]:
        """Let through what may go now, while fewer than ``slots`` are on their way; also give what was refused."""
        now = _clock.monotonic()
        if self._has_news:
            self._has_news = False
            for line in self._lines.values():
                line.due = 0.0
        for line in self._lines.values():
            while line.calls and line.due <= now and len(self._passes) < slots:
                try:
                    answer = enter(line.config, self._bulkhead, self._turn)
                except CircuitOpenError as error:
                    yield line.calls.popleft(), error
                    continue
                if isinstance(answer, Pass):
                    call = line.calls.popleft()
                    self._passes[call] = answer
                    self._turn = 0  # if there was one, it has ended
                    yield call, None
                else:
                    line.due = now + answer
        self._is_full = len(self._passes) >= slots
        self._line_up(not self._is_full and any(line.calls and line.due == math.inf for line in self._lines.values()))

    @property
    def due(self) -> float | None:
        """When to ask again, on the monotonic clock; None: when something happens."""
        if self._is_full:
            return None
        return min((line.due for line in self._lines.values() if line.calls and line.due < math.inf), default=None)

    def leave(self, call: Call, outcome: bool | None) -> None:
        """A call has ended; see `Pass.end`."""
        admitted = self._passes.pop(call, None)
        if admitted is not None:
            admitted.end(outcome)

    def close(self) -> None:
        """The split has ended: give everything back."""
        for forget in self._watched.values():
            forget()
        self._watched.clear()
        self._line_up(False)
        for admitted in self._passes.values():
            admitted.end(None)
        self._passes.clear()
        self._lines.clear()

    def _line_up(self, waits: bool) -> None:
        """Stand in the bulkhead's line, or leave it: who is not ready to take a place holds up nobody."""
        if self._bulkhead is None or not self._bulkhead.is_here:
            return
        if waits:
            self._turn = self._bulkhead.ask("stand_in_line", self._turn)
        elif self._turn:
            self._bulkhead.ask("leave_line", self._turn)
            self._turn = 0

    def _watch(self, thing: Brokered | None) -> None:
        if thing is not None and thing.is_here and thing not in self._watched:
            self._watched[thing] = thing.watch(self._look_again)

    def _look_again(self) -> None:
        self._has_news = True
        self._wake()
