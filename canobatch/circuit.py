"""When calls to something that fails are not made any more: the circuit breaker's decisions. Pure."""

from __future__ import annotations

import itertools
from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar

from canobatch.brokered import Brokered, Permit
from canobatch.errors import CircuitOpenError, ConfigurationError

#: Seconds that a trial has at least, before it is taken to hang.
_TRIAL_PATIENCE = 60.0


class CircuitState(StrEnum):
    """What a breaker does with calls."""

    #: Lets all through.
    CLOSED = "closed"
    #: Lets none through.
    OPEN = "open"
    #: Lets trials through.
    HALF_OPEN = "half_open"


class CircuitBreaker(Brokered):
    """Stops calls to what has failed several times in a row, and lets trial calls find out when it is well again.

    ``failure_threshold`` consecutive failures open it. For ``reset_timeout`` seconds it lets nothing through;
    then up to ``half_open_max_calls`` trials at a time. As many successes close it, one failure opens it again.
    A trial that hangs gives its place to another after ten times ``reset_timeout``, and a minute at least.

    Attached by ``TaskConfig(circuit_breaker=)`` it is asked, in the parent, before each attempt is sent; every
    failed attempt counts, also a timeout or a lost worker, and what was killed because its split or run ended
    counts as neither success nor failure. One breaker may be attached to any number of tasks and workflows.

    By hand it works in every process, as ``with breaker.acquire(): ...``; there, too, it is the same breaker.

    Args:
        failure_threshold: Consecutive failures that open it.
        reset_timeout: Seconds it stays open; `timedelta` is fine.
        half_open_max_calls: Trials at a time when half open, and successes that close it.

    Raises:
        ConfigurationError: An argument is impossible.

    Example:
        >>> breaker = CircuitBreaker(failure_threshold=2, reset_timeout=30.0)
        >>> with breaker.acquire():
        ...     pass  # the call
        >>> breaker.state
        <CircuitState.CLOSED: 'closed'>
    """

    operations: ClassVar[frozenset[str]] = frozenset({"admit", "give_back", "refusal", "report"})

    def __init__(
        self, failure_threshold: int = 5, reset_timeout: float | timedelta = 30.0, half_open_max_calls: int = 1
    ) -> None:
        super().__init__()
        if isinstance(reset_timeout, timedelta):
            reset_timeout = reset_timeout.total_seconds()
        problems = [
            f"{name} must be a whole number of at least 1, got {value!r}"
            for name, value in (("failure_threshold", failure_threshold), ("half_open_max_calls", half_open_max_calls))
            if not isinstance(value, int) or isinstance(value, bool) or value < 1
        ]
        if not isinstance(reset_timeout, int | float) or not 0 <= reset_timeout < float("inf"):
            problems.append(f"reset_timeout must be a number of seconds of at least 0, got {reset_timeout!r}")
        if problems:
            raise ConfigurationError("CircuitBreaker: " + "; ".join(problems), problems)
        self.failure_threshold = failure_threshold
        self.reset_timeout = float(reset_timeout)
        self.half_open_max_calls = half_open_max_calls
        self._state = CircuitState.CLOSED
        self._failures = 0
        self._successes = 0
        self._opens_at = 0.0
        self._tickets = itertools.count(1)
        #: Calls that were let through in this state, and when. One of an earlier state says nothing any more.
        self._calls: dict[int, float] = {}

    # -- by hand

    def acquire(self) -> Permit:
        """Return a permit for one call; end it by ``succeed()``, ``fail()``, or by leaving its ``with``.

        Raises:
            CircuitOpenError: The breaker lets no call through.
        """
        return Permit(self, self.ask("admit"))

    @property
    def state(self) -> CircuitState:
        """What it does with calls; an open one turns half open with the first call after its time, not before."""
        return CircuitState(self.ask("report"))

    # -- decisions

    def admit(self, now: float) -> int:
        """Let a call through and return its ticket.

        Raises:
            CircuitOpenError: It lets no call through.
        """
        wait = self.refusal(now)
        if wait is not None:
            trials = f"its {self.half_open_max_calls} trial calls are under way"
            why = trials if self._state is CircuitState.HALF_OPEN else f"{self._failures} calls in a row have failed"
            raise CircuitOpenError(
                f"the circuit breaker is {self._state.replace('_', ' ')}: {why}; the next may be made in {wait:.3g} s",
                retry_after=wait,
            )
        if self._state is CircuitState.OPEN:
            self._turn(CircuitState.HALF_OPEN)
        ticket = next(self._tickets)
        self._calls[ticket] = now
        return ticket

    def refusal(self, now: float) -> float | None:
        """Return for how many seconds calls are refused, None when one may be made; changes nothing."""
        if self._state is CircuitState.OPEN:
            return self._opens_at - now if now < self._opens_at else None
        if self._state is CircuitState.HALF_OPEN:
            patience = max(_TRIAL_PATIENCE, 10 * self.reset_timeout)
            ends = sorted(began + patience for began in list(self._calls.values()))
            trials = [end for end in ends if end > now]
            if len(trials) >= self.half_open_max_calls:
                return trials[len(trials) - self.half_open_max_calls] - now
        return None

    def give_back(self, ticket: int, outcome: bool | None, now: float) -> None:
        """Take note of how a call ended: success, failure or (None) neither."""
        if self._calls.pop(ticket, None) is None or outcome is None:
            return
        if self._state is CircuitState.CLOSED:
            self._failures = 0 if outcome else self._failures + 1
            if self._failures >= self.failure_threshold:
                self._open(now)
        elif not outcome:
            self._failures += 1
            self._open(now)
        else:
            self._successes += 1
            if self._successes >= self.half_open_max_calls:
                self._failures = 0
                self._turn(CircuitState.CLOSED)

    def report(self, _now: float) -> str:
        """Return the state's name; changes nothing."""
        return self._state.value

    def _open(self, now: float) -> None:
        self._opens_at = now + self.reset_timeout
        self._turn(CircuitState.OPEN)

    def _turn(self, state: CircuitState) -> None:
        self._state = state
        self._successes = 0
        self._calls.clear()

    def facts(self) -> dict[str, Any]:
        """Return its settings."""
        names = ("failure_threshold", "reset_timeout", "half_open_max_calls")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        return f"CircuitBreaker({self.failure_threshold}, {self.reset_timeout:g}, {self.half_open_max_calls})"
