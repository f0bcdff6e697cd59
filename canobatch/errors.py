"""Every error canobatch raises, in one tree.

::

    CanobatchError
    ├── ConfigurationError (ValueError)      a definition or an argument that can never work
    │   └── TargetError                      the launcher cannot load what it was pointed at
    ├── WorkflowError                        a run met something its definition does not allow
    │   └── WorkflowTimeoutError (TimeoutError)
    ├── TaskError                            an attempt failed; ``__cause__`` is the task's own error
    │   ├── TaskTimeoutError (TimeoutError)
    │   ├── MemoryLimitError (MemoryError)
    │   ├── WorkerLostError                  the process running the attempt died
    │   ├── PayloadError (TypeError)         something could not cross between processes
    │   ├── CircuitOpenError                 a circuit breaker let no call through
    │   └── RetryExhaustedError              every allowed attempt failed
    ├── RateLimitedError                     not now: too many calls, with the seconds to wait
    ├── ResourceError                        a resource could not be set up, reached or found
    │   └── ResourceLookupError (LookupError) no such key, another type, or out of reach of a worker
    ├── RemoteError                          stands in for a task's error whose class cannot be rebuilt here
    ├── JoinError                            a split did not meet its strategy
    ├── StoreError
    │   ├── StoreKeyError (KeyError)
    │   ├── StoreTypeError (TypeError)
    │   ├── StoreFullError (MemoryError)
    │   └── CommitError                      writes of accepted tasks could not be applied
    ├── JournalError                         a journal cannot be read or written
    │   ├── RunNotFoundError (KeyError)
    │   ├── RunInUseError                    the run has a living owner, or exists already
    │   └── VersionMismatchError             the run was made by another definition
    ├── PoolClosedError (RuntimeError)       a call on a pool that was closed or belongs to another process
    ├── CompensationError                    a run failed, and so did some of its roll-back
    ├── RunCancelledError                    the run was cancelled
    └── SchedulerError                       a scheduler cannot do what it was asked
        ├── UnknownFlowError (KeyError)
        ├── FlowOverlapError                 the flow runs already, and its overlap policy is to skip
        ├── FlowPausedError                  unpause it first
        └── FlowTrippedError                 it failed too often in a row; reset it first

Each survives pickling with its text, attributes and notes.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def _rebuild(cls: type[CanobatchError], args: tuple[Any, ...], state: dict[str, Any]) -> CanobatchError:
    # MemoryError has a __new__ of its own, which refuses to make a subclass with another layout.
    error: CanobatchError = (OSError if issubclass(cls, OSError) else Exception).__new__(cls, *args)
    error.args = args
    cause = state.pop("__cause__", None)
    error.__dict__.update(state)
    error.__cause__ = cause
    return error


def _is_picklable(error: BaseException) -> bool:
    """Return whether an error of a user's class crosses whole; one that does not is left behind."""
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), BaseException)  # noqa: S301 - made here
    except Exception:  # noqa: BLE001
        return False


class CanobatchError(Exception):
    """Root of all errors of canobatch; catch it to catch them all."""

    def __reduce__(self) -> tuple[Any, ...]:
        state = self.__dict__.copy()
        cause = self.__cause__
        if cause is not None and _is_picklable(cause):
            state["__cause__"] = cause
        return _rebuild, (type(self), self.args, state)

    def __str__(self) -> str:
        # KeyError would print the repr of a message.
        return str(self.args[0]) if self.args else ""


