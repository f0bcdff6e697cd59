"""Workflow: a definition that can run."""

from __future__ import annotations

import dataclasses
import os
import secrets
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from canobatch import _clock
from canobatch.cancel import CancelToken
from canobatch.definition import Definition, Map, Single, Split
from canobatch.engine.driver import Driver
from canobatch.engine.run import Run
from canobatch.engine.station import Shelf
from canobatch.errors import ConfigurationError, WorkflowError
from canobatch.pool import default_pool
from canobatch.resources import Resources
from canobatch.store import SharedStore
from canobatch.task import TaskConfig, bind_params

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta

    from canobatch.join import JoinConfig
    from canobatch.observe import Observer
    from canobatch.pool import Backend
    from canobatch.store import Store

_F = TypeVar("_F")


class Workflow:
    """States and what they do; each `orchestrate` or `start` is one run of it.

    Every registering method changes the workflow and returns it. The definition is checked as a whole, and
    fixed, at the first run. Any number of runs may go on at once.

    Args:
        name: For messages, records and loggers.
        resources: What its tasks find by ``ctx.resource(key)``: `Resources`, or a mapping of key to resource.
        store: The store of all its runs; None: each run has a fresh `SharedStore`.
        params: The dataclass that a run's parameters must fit, if any.
        total_timeout: Seconds a run may take; its single tasks then run in workers.
        default_config: For tasks that bring no `TaskConfig` of their own.

    Raises:
        ConfigurationError: An argument is impossible.

    Example:
        >>> workflow = Workflow("greet").register("start", lambda: "done").add_exit_state("done")
        >>> workflow.orchestrate("start")
        'done'
    """

    def __init__(
        self,
        name: str,
        *,
        resources: Resources | Mapping[Any, Any] | None = None,
        store: Store | None = None,
        params: type | None = None,
        total_timeout: float | timedelta | None = None,
        default_config: TaskConfig | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"a workflow's name must be a non-empty string, got {name!r}")
        if params is not None and not (isinstance(params, type) and dataclasses.is_dataclass(params)):
            raise ConfigurationError(f"params must be a dataclass, got {params!r}; decorate it with @dataclass")
        if default_config is not None and not isinstance(default_config, TaskConfig):
            raise ConfigurationError(f"default_config must be a TaskConfig, got {default_config!r}")
        try:
            limit = None if total_timeout is None else _clock.as_seconds(total_timeout)
        except (TypeError, ValueError):
            limit = -1.0
        if limit is not None and not limit > 0:
            raise ConfigurationError(f"total_timeout must be above 0 seconds, got {total_timeout!r}")
        self._definition = Definition(name, default_config or TaskConfig(), limit, params)
        self._resources = _as_resources(resources)
        self._store = store
        self._observers: list[Observer] = []
        self._lock = threading.Lock()
        self._shelves: weakref.WeakKeyDictionary[Backend, Shelf] = weakref.WeakKeyDictionary()

    @property
    def name(self) -> str:
        """The workflow's name."""
        return self._definition.name

    @property
    def states(self) -> list[Any]:
        """The states that have a handler, in the order of their registration."""
        return list(self._definition.handlers)

    @property
    def exit_states(self) -> list[Any]:
        """The states in which runs end."""
        return list(self._definition.exits)

    # -- definition

    def register(
        self,
        state: Any,
        task: Any,
        *,
        on_error: Any = None,
        config: TaskConfig | None = None,
        replace: bool = False,
    ) -> Workflow:
        """Register one task for a state: a function of ``(ctx)`` or of nothing, or a `Task`; it returns the next state.

        Args:
            state: An Enum member, a string, a number.
            task: What runs.
            on_error: State to go to when the task has failed for good, instead of failing the run.
            config: Overrides the task's own configuration.
            replace: Whether the state may be registered already.

        Raises:
            ConfigurationError: The state is registered already, or the workflow has run.
        """
        self._definition.add(state, Single(task, on_error, config), replace=replace)
        return self

    def register_router(
        self, state: Any, task: Any, *, on_error: Any = None, config: TaskConfig | None = None, replace: bool = False
    ) -> Workflow:
        """Register a task that only reads and decides: it must not write to the store."""
        self._definition.add(state, Single(task, on_error, config, is_router=True), replace=replace)
        return self

    def register_split(
        self,
        state: Any,
        tasks: Iterable[Any] | Callable[..., Iterable[Any]],
        join: JoinConfig,
        *,
        config: TaskConfig | None = None,
        replace: bool = False,
    ) -> Workflow:
        """Register many tasks for a state; they run in parallel worker processes.

        Args:
            state: An Enum member, a string, a number.
            tasks: Tasks of any mix of types, or a callable ``ctx -> tasks`` evaluated when the state is entered.
            join: When the split is settled, and where the run goes.
            config: Overrides the tasks' own configurations.
            replace: Whether the state may be registered already.

        Raises:
            ConfigurationError: As for `register`.
        """
        if not callable(tasks):
            try:
                tasks = list(tasks)
            except TypeError:
                raise ConfigurationError(
                    f"the tasks of a split must be an iterable or a callable ctx -> iterable, got {tasks!r}"
                ) from None
        self._definition.add(state, Split(tasks, join, config), replace=replace)
        return self

    def register_map(
        self,
        state: Any,
        fn: Callable[[Any, Any], Any],
        items: Iterable[Any] | str | Callable[..., Iterable[Any]],
        join: JoinConfig,
        *,
        config: TaskConfig | None = None,
        replace: bool = False,
    ) -> Workflow:
        """Register one branch per item for a state: ``fn(ctx, item)`` in worker processes.

        Args:
            state: An Enum member, a string, a number.
            fn: What runs for each item.
            items: An iterable, the store key of one, or a callable ``ctx -> iterable`` evaluated when the state
                is entered. A generator is consumed lazily, a bounded number of items ahead, by the run's own
                thread: while it makes an item, the run sees neither outcomes nor a cancel.
            join: When the split is settled, and where the run goes.
            config: Retries, timeouts and limits of the branches.
            replace: Whether the state may be registered already.

        Raises:
            ConfigurationError: As for `register`.
        """
        self._definition.add(state, Map(fn, items, join, config), replace=replace)
        return self

    def add_exit_state(self, state: Any) -> Workflow:
        """Make ``state`` one in which runs end; an exit wins over a handler of the same state."""
        self._definition.add_exit(state)
        return self

    def add_exit_states(self, states: Iterable[Any]) -> Workflow:
        """Make each of ``states`` one in which runs end."""
        for state in states:
            self._definition.add_exit(state)
        return self

    def with_observer(self, observer: Observer) -> Workflow:
        """Tell ``observer`` what happens in runs that start from now on; see `canobatch.observe`.

        Raises:
            ConfigurationError: It has no ``on_event``.
        """
        if not callable(getattr(observer, "on_event", None)) or isinstance(observer, type):
            raise ConfigurationError(f"an observer needs a method on_event(event), got {observer!r}")
        self._observers.append(observer)
        return self

    def task(self, state: Any, **options: Any) -> Callable[[_F], _F]:
        """Register the decorated function for ``state``; options as for `register`."""

        def decorate(fn: _F) -> _F:
            self.register(state, fn, **options)
            return fn

        return decorate

    def map(
        self, state: Any, items: Iterable[Any] | str | Callable[..., Iterable[Any]], join: JoinConfig, **options: Any
    ) -> Callable[[_F], _F]:
        """Register the decorated function ``fn(ctx, item)`` for each of ``items``; options as for `register_map`."""

        def decorate(fn: _F) -> _F:
            self.register_map(state, fn, items, join, **options)  # type: ignore[arg-type]
            return fn

        return decorate

    def validate(self) -> Workflow:
        """Check the definition as a whole.

        Raises:
            ConfigurationError: It lists all problems found, each with its fix.
        """
        self._definition.validate()
        return self

    def validate_initial_state(self, state: Any) -> Workflow:
        """Check that a run can start at ``state``.

        Raises:
            ConfigurationError: It is neither registered nor an exit state.
        """
        self._definition.validate_initial(state)
        return self

    def graph(self) -> str:
        """Return a Mermaid state diagram of what is known of the transitions."""
        return self._definition.graph()

    # -- runs

    def orchestrate(
        self,
        initial: Any,
        *,
        pool: Backend | None = None,
        run_id: str | None = None,
        params: Any = None,
        cancel: CancelToken | None = None,
    ) -> Any:
        """Run from ``initial`` to an exit state and return that state.

        Args:
            initial: Where to start; an exit state is returned at once.
            pool: Where branches run; None: this process's default pool.
            run_id: The run's id; None: a new one.
            params: The run's parameters: an instance of the workflow's dataclass, or a mapping.
            cancel: Cancels the run from elsewhere.

        Raises:
            ConfigurationError: The definition, the initial state or the parameters cannot work.
            TaskError: A task failed for good and its state has no ``on_error``.
            JoinError: A split did not meet its strategy and has no ``on_failure``.
            WorkflowError: A task returned what is not a state, or its writes cannot be committed.
            RunCancelledError: The run was cancelled.
        """
        return self.start(initial, pool=pool, run_id=run_id, params=params, cancel=cancel).wait_through_interrupt()

    def start(
        self,
        initial: Any,
        *,
        pool: Backend | None = None,
        run_id: str | None = None,
        params: Any = None,
        cancel: CancelToken | None = None,
        output: str | os.PathLike[str] | None = None,
    ) -> Run:
        """Begin what `orchestrate` does, in the background, and return its handle.

        Args:
            initial: As for `orchestrate`, and so are those not listed here.
            pool: Where branches run.
            run_id: The run's id.
            params: The run's parameters.
            cancel: Cancels the run from elsewhere.
            output: A directory, made if missing, in which is kept what tasks print in workers, by attempt; read it
                with `canobatch.output`. None: they print where this process does.

        Raises:
            ConfigurationError: As for `orchestrate`, or the directory cannot be made.
        """
        _check_run(pool, run_id, cancel)
        if not self._definition.is_frozen:
            self._definition.validate()
            self._definition.is_frozen = True
        self._definition.validate_initial(initial)
        driver = Driver(
            self._definition,
            initial,
            store=SharedStore() if self._store is None else self._store,
            backend=default_pool if pool is None else lambda: pool,
            run_id=run_id or _new_run_id(),
            params=bind_params(self._definition.params, params),
            token=cancel or CancelToken(),
            shelf=self._shelf,
            resources=self._resources,
            observers=self._observers,
            output=None if output is None else _output_directory(output),
        )
        return Run(driver)

    def _shelf(self, backend: Backend) -> Shelf:
        with self._lock:
            if backend not in self._shelves:
                self._shelves[backend] = Shelf(backend, self.name, self._resources)
            return self._shelves[backend]

    def __reduce__(self) -> tuple[Any, ...]:
        # A task that mentions the workflow must not drag it, its store and its observers along.
        return _WorkflowElsewhere, (self.name,)

    def __repr__(self) -> str:
        return f"<Workflow {self.name!r}, {len(self._definition.handlers)} states>"


