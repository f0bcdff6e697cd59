"""Tasks: the code bound to a state, its configuration, and what it is given when it runs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from canobatch import _clock
from canobatch._clock import as_seconds
from canobatch.circuit import CircuitBreaker
from canobatch.errors import CircuitOpenError, ConfigurationError
from canobatch.limits import Limiter, MultiRateLimiter, RateLimiter, WindowedRateLimiter
from canobatch.retry import Retry

if TYPE_CHECKING:
    import logging

    from canobatch.join import SplitResult

_T = TypeVar("_T")

REQUIRED: Any = type("REQUIRED", (), {"__repr__": lambda _: "REQUIRED"})()


class TaskStore(Protocol):
    """What a task may do with a store; stores and the views of tasks share it."""

    def put(self, key: str, value: Any) -> None:
        """Set ``key``; the value is copied at once."""

    def get(self, key: str, default: Any = REQUIRED, *, expect: type | tuple[type, ...] | None = None) -> Any:
        """Return a copy of the value, or ``default``.

        Raises:
            StoreKeyError: The key is missing and no default was given.
            StoreTypeError: The value is not an ``expect``.
        """

    def remove(self, key: str) -> None:
        """Remove ``key``; a missing one is fine."""

    def append(self, key: str, item: Any) -> None:
        """Append to the list under ``key``, made when missing.

        Raises:
            StoreTypeError: The value is not a list; it stays as it was.
        """

    def update(self, key: str, fn: Callable[[Any], Any], default: Any = REQUIRED) -> None:
        """Replace the value by ``fn(value)``; ``fn`` must be pure, it may be called more than once."""

    def add(self, key: str, n: float = 1) -> None:
        """Add ``n`` to the number under ``key``, 0 when missing."""

    def contains(self, key: str) -> bool:
        """Return whether ``key`` is there."""

    def keys(self) -> list[str]:
        """Return all keys, sorted."""

    def clear(self) -> None:
        """Remove every key."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: str) -> Any: ...
    def __setitem__(self, key: str, value: Any) -> None: ...
    def __delitem__(self, key: str) -> None: ...
    def __contains__(self, key: object) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class TaskConfig:
    """How a task's attempts are made.

    Args:
        retry: How many more attempts follow a failed one, and when.
        attempt_timeout: Seconds one attempt may run; it is killed past that. None: no limit.
        memory_limit: Bytes of anonymous memory an attempt and its children may use; killed past that.
        where: "parent" or "worker": where a single task runs. None: the parent, or a worker when a timeout
            or memory limit asks for one. Branches of a split always run in workers.
        circuit_breaker: Asked in the parent before each attempt is sent. While it is open the task fails at once
            with `CircuitOpenError`, whatever ``retry`` says. With that class itself in ``retry_on`` the task waits
            instead until it is let through, which uses no attempt.
        rate_limiter: Asked in the parent before each attempt is sent, which costs 1. Waiting for it occupies no
            worker and uses no attempt; timeouts of the split and the run go on.
        retry_on: Exception classes that may be retried.
        retry_lost_worker: Whether an attempt whose worker died may be retried.

    Raises:
        ConfigurationError: A value is impossible, ``where="parent"`` meets a timeout or memory limit, or the rate
            limiter can never let a call of cost 1 through.

    Example:
        >>> TaskConfig(retry=Retry.fixed(2, 0.5), attempt_timeout=30.0).runs_alone
        True
    """

    retry: Retry = dataclasses.field(default_factory=Retry.none)
    attempt_timeout: float | None = None
    memory_limit: int | None = None
    where: str | None = None
    circuit_breaker: CircuitBreaker | None = None
    rate_limiter: RateLimiter | WindowedRateLimiter | MultiRateLimiter | None = None
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    retry_lost_worker: bool = True

    def __post_init__(self) -> None:
        problems = []
        if isinstance(self.attempt_timeout, timedelta):
            object.__setattr__(self, "attempt_timeout", as_seconds(self.attempt_timeout))
        if isinstance(self.retry_on, type):
            object.__setattr__(self, "retry_on", (self.retry_on,))
        if not isinstance(self.retry, Retry):
            problems.append(f"retry must be a Retry such as Retry.fixed(2, 0.5), got {self.retry!r}")
        if self.attempt_timeout is not None and not _is_above_zero(self.attempt_timeout):
            problems.append(f"attempt_timeout must be above 0 seconds, got {self.attempt_timeout!r}")
        if self.memory_limit is not None and not _is_above_zero(self.memory_limit):
            problems.append(f"memory_limit must be above 0 bytes, got {self.memory_limit!r}")
        if not isinstance(self.retry_on, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, BaseException) for kind in self.retry_on
        ):
            problems.append(f"retry_on must be a tuple of exception classes, got {self.retry_on!r}")
        if self.circuit_breaker is not None and not isinstance(self.circuit_breaker, CircuitBreaker):
            problems.append(f"circuit_breaker must be a CircuitBreaker, got {self.circuit_breaker!r}")
        if self.rate_limiter is not None:
            problems += _problems_of_limiter(self.rate_limiter)
        if self.where not in (None, "parent", "worker"):
            problems.append(f'where must be "parent" or "worker", got {self.where!r}')
        if self.where == "parent" and self.runs_alone:
            problems.append(
                'where="parent" cannot have an attempt_timeout or memory_limit: nothing in the parent can be '
                'killed; use where="worker"'
            )
        if problems:
            raise ConfigurationError("TaskConfig: " + "; ".join(problems), problems)

    @property
    def runs_alone(self) -> bool:
        """Whether an attempt may be killed by itself, so that nothing else may share its worker's window."""
        return self.attempt_timeout is not None or self.memory_limit is not None

    @property
    def has_gate(self) -> bool:
        """Whether anything is asked before an attempt is sent."""
        return self.circuit_breaker is not None or self.rate_limiter is not None

    @property
    def waits_for_circuit(self) -> bool:
        """Whether an open breaker is waited for: its error is named in ``retry_on``, not just a base of it."""
        return any(issubclass(kind, CircuitOpenError) for kind in self.retry_on)