class ConfigurationError(CanobatchError, ValueError):
    """A definition or an argument that can never work; raised before anything runs.

    Attributes:
        problems: Every problem found, one sentence each, with its fix.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems: tuple[str, ...] = tuple(problems) or (message,)


class TargetError(ConfigurationError):
    """The launcher cannot load what it was pointed at; ``__cause__`` is what its code raised, if it did.

    Attributes:
        target: As it was given.
    """

    def __init__(self, message: str, problems: Sequence[str] = (), *, target: str = "") -> None:
        super().__init__(message, problems)
        self.target = target


class WorkflowError(CanobatchError):
    """A run met something that its definition does not allow.

    Attributes:
        state: The state in which it happened, or None.
        path: The states entered so far.
    """

    def __init__(self, message: str, *, state: Any = None, path: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.state = state
        self.path = tuple(path)


class WorkflowTimeoutError(WorkflowError, TimeoutError):
    """The run's ``total_timeout`` passed.

    Attributes:
        elapsed: Seconds since the run started.
        limit: The allowed seconds.
    """

    def __init__(
        self, message: str, *, elapsed: float, limit: float, state: Any = None, path: Sequence[Any] = ()
    ) -> None:
        super().__init__(message, state=state, path=path)
        self.elapsed = elapsed
        self.limit = limit


class TaskError(CanobatchError):
    """An attempt of a task failed. ``__cause__`` is the task's own error, where there is one.

    Attributes:
        state: The state the task belongs to.
        branch: The index of the branch, or None for a single task.
        attempt: The attempt that failed, from 1.
        path: The states the run had entered.
        traceback: The traceback's text as the worker saw it, or "".
    """

    def __init__(
        self,
        message: str,
        *,
        state: Any = None,
        branch: int | None = None,
        attempt: int = 1,
        path: Sequence[Any] = (),
        traceback: str = "",
    ) -> None:
        super().__init__(message)
        self.state = state
        self.branch = branch
        self.attempt = attempt
        self.path = tuple(path)
        self.traceback = traceback


class TaskTimeoutError(TaskError, TimeoutError):
    """An attempt ran longer than its ``attempt_timeout`` and was killed.

    Attributes:
        limit: The allowed seconds.
    """

    def __init__(self, message: str, *, limit: float = 0.0, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.limit = limit


class MemoryLimitError(TaskError, MemoryError):
    """An attempt used more than its ``memory_limit`` and was killed.

    Attributes:
        limit: The allowed bytes.
        used: The bytes it was seen to use.
    """

    def __init__(self, message: str, *, limit: int = 0, used: int = 0, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.limit = limit
        self.used = used


class WorkerLostError(TaskError):
    """The process that ran the attempt died: a crash, ``os._exit``, the OOM killer, a foreign kill.

    Attributes:
        pid: The process that died.
        exitcode: Its exit status, or None when a signal ended it.
        signal: The number of the signal that ended it, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        pid: int | None = None,
        exitcode: int | None = None,
        signal: int | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.pid = pid
        self.exitcode = exitcode
        self.signal = signal


class PayloadError(TaskError, TypeError):
    """A task, argument, result or error could not be packed or unpacked for another process."""


