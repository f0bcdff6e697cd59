"""Resources: live things under keys, set up before a run and torn down after it, or kept by each worker."""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar, TypeVar, overload

from canobatch import _clock
from canobatch.brokered import Brokered
from canobatch.errors import ConfigurationError, ResourceError, ResourceLookupError
from canobatch.limits import Semaphore

__all__ = ["Counter", "Health", "HealthStatus", "Resource", "Resources", "Semaphore"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Seconds that a hook of a thing without a `hook_timeout` may take.
HOOK_TIMEOUT = 60.0


class HealthStatus(StrEnum):
    """How well something is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


_BY_SEVERITY = tuple(HealthStatus)


@dataclass(frozen=True, slots=True)
class Health:
    """What a health check found: a status, and the reason where it is not healthy."""

    status: HealthStatus = HealthStatus.HEALTHY
    reason: str = ""

    @classmethod
    def degraded(cls, reason: str) -> Health:
        """It works, but not as it should."""
        return cls(HealthStatus.DEGRADED, reason)

    @classmethod
    def unhealthy(cls, reason: str) -> Health:
        """It does not work."""
        return cls(HealthStatus.UNHEALTHY, reason)


class Resource:
    """Base of what has to be set up before it is used and torn down afterwards; override what is needed.

    ``scope="run"``: in the launcher. Set up before a run's first state, in the order of the keys; torn down after
    its end, whatever that was, in the reverse order. Runs that go on at the same time share it: the first sets it
    up, the last tears it down. Tasks that run in the parent use it, from the threads of their runs; its hooks have
    a thread of their own. So what insists on one thread has to be told: ``sqlite3.connect(...,
    check_same_thread=False)``. A cancel that comes during a hook takes effect after it.

    ``scope="worker"``: a copy in each worker that asks for it, pickled as it was given; set up when first asked
    for, by the first attempt that does, kept for later tasks and runs of the workflow at that pool, torn down
    when the worker ends normally: a killed one tears down nothing. Hooks and tasks share the worker's main
    thread, and a setup counts for the ``attempt_timeout`` of the attempt that asked. A pool that closes gives its
    workers 2 s to end. A task in the parent gets a copy of the launcher's own, which is torn down with those of
    scope "run".

    No hook is waited for longer than ``hook_timeout`` seconds. Past that a setup has failed, and in a worker ends
    the process; a teardown is left alone, in its thread, with a warning.

    Attributes:
        scope: "run" or "worker"; a class attribute or an argument.
        hook_timeout: Seconds that each of the hooks may take, or a `timedelta`; None: no limit.

    Example:
        >>> class Model(Resource):
        ...     scope = "worker"
        ...     def setup(self):
        ...         self.weights = list(range(1000))
        >>> resources = Resources({"model": Model()})
    """

    scope: str = "run"
    hook_timeout: float | timedelta | None = HOOK_TIMEOUT

    def __init__(self, *, scope: str | None = None) -> None:
        if scope is not None:
            self.scope = scope

    def setup(self) -> None:
        """Make it ready. What this raises fails the run, or in a worker the attempt."""

    def teardown(self) -> None:
        """Give back what it holds. What this raises is logged; the next one's turn comes all the same."""

    def health(self) -> Health:
        """Return how well it is."""
        return Health()


class Counter(Brokered):
    """A number that tasks in all processes add to at once; `add` returns the sum, and no addition is lost.

    It is not part of the store: also what a killed or failed attempt added, counts.

    Args:
        start: What it begins with.

    Raises:
        ConfigurationError: ``start`` is not a number.

    Example:
        >>> counter = Counter()
        >>> counter.add(2), counter.value
        (2, 2)
    """

    operations: ClassVar[frozenset[str]] = frozenset({"plus"})

    def __init__(self, start: float = 0) -> None:
        super().__init__()
        self._sum = _number(start)

    def add(self, n: float = 1) -> float:
        """Add ``n`` and return the sum."""
        total: float = self.ask("plus", _number(n))
        return total

    @property
    def value(self) -> float:
        """The sum."""
        return self.add(0)

    def plus(self, n: float, _now: float) -> float:
        """Add at home."""
        self._sum += n
        return self._sum

    def __repr__(self) -> str:
        return "Counter()"


def _number(value: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigurationError(f"Counter: it takes numbers, got {value!r}")
    return value


class Resources(Mapping[Any, Any]):
    """An ordered dictionary of live things: `Resource`, limits, semaphores, counters, or any object.

    Given to ``Workflow(resources=)``. Tasks find them by ``ctx.resource(key, type)`` or ``ctx.resources[key]``.
    Limiters, breakers, semaphores and counters can be used in every process; what has no hooks is just there, in
    the parent. Nothing can be added once a run has begun.

    Raises:
        ConfigurationError: Something is no resource: None, a class, or of an unknown scope.

    Example:
        >>> resources = Resources({"seats": Semaphore(2)}).insert("hits", Counter())
        >>> resources.find("hits", Counter).add()
        1
    """

    def __init__(self, things: Mapping[Any, Any] | None = None) -> None:
        self._things: dict[Any, Any] = {}
        #: Held while something is set up or torn down, so that a second run waits for that.
        self._lock = threading.RLock()
        self._holders = 0
        self._is_frozen = False
        #: What is set up, in that order.
        self._live: dict[Any, Any] = {}
        for key, thing in (things or {}).items():
            self.insert(key, thing)

    def insert(self, key: Any, thing: Any) -> Resources:
        """Add ``thing`` under ``key`` and return self.

        Raises:
            ConfigurationError: The key is taken, the thing is no resource, or a run has begun.
        """
        if self._is_frozen:
            raise ConfigurationError(f"resource {key!r} cannot be added: a run has used these resources")
        if key in self._things:
            raise ConfigurationError(f"there is a resource {key!r} already; give this one another key")
        if thing is None or isinstance(thing, type):
            cure = f"; give an instance: {thing.__name__}(...)" if thing is not None else ""
            raise ConfigurationError(f"resource {key!r} cannot be {thing!r}{cure}")
        if scope_of(thing) not in _SCOPES:
            raise ConfigurationError(f'resource {key!r}: scope must be "run" or "worker", got {scope_of(thing)!r}')
        _check_hook_timeout(key, thing)
        self._things[key] = thing
        return self

    # -- reading

    @overload
    def find(self, key: Any, kind: type[_T]) -> _T: ...
    @overload
    def find(self, key: Any, kind: None = None) -> Any: ...
    def find(self, key: Any, kind: type[Any] | None = None) -> Any:
        """Return what is under ``key``, which must be a ``kind`` if that is given.

        Raises:
            ResourceLookupError: There is no such key, or it is of another type.
            ResourceError: It could not be set up here.
        """
        if key not in self._things:
            raise missing(key, self._things)
        thing = self._things[key]
        if scope_of(thing) == "worker":
            thing = self._own_copy(key, thing)
        return checked(key, thing, kind)

    def __getitem__(self, key: Any) -> Any:
        return self.find(key)

    def __contains__(self, key: object) -> bool:
        return key in self._things

    def get(self, key: Any, default: Any = None) -> Any:
        """Return what is under ``key``, or ``default``."""
        return self.find(key) if key in self._things else default

    def __iter__(self) -> Iterator[Any]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def health(self) -> dict[Any, Health]:
        """Ask each how well it is, in order; one that raises or hangs is unhealthy.

        What lives in workers cannot be asked from here, and counts as healthy.
        """
        found = {}
        for key, thing in self._things.items():
            is_elsewhere = scope_of(thing) != "run" and key not in self._live
            found[key] = Health() if is_elsewhere else _health_of(key, self._live.get(key, thing))
        return found

    def worst_health(self) -> Health:
        """Return the worst of `health`, the first where there are several; healthy when there is nothing."""
        return max(self.health().values(), key=lambda health: _BY_SEVERITY.index(health.status), default=Health())

    # -- the life of a run

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have them set up for as long as this context is open; the last to leave it tears them down.

        Raises:
            ResourceError: One could not be set up; those before it are torn down again.
        """
        self._hold()
        try:
            yield
        finally:
            self._let_go()

    def _hold(self) -> None:
        with self._lock:
            self._is_frozen = True
            if self._holders == 0:
                try:
                    for key, thing in self._things.items():
                        if scope_of(thing) == "run":
                            run_hook(key, thing, "setup")
                            self._live[key] = thing
                except BaseException:
                    self._tear_down()
                    raise
                _held.add(self)
            self._holders += 1

    def _let_go(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._tear_down()

    def _tear_down(self) -> None:
        _held.discard(self)
        while self._live:
            tear_down(*self._live.popitem())

    def _own_copy(self, key: Any, thing: Any) -> Any:
        """Return the launcher's own copy of a worker's resource, set up when first asked for."""
        with self._lock:
            if key not in self._live:
                copy = unpacked(key, pack(key, thing))
                run_hook(key, copy, "setup")
                self._live[key] = copy
            return self._live[key]

    def close(self) -> None:
        """Tear down what is still set up; for the end of the process."""
        with self._lock:
            self._tear_down()

    # -- for workers

    def packed(self) -> dict[Any, bytes | None]:
        """Return what workers need: each resource's pickle, None for those that stay in the launcher."""
        return {key: None if scope_of(thing) == "run" else pack(key, thing) for key, thing in self._things.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        # A task that mentions them must not drag connections along.
        return _ResourcesElsewhere, ()

    def __repr__(self) -> str:
        return f"Resources({', '.join(map(repr, self._things))})"


class _ResourcesElsewhere:
    """What a task's own mention of its workflow's resources becomes in a worker."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ResourceError(f"resources cannot be used in a worker by themselves (.{name}); use ctx.resource(key)")


# -- what both sides share

#: "everywhere" is what has one home and is asked from all processes.
_SCOPES = ("run", "worker", "everywhere")


def scope_of(thing: Any) -> Any:
    """Return where ``thing`` lives: "run", "worker" or "everywhere"."""
    if isinstance(thing, Brokered):
        return "everywhere"
    return thing.scope if isinstance(thing, Resource) else "run"


def missing(key: Any, known: Mapping[Any, Any]) -> ResourceLookupError:
    """Return the error of a key that is not there."""
    keys = ", ".join(map(repr, known)) or "none; give Workflow(resources=...)"
    return ResourceLookupError(f"there is no resource {key!r}; keys: {keys}", key=key)


def checked(key: Any, thing: Any, kind: type[Any] | None) -> Any:
    """Return ``thing`` if it is a ``kind``.

    Raises:
        ResourceLookupError: It is not.
    """
    if kind is not None and not isinstance(thing, kind):
        raise ResourceLookupError(
            f"resource {key!r} is a {type(thing).__qualname__}, not a {kind.__qualname__}", key=key
        )
    return thing


def pack(key: Any, thing: Any) -> bytes:
    """Pickle a resource.

    Raises:
        ResourceError: It does not pickle.
    """
    import cloudpickle  # noqa: PLC0415 - 35 ms, seldom needed

    try:
        data: bytes = cloudpickle.dumps(thing)
    except Exception as error:
        raise ResourceError(
            f"resource {key!r} cannot be sent to a worker: {type(error).__name__}: {error}; "
            "open what does not pickle in its setup()",
            key=key,
        ) from error
    return data


def unpacked(key: Any, data: bytes) -> Any:
    """Return the resource that `pack` packed.

    Raises:
        ResourceError: It does not unpickle here.
    """
    import pickle  # noqa: PLC0415

    try:
        return pickle.loads(data)  # noqa: S301 - made by our own processes
    except Exception as error:
        raise ResourceError(
            f"resource {key!r} cannot be unpacked: {type(error).__name__}: {error}; is its module importable there?",
            key=key,
        ) from error


def run_hook(key: Any, thing: Any, name: str) -> Any:
    """Run a hook in a thread of its own, as long as it may take.

    Raises:
        ResourceError: It failed, or has not ended in time.
    """
    hook = getattr(thing, name, None) if isinstance(thing, Resource) else None
    if hook is None:
        return None
    limit = hook_timeout_of(thing)
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(result_of(hook))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to who waits
            failure.append(error)

    thread = threading.Thread(target=work, name=f"canobatch-{name}-{key}", daemon=True)
    try:
        thread.start()
        thread.join(limit)
    except RuntimeError:
        # At the end of the process no thread can be started any more.
        work()
    if failure:
        raise hook_error(key, name, failure[0]) from failure[0]
    if not outcome:
        raise ResourceError(
            f"resource {key!r}: {name}() has not ended within {limit:g} s and is left alone; "
            "raise its hook_timeout if that is not enough",
            key=key,
        )
    return outcome[0]


def hook_error(key: Any, name: str, error: BaseException) -> ResourceError:
    """Return the error of a hook that raised."""
    return ResourceError(f"resource {key!r}: {name}() failed: {type(error).__name__}: {error}", key=key)


def _check_hook_timeout(key: Any, thing: Any) -> None:
    limit = getattr(thing, "hook_timeout", None)
    if limit is not None and not (isinstance(limit, int | float | timedelta) and _clock.as_seconds(limit) > 0):
        raise ConfigurationError(f"resource {key!r}: hook_timeout must be above 0 seconds, got {limit!r}")


def hook_timeout_of(thing: Any) -> float | None:
    """Return the seconds that a hook may take."""
    limit = getattr(thing, "hook_timeout", HOOK_TIMEOUT)
    return None if limit is None else min(_clock.as_seconds(limit), _clock.LONGEST)


def tear_down(key: Any, thing: Any) -> None:
    """Tear down a resource; what goes wrong is logged."""
    try:
        run_hook(key, thing, "teardown")
    except ResourceError as error:
        _log.warning("%s", error, exc_info=error.__cause__)


def result_of(hook: Callable[[], Any]) -> Any:
    """Call a hook, which may be ``async``."""
    result = hook()
    if inspect.iscoroutine(result):
        import asyncio  # noqa: PLC0415 - seldom needed, slow to import

        return asyncio.run(result)
    return result


def _health_of(key: Any, thing: Any) -> Health:
    try:
        found = run_hook(key, thing, "health")
    except ResourceError as error:
        return Health.unhealthy(str(error))
    if found is None:
        return Health()
    return found if isinstance(found, Health) else Health.unhealthy(f"health() returned {found!r}, not a Health")


#: What is set up in this process.
_held: weakref.WeakSet[Resources] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # A run in the background ends with the process; what it holds is torn down all the same.
    for resources in list(_held):
        resources.close()


# A forked child has copies of what its parent holds.
os.register_at_fork(after_in_child=_held.clear)
