"""What a failed attempt means: which error it is, whether another attempt follows."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, NamedTuple

from canobatch.definition import label
from canobatch.effects import describe_error, rebuild_error
from canobatch.errors import (
    CircuitOpenError,
    CompensationError,
    ConfigurationError,
    MemoryLimitError,
    PayloadError,
    RateLimitedError,
    ResourceLookupError,
    RetryExhaustedError,
    StoreError,
    StoreKeyError,
    StoreTypeError,
    TaskError,
    TaskTimeoutError,
    WorkerLostError,
    WorkflowError,
)
from canobatch.join import BranchStatus
from canobatch.pool import Finished, Lost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from canobatch.task import TaskConfig

#: Another attempt cannot mend these.
_HOPELESS = (ConfigurationError, PayloadError, ResourceLookupError, WorkflowError, CompensationError)
#: Nor these, as a rule: an attempt sees the store as the one before did. Who names them in ``retry_on`` knows better.
_LASTING = (StoreKeyError, StoreTypeError)


class Where(NamedTuple):
    """Which attempt an error belongs to."""

    state: Any
    branch: int | None
    attempt: int
    #: The run's; errors keep a copy.
    path: Sequence[Any]

    def __str__(self) -> str:
        branch = "" if self.branch is None else f", branch {self.branch}"
        return f"state {label(self.state)}{branch}, attempt {self.attempt}"

    @property
    def facts(self) -> dict[str, Any]:
        """Keyword arguments of a `TaskError`."""
        return self._asdict()


def error_of(event: Finished | Lost, where: Where) -> TaskError:
    """Return the error of an attempt that failed in a worker."""
    if isinstance(event, Finished):
        own = rebuild_error(event.payload)
        return wrap(own, where, traceback=event.payload[2])
    if event.reason == "timeout":
        limit = event.call.timeout or 0.0
        return TaskTimeoutError(f"{where}: did not end within {limit:g} s and was killed", limit=limit, **where.facts)
    if event.reason == "memory":
        limit, used = event.call.memory_limit or 0, event.used or 0
        text = f"{where}: used {used / 1e6:.0f} MB, more than its limit of {limit / 1e6:.0f} MB, and was killed"
        return MemoryLimitError(text, limit=limit, used=used, **where.facts)
    number = -event.exitcode if event.exitcode is not None and event.exitcode < 0 else None
    code = event.exitcode if number is None else None
    if number is not None:
        how = f"killed by signal {number} ({_signal_name(number)})"
        how += "; the kernel does that when memory runs out" if number == signal.SIGKILL else ""
    else:
        how = f"it exited with status {code}"
    return WorkerLostError(
        f"{where}: its worker (pid {event.pid}) died: {how}", pid=event.pid, exitcode=code, signal=number, **where.facts
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def wrap(own: BaseException, where: Where, *, traceback: str = "") -> TaskError:
    """Return the `TaskError` whose cause is the task's ``own`` error."""
    text = f"{where}: {describe_error(own)}"
    kind = PayloadError if isinstance(own, PayloadError) else TaskError
    error = kind(text, traceback=traceback, **where.facts)
    error.__cause__ = own.__cause__ if kind is PayloadError else own
    if traceback:
        error.add_note("in the worker:\n" + traceback.rstrip())
    return error


def unpacking_error(error: BaseException, where: Where) -> PayloadError:
    """Return the error of a result that arrived and cannot be made into a value."""
    text = f"{where}: its result cannot be unpacked here: {describe_error(error)}; return plain data"
    failure = PayloadError(text, **where.facts)
    failure.__cause__ = error
    return failure


def may_retry(config: TaskConfig, error: TaskError) -> bool:
    """Return whether another attempt follows ``error``."""
    return error.attempt < config.retry.max_attempts and is_mendable(config, error)


def is_mendable(config: TaskConfig, error: TaskError) -> bool:
    """Return whether another attempt might do better."""
    if isinstance(error, WorkerLostError):
        return config.retry_lost_worker
    own = own_error(error)
    if isinstance(own, CircuitOpenError):
        # By hand, in the task: an attempt against an open breaker is of no use, unless it is asked for by name.
        return config.waits_for_circuit
    if isinstance(own, _LASTING) and not any(issubclass(kind, StoreError) for kind in config.retry_on):
        return False
    return isinstance(own, config.retry_on) and not isinstance(own, _HOPELESS)


def delay_before_next(config: TaskConfig, error: TaskError, random: Callable[[], float]) -> float:
    """Return the seconds from a failed attempt to the next: not less than its error asks for."""
    delay = config.retry.delay(error.attempt, random)
    own = own_error(error)
    if isinstance(own, RateLimitedError | CircuitOpenError) and own.retry_after is not None:
        return max(delay, own.retry_after)
    return delay


def own_error(error: TaskError) -> BaseException:
    """Return the error that the task itself raised, where there is one."""
    return error.__cause__ if type(error) is TaskError and error.__cause__ is not None else error


def final_error(config: TaskConfig, error: TaskError) -> TaskError:
    """Return what a task that failed for good is reported with."""
    if config.retry.max_attempts == 1 or error.attempt < config.retry.max_attempts:
        return error
    own = own_error(error)
    text = f"{error} (attempt {error.attempt} of {config.retry.max_attempts}, the last)"
    exhausted = RetryExhaustedError(
        text,
        attempts=error.attempt,
        last_error=own,
        state=error.state,
        branch=error.branch,
        path=error.path,
        traceback=error.traceback,
    )
    exhausted.__cause__ = own
    return exhausted


def status_of(error: TaskError) -> BranchStatus:
    """Return a failed branch's status."""
    own = error.last_error if isinstance(error, RetryExhaustedError) else error
    if isinstance(own, TaskTimeoutError):
        return BranchStatus.TIMED_OUT
    if isinstance(own, WorkerLostError):
        return BranchStatus.LOST
    return BranchStatus.FAILED