class RemoteError(CanobatchError):
    """Stands in for a task's error whose class cannot be rebuilt here.

    Attributes:
        type_name: The qualified name of the original class.
    """

    def __init__(self, message: str, *, type_name: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name


class CircuitOpenError(TaskError):
    """A circuit breaker let no call through: what it protects has failed too often.

    Where the breaker is attached by `TaskConfig`, the attempt was not made, and ``attempt`` counts those before it.

    Attributes:
        retry_after: Seconds until the breaker may let a trial call through.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0, attempt: int = 0, **facts: Any) -> None:
        super().__init__(message, attempt=attempt, **facts)
        self.retry_after = retry_after


class RetryExhaustedError(TaskError):
    """Every allowed attempt of a task failed.

    Attributes:
        attempts: How many attempts were made.
        last_error: The error of the last one; also ``__cause__``.
    """

    def __init__(
        self, message: str, *, attempts: int = 1, last_error: BaseException | None = None, **facts: Any
    ) -> None:
        facts.setdefault("attempt", attempts)
        super().__init__(message, **facts)
        self.attempts = attempts
        self.last_error = last_error


class RateLimitedError(CanobatchError):
    """Not now: too many calls. Raised by limiters used by hand, and by a task's own code.

    When a task raises it and may be retried, the next attempt waits at least ``retry_after``, whatever its
    `Retry` says.

    Args:
        message: What happened; a number is taken as ``retry_after``.
        retry_after: Seconds to wait before the next call; None: not known.
        tier: The tier of a `MultiRateLimiter` that has to be waited for longest, or "".

    Example:
        >>> RateLimitedError("the server answered 429", retry_after=30.0).retry_after
        30.0
    """

    def __init__(self, message: str | float = "", *, retry_after: float | None = None, tier: str = "") -> None:
        if not isinstance(message, str):
            message, retry_after = "", float(message)
        if not message:
            message = "too many calls" + ("" if retry_after is None else f"; try again in {retry_after:g} s")
        super().__init__(message)
        self.retry_after = retry_after
        self.tier = tier


class ResourceError(CanobatchError):
    """A resource could not be set up, or cannot be reached from here.

    Attributes:
        key: The key of the resource, or None.
    """

    def __init__(self, message: str, *, key: Any = None) -> None:
        super().__init__(message)
        self.key = key


class ResourceLookupError(ResourceError, LookupError):
    """A lookup that can never work: no such key, another type, or a run-scoped resource from a worker."""


class JoinError(CanobatchError):
    """A split did not meet its strategy.

    Attributes:
        state: The state of the split.
        result: The `SplitResult` with every branch's status, value and error.
    """

    def __init__(self, message: str, *, state: Any = None, result: Any = None) -> None:
        super().__init__(message)
        self.state = state
        self.result = result


class StoreError(CanobatchError):
    """An operation on a store failed.

    Attributes:
        key: The key it was about, or None.
    """

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class StoreKeyError(StoreError, KeyError):
    """The key is not in the store and no default was given."""


class StoreTypeError(StoreError, TypeError):
    """The value under the key has another type than the operation needs."""


class StoreFullError(StoreError, MemoryError):
    """The store's quota is used up; what was there is intact."""


class CommitError(StoreError):
    """The writes of accepted tasks could not be applied; the store is as it was.

    Attributes:
        writer: Whose operation failed, such as "branch 3".
    """

    def __init__(self, message: str, *, writer: str = "", key: str | None = None) -> None:
        super().__init__(message, key=key)
        self.writer = writer


class JournalError(CanobatchError):
    """A journal cannot be read or written; what it holds is as it was.

    Attributes:
        path: The file it is about, or "".
        reason: What is wrong, in one word: "full", "readonly", "corrupt", "newer", "foreign", "busy", "closed",
            "network", "io", "duplicate", or "" for one of the classes below.
    """

    def __init__(self, message: str, *, path: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason


class RunNotFoundError(JournalError, KeyError):
    """The journal has no run of this id.

    Attributes:
        run_id: The id.
    """

    def __init__(self, message: str, *, run_id: str = "", **facts: Any) -> None:
        super().__init__(message, **facts)
        self.run_id = run_id


class RunInUseError(JournalError):
    """The run has a living owner, or a new run was to have the id of one that exists.

    Attributes:
        run_id: The id.
        pid: The owner's process, None where that is not known.
    """

    def __init__(self, message: str, *, run_id: str = "", pid: int | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.run_id = run_id
        self.pid = pid


class VersionMismatchError(JournalError):
    """The run was begun by another workflow, version or interpreter than the one that is to resume it.

    Attributes:
        run_id: The id.
        recorded: What the journal says.
        present: What was found here.
    """

    def __init__(self, message: str, *, run_id: str = "", recorded: str = "", present: str = "", **facts: Any) -> None:
        super().__init__(message, **facts)
        self.run_id = run_id
        self.recorded = recorded
        self.present = present


class PoolClosedError(CanobatchError, RuntimeError):
    """A call on a pool that was closed, or that belongs to another process."""


class CompensationError(CanobatchError):
    """A run failed, and what it had done could not all be undone. ``__cause__`` is what it failed with.

    Attributes:
        errors: What failed while rolling back, in that order; one for each task that is still in effect or in doubt.
        original: What the run failed with.
    """

    def __init__(
        self, message: str, *, errors: Sequence[BaseException] = (), original: BaseException | None = None
    ) -> None:
        super().__init__(message)
        self.errors: tuple[BaseException, ...] = tuple(errors)
        self.original = original


class RunCancelledError(CanobatchError):
    """The run was cancelled.

    Attributes:
        reason: What was given to ``cancel``.
        state: The state in which the cancel was seen.
        path: The states entered so far.
    """

    def __init__(self, message: str, *, reason: str = "", state: Any = None, path: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.state = state
        self.path = tuple(path)


class SchedulerError(CanobatchError):
    """A scheduler cannot do what it was asked.

    Attributes:
        flow: The id of the flow it is about, or None.
    """

    def __init__(self, message: str, *, flow: str | None = None) -> None:
        super().__init__(message)
        self.flow = flow


class UnknownFlowError(SchedulerError, KeyError):
    """The scheduler has no flow with that id."""


class FlowOverlapError(SchedulerError):
    """The flow runs already, and its overlap policy does not let another run begin or wait.

    Attributes:
        run_ids: The runs that are in the way.
    """

    def __init__(self, message: str, *, flow: str | None = None, run_ids: Sequence[str] = ()) -> None:
        super().__init__(message, flow=flow)
        self.run_ids = tuple(run_ids)


class FlowPausedError(SchedulerError):
    """The flow is paused; ``unpause_flow`` lets it run again."""


class FlowTrippedError(SchedulerError):
    """The flow failed too often in a row; ``reset_flow`` lets it run again."""