class _WorkflowElsewhere:
    """What a workflow becomes in a worker: its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise WorkflowError(f"workflow {self.name!r} cannot be used inside a task (.{name}); build one there")


def _as_resources(given: object) -> Resources:
    if isinstance(given, Resources):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise ConfigurationError(f"resources must be Resources or a mapping of key to resource, got {given!r}")
    return Resources(given)


def _check_run(pool: object, run_id: object, cancel: object) -> None:
    if pool is not None and not hasattr(pool, "open_lane"):
        raise ConfigurationError(f"pool must be a WorkerPool, got {pool!r}")
    if run_id is not None and not (isinstance(run_id, str) and run_id):
        raise ConfigurationError(f"run_id must be a non-empty string, got {run_id!r}")
    if cancel is not None and not isinstance(cancel, CancelToken):
        raise ConfigurationError(f"cancel must be a CancelToken, got {cancel!r}")


def _output_directory(path: str | os.PathLike[str]) -> str:
    directory = os.path.abspath(path)  # noqa: PTH100 - a worker may be elsewhere
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)  # noqa: PTH103
    except OSError as error:
        raise ConfigurationError(f"output cannot be kept in {directory}: {error.strerror}; give another") from error
    return directory


def _new_run_id() -> str:
    return f"{_clock.as_utc(_clock.epoch()):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