def _problems_of_limiter(limiter: object) -> list[str]:
    if not isinstance(limiter, Limiter):
        return [f"rate_limiter must be a RateLimiter or another limiter, got {limiter!r}"]
    try:
        # Elsewhere it was checked where it was made.
        if limiter.is_here:
            limiter.time_until(1)
    except ConfigurationError as error:
        return [f"rate_limiter: {error}"]
    return []


def _is_above_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


class Params(Mapping[str, Any]):
    """A run's parameters where no dataclass was declared: a read-only mapping with attribute access."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_values":
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            known = ", ".join(sorted(self._values)) or "none"
            raise AttributeError(f"no parameter {name!r} was given to this run; given: {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self) -> tuple[Any, ...]:
        return Params, (self._values,)

    def __repr__(self) -> str:
        return f"Params({self._values!r})"


def bind_params(declared: type | None, given: Any) -> Any:
    """Return a run's parameters: an instance of the ``declared`` dataclass, or `Params`.

    Raises:
        ConfigurationError: ``given`` does not fit; the text names the parameter.
    """
    if declared is None:
        if given is None or isinstance(given, Mapping):
            return Params(given or {})
        if dataclasses.is_dataclass(given):
            return given
        raise ConfigurationError(f"params must be a mapping or a dataclass, got {type(given).__name__}")
    if isinstance(given, declared):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise ConfigurationError(
            f"params must be a {declared.__name__} or a mapping of its fields, got {type(given).__name__}"
        )
    try:
        inspect.signature(declared).bind(**(given or {}))
    except TypeError as error:
        fields = ", ".join(f.name for f in dataclasses.fields(declared))
        raise ConfigurationError(f"params do not fit {declared.__name__}({fields}): {error}") from None
    return declared(**(given or {}))


class ResourceMapping(Protocol):
    """What a task may do with the resources of its workflow, besides reading them as a mapping."""

    @overload
    def find(self, key: Any, kind: type[_T]) -> _T: ...
    @overload
    def find(self, key: Any, kind: None = None) -> Any: ...
    def find(self, key: Any, kind: type[Any] | None = None) -> Any:
        """Return what is under ``key``, set up if need be; see `TaskContext.resource`."""

    def __getitem__(self, key: Any) -> Any: ...
    def __contains__(self, key: object) -> bool: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


class TaskContext:
    """What a task is given when it runs.

    Attributes:
        store: The task's view of the store: as of its state's entry, plus its own writes.
        params: The run's parameters.
        run_id: The run, a string.
        state: The state being run.
        branch: The index of the branch, or None for a single task.
        attempt: The number of this attempt, from 1.
        logger: A standard logger named after the workflow.
        resources: The resources of the workflow, a mapping; see `resource`.
    """

    __slots__ = (
        "_deadline_at", "_is_cancelled", "_report", "_split_of",
        "attempt", "branch", "logger", "params", "resources", "run_id", "state", "store",
    )  # fmt: skip

    def __init__(
        self,
        *,
        store: TaskStore,
        params: Any,
        run_id: str,
        state: Any,
        branch: int | None,
        attempt: int,
        logger: logging.Logger,
        deadline_at: float | None,
        split_of: Callable[[Any], SplitResult],
        report: Callable[[float, float | None, str | None], None],
        is_cancelled: Callable[[], bool],
        resources: ResourceMapping,
    ) -> None:
        self.store = store
        self.params = params
        self.run_id = run_id
        self.state = state
        self.branch = branch
        self.attempt = attempt
        self.logger = logger
        self.resources = resources
        self._deadline_at = deadline_at
        self._split_of = split_of
        self._report = report
        self._is_cancelled = is_cancelled

    def __reduce__(self) -> tuple[Any, ...]:
        # A function for `update` may well mention ctx: what is plain goes along, what is live does not.
        facts = {name: getattr(self, name) for name in ("params", "run_id", "state", "branch", "attempt")}
        return _DetachedContext, (facts,)

    @property
    def deadline(self) -> float | None:
        """Seconds left before this attempt, its split or its run times out; None when nothing limits it."""
        return None if self._deadline_at is None else max(0.0, self._deadline_at - _clock.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the run was cancelled. Only a task in the parent needs to look; others are killed."""
        return self._is_cancelled()

    @overload
    def resource(self, key: Any, type: type[_T]) -> _T: ...
    @overload
    def resource(self, key: Any, type: None = None) -> Any: ...
    def resource(self, key: Any, type: Any = None) -> Any:  # noqa: A002
        """Return a resource of the workflow, an instance of ``type`` if that is given.

        In a worker, one of scope "worker" is set up by the first task that asks for it.

        Raises:
            ResourceLookupError: There is no such key, it is of another type, or it has scope "run" and this is a
                worker.
            ResourceError: It could not be set up.
        """
        return self.resources.find(key, type)

    def split(self, state: Any) -> SplitResult:
        """Return what the last split of ``state`` in this run came to.

        Raises:
            WorkflowError: No split of that state has ended in this run.
        """
        return self._split_of(state)

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Tell the observers how far this attempt is; cheap, and dropped when told too often."""
        self._report(done, total, message)


class _DetachedContext:
    """What is left of a context elsewhere: its plain facts."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.__dict__.update(facts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"ctx.{name} works only while its task runs; take out what you need before")


class Task:
    """Base of class tasks: override ``run(self, ctx)`` or ``run(self)``.

    ``config`` is a class attribute or a dataclass field; None means the workflow's default.
    ``run`` may be ``async``; it is run to its end.

    Example:
        >>> class Hello(Task):
        ...     def run(self, ctx):
        ...         return "done"
    """

    config: TaskConfig | None = None

    # *args: a subclass may take ctx or not.
    def run(self, *args: Any) -> Any:
        """Do the work; a single task returns the next state, a branch its value."""
        raise NotImplementedError(f"{type(self).__name__} must define run(self, ctx) or run(self)")


def task_name(task: Any) -> str:
    """Return a task's name for messages."""
    if isinstance(task, Task):
        return type(task).__name__
    return getattr(task, "__qualname__", None) or type(task).__qualname__


def config_of(task: Any, default: TaskConfig) -> TaskConfig:
    """Return the configuration a task brings along, else ``default``."""
    config = getattr(task, "config", None)
    return config if isinstance(config, TaskConfig) else default


def entry_point(task: Any) -> Callable[..., Any]:
    """Return what is called to run ``task``."""
    return task.run if isinstance(task, Task) else task


def arity_problem(fn: Callable[..., Any], accepted: tuple[int, ...], words: str | None = None) -> str | None:
    """Return why ``fn`` cannot be called with any of the ``accepted`` numbers of arguments, or None."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return None
    if fitting_arity(signature, accepted) is not None:
        return None
    wanted = words or " or ".join({0: "no argument", 1: "(ctx)", 2: "(ctx, item)"}[n] for n in accepted)
    is_of_item = words is None and accepted == (2,) and _can_take(signature, 1)
    cure = "; what takes the item alone is given as lambda ctx, item: f(item)" if is_of_item else ""
    return f"{getattr(fn, '__qualname__', fn)}{signature} must take {wanted}{cure}"


def fitting_arity(signature: inspect.Signature, accepted: tuple[int, ...]) -> int | None:
    """Return which of the ``accepted`` numbers of arguments to call with, or None."""
    counts = [count for count in accepted if _can_take(signature, count)]
    if counts == [1, 0] and not _wants_one(signature):
        # ``lambda items=items: ...`` keeps what it was given.
        return 0
    return counts[0] if counts else None


def _can_take(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _wants_one(signature: inspect.Signature) -> bool:
    """Return whether a function that may be called with nothing is meant to get the context."""
    first = next(iter(signature.parameters.values()), None)
    return first is not None and (first.name == "ctx" or first.kind is inspect.Parameter.VAR_POSITIONAL)


def bound_call(fn: Callable[..., Any], accepted: tuple[int, ...]) -> Callable[..., Any]:
    """Return ``fn`` as a function of as many arguments as ``accepted[0]``, run to its end if ``async``."""
    count = arity(fn, accepted)

    def call(*args: Any) -> Any:
        result = fn(*args[:count])
        if inspect.iscoroutine(result):
            import asyncio  # noqa: PLC0415 - seldom needed, slow to import

            return asyncio.run(result)
        return result

    return call


def arity(fn: Callable[..., Any], accepted: tuple[int, ...]) -> int:
    """Return with how many of the ``accepted`` numbers of arguments to call ``fn``."""
    try:
        found = fitting_arity(inspect.signature(fn), accepted)
    except (TypeError, ValueError):
        found = None
    return accepted[0] if found is None else found
