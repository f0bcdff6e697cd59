"""Workflow: a definition that can run."""

from __future__ import annotations

import dataclasses
import os
import secrets
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from canobatch import _clock
from canobatch._importing import refuse_while_importing
from canobatch.cancel import CancelToken
from canobatch.definition import Definition
from canobatch.engine.driver import Driver
from canobatch.engine.resume import begin, resume
from canobatch.engine.run import Run
from canobatch.engine.scribe import Scribe
from canobatch.engine.station import Shelf
from canobatch.errors import ConfigurationError, WorkflowError
from canobatch.pool import default_pool
from canobatch.registration import Registration
from canobatch.resources import Resources
from canobatch.store import SharedStore
from canobatch.task import TaskConfig, bind_params

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from canobatch.journal import Journal
    from canobatch.observe import Observer
    from canobatch.pool import Backend
    from canobatch.store import Store


class Workflow(Registration):
    """States and what they do; each `orchestrate` or `start` is one run of it.

    Every registering method changes the workflow and returns it. The definition is checked as a whole, and
    fixed, at the first run. Any number of runs may go on at once.

    Args:
        name: For messages, records and loggers.
        resources: What its tasks find by ``ctx.resource(key)``: `Resources`, or a mapping of key to resource.
        store: The store of all its runs; None: each run has a fresh `SharedStore`.
        journal: What remembers its runs, so that they can be resumed; None: nothing does. What a task does outside
            the store is done again if the process ends before the task's outcome is recorded: give it an idempotency
            key made of ``ctx.run_id``, ``ctx.state`` and ``ctx.branch``.
        version: Another number makes runs of before not resumable.
        params: The dataclass that a run's parameters must fit, if any.
        total_timeout: Seconds a run may take; its single tasks then run in workers.
        compensation_timeout: Seconds for which a cancel and the total timeout wait for a `CompensatableTask`, and
            that the roll-back may take as a whole. None: with a total timeout half of it, at most 30 s, else no limit.
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
        journal: Journal | None = None,
        version: int = 0,
        params: type | None = None,
        total_timeout: float | timedelta | None = None,
        compensation_timeout: float | timedelta | None = None,
        default_config: TaskConfig | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"a workflow's name must be a non-empty string, got {name!r}")
        if params is not None and not (isinstance(params, type) and dataclasses.is_dataclass(params)):
            raise ConfigurationError(f"params must be a dataclass, got {params!r}; decorate it with @dataclass")
        if default_config is not None and not isinstance(default_config, TaskConfig):
            raise ConfigurationError(f"default_config must be a TaskConfig, got {default_config!r}")
        if store is not None and not hasattr(store, "snapshot"):
            raise ConfigurationError(f"store must be a SharedStore or a MemoryStore, got {store!r}")
        if journal is not None and not hasattr(journal, "take_over"):
            raise ConfigurationError(f"journal must be a SqliteJournal or the like, got {journal!r}")
        if isinstance(version, bool) or not isinstance(version, int):
            raise ConfigurationError(f"version must be a whole number, got {version!r}")
        limit = _limit("total_timeout", total_timeout)
        grace = _limit("compensation_timeout", compensation_timeout)
        super().__init__(Definition(name, default_config or TaskConfig(), limit, grace, params, version))
        self._resources = _as_resources(resources)
        self._store = store
        self._journal = journal
        self._observers: list[Observer] = []
        self._lock = threading.Lock()
        self._shelves: weakref.WeakKeyDictionary[Backend, Shelf] = weakref.WeakKeyDictionary()

    @property
    def journal(self) -> Journal | None:
        """What remembers its runs."""
        return self._journal

    @property
    def resources(self) -> Resources:
        """What its tasks find by ``ctx.resource``."""
        return self._resources

    @property
    def has_journal(self) -> bool:
        """Whether its runs are recorded, and can be resumed."""
        return self._journal is not None

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Who is told what happens in its runs."""
        return tuple(self._observers)

    def with_journal(self, journal: Journal | None) -> Self:
        """Let ``journal`` remember the runs that start from now on; None: nothing does."""
        self._journal = journal
        return self

    def with_observer(self, observer: Observer) -> Self:
        """Tell ``observer`` what happens in runs that start from now on; see `canobatch.observe`.

        Raises:
            ConfigurationError: It has no ``on_event``.
        """
        if not callable(getattr(observer, "on_event", None)) or isinstance(observer, type):
            raise ConfigurationError(f"an observer needs a method on_event(event), got {observer!r}")
        self._observers.append(observer)
        return self

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
            CompensationError: It failed or was cancelled, and could not be rolled back completely.
        """
        run = self.start(initial, pool=pool, run_id=run_id, params=params, cancel=cancel, begins=False)
        return run.wait_through_interrupt()

    def start(
        self,
        initial: Any,
        *,
        pool: Backend | None = None,
        run_id: str | None = None,
        params: Any = None,
        cancel: CancelToken | None = None,
        where: Literal["parent", "worker"] = "parent",
        timeout: float | timedelta | None = None,
        output: str | os.PathLike[str] | None = None,
        begins: bool = True,
        observers: Sequence[Observer] = (),
    ) -> Run:
        """Begin what `orchestrate` does, in the background, and return its handle.

        Args:
            initial: As for `orchestrate`, and so are those not listed here.
            pool: Where branches run.
            run_id: The run's id.
            params: The run's parameters.
            cancel: Cancels the run from elsewhere.
            where: Where single tasks run that do not say so themselves; in a worker they can be killed.
            timeout: Seconds this run may take, if less than the workflow's ``total_timeout``.
            output: A directory, made if missing, in which is kept what tasks print in workers, by attempt; read it
                with `canobatch.output`. None: they print where this process does.
            begins: Whether it begins now; if not, `Run.begin` lets it.
            observers: Are told of this run, after those of the workflow.

        Raises:
            ConfigurationError: As for `orchestrate`, or the directory cannot be made.
        """
        _check_run(pool, run_id, cancel, where)
        limit = _limit("timeout", timeout)
        self._freeze()
        definition, journal = self.definition, self._journal
        definition.validate_initial(initial)
        bound = bind_params(definition.params, params)
        store: Store = SharedStore() if self._store is None else self._store
        run_id = run_id or new_run_id()
        scribe = Scribe(definition) if journal is None else begin(definition, journal, run_id, initial, bound, store)
        settings: dict[str, Any] = {"where": where, "timeout": limit, "output": output, "begins": begins}
        return self._run(initial, run_id, bound, store, scribe, pool, cancel, observers=observers, **settings)

    def resume(self, run_id: str, *, pool: Backend | None = None, cancel: CancelToken | None = None) -> Any:
        """Go on with a run that was interrupted, that failed, or whose cancel kept it; return its exit state.

        Its store, its parameters and every recorded outcome are as they were; only what was not recorded is
        done. Recorded failures are tried again, with fresh attempts. Deadlines start anew. A run that is through
        returns its exit state at once.

        Args:
            run_id: Which run; of this process or another.
            pool: Where branches run; None: this process's default pool.
            cancel: Cancels the run from elsewhere.

        Raises:
            ConfigurationError: The workflow has no journal.
            RunNotFoundError: The journal has no such run.
            RunInUseError: Its owner lives.
            VersionMismatchError: It was begun by another workflow, version or interpreter, or its items are others.
            JournalError: The journal cannot be read.
            CanobatchError: As for `orchestrate`; for a run that ended for good, what it ended with.
        """
        return self.start_resume(run_id, pool=pool, cancel=cancel, begins=False).wait_through_interrupt()

    def start_resume(
        self,
        run_id: str,
        *,
        pool: Backend | None = None,
        cancel: CancelToken | None = None,
        where: Literal["parent", "worker"] = "parent",
        timeout: float | timedelta | None = None,
        output: str | os.PathLike[str] | None = None,
        begins: bool = True,
        observers: Sequence[Observer] = (),
    ) -> Run:
        """Begin what `resume` does, in the background, and return the run's handle.

        Args:
            run_id: Which run.
            pool: Where branches run.
            cancel: Cancels the run from elsewhere.
            where: As for `start`, like the others.
            timeout: Seconds this run may take from now on.
            output: A directory for what tasks print; that of the run's earlier life will do.
            begins: Whether it begins now.
            observers: Are told of this run, after those of the workflow.

        Raises:
            CanobatchError: As for `resume`.
        """
        _check_run(pool, run_id, cancel, where)
        limit = _limit("timeout", timeout)
        self._freeze()
        if self._journal is None:
            text = f"workflow {self.name!r} has no journal to resume {run_id} from; give it one with journal=..."
            raise ConfigurationError(text)
        store: Store = SharedStore() if self._store is None else self._store
        scribe, state, params = resume(self.definition, self._journal, run_id, store)
        settings: dict[str, Any] = {"where": where, "timeout": limit, "output": output, "begins": begins}
        return self._run(state, run_id, params, store, scribe, pool, cancel, observers=observers, **settings)

    def _freeze(self) -> None:
        refuse_while_importing("a run")
        if not self.definition.is_frozen:
            self.definition.validate()
            self.definition.is_frozen = True

    def _run(
        self,
        state: Any,
        run_id: str,
        params: Any,
        store: Store,
        scribe: Scribe,
        pool: Backend | None,
        cancel: CancelToken | None,
        *,
        where: str = "parent",
        timeout: float | None = None,
        output: str | os.PathLike[str] | None = None,
        begins: bool = True,
        observers: Sequence[Observer] = (),
    ) -> Run:
        try:
            return Run(
                Driver(
                    self.definition,
                    state,
                    store=store,
                    backend=default_pool if pool is None else lambda: pool,
                    run_id=run_id,
                    params=params,
                    token=cancel or CancelToken(),
                    shelf=self._shelf,
                    resources=self._resources,
                    observers=(*self._observers, *observers),
                    where=where,
                    timeout=timeout,
                    scribe=scribe,
                    # Not before the journal has made the run's own directory, in which this one may be.
                    output=_output_directory(output),
                ),
                begins=begins,
            )
        except BaseException:
            scribe.close()
            raise

    def _shelf(self, backend: Backend) -> Shelf:
        with self._lock:
            if backend not in self._shelves:
                self._shelves[backend] = Shelf(backend, self.name, self._resources)
            return self._shelves[backend]

    def __reduce__(self) -> tuple[Any, ...]:
        # A task that mentions the workflow must not drag it, its store and its observers along.
        return _WorkflowElsewhere, (self.name,)

    def __repr__(self) -> str:
        return f"<Workflow {self.name!r}, {len(self.definition.handlers)} states>"


class _WorkflowElsewhere:
    """What a workflow becomes in a worker: its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise WorkflowError(f"workflow {self.name!r} cannot be used inside a task (.{name}); build one there")


def _limit(name: str, value: float | timedelta | None) -> float | None:
    try:
        limit = None if value is None else _clock.as_seconds(value)
    except (TypeError, ValueError):
        limit = -1.0
    if limit is not None and not limit > 0:
        raise ConfigurationError(f"{name} must be above 0 seconds, got {value!r}")
    return limit


def _as_resources(given: object) -> Resources:
    if isinstance(given, Resources):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise ConfigurationError(f"resources must be Resources or a mapping of key to resource, got {given!r}")
    return Resources(given)


def _check_run(pool: object, run_id: object, cancel: object, where: object) -> None:
    if where not in ("parent", "worker"):
        raise ConfigurationError(f"where must be 'parent' or 'worker', got {where!r}")
    if pool is not None and not hasattr(pool, "open_lane"):
        raise ConfigurationError(f"pool must be a WorkerPool, got {pool!r}")
    if run_id is not None and not (isinstance(run_id, str) and run_id):
        raise ConfigurationError(f"run_id must be a non-empty string, got {run_id!r}")
    if cancel is not None and not isinstance(cancel, CancelToken):
        raise ConfigurationError(f"cancel must be a CancelToken, got {cancel!r}")


def _output_directory(path: str | os.PathLike[str] | None) -> str | None:
    if path is None:
        return None
    directory = os.path.abspath(path)  # noqa: PTH100 - a worker may be elsewhere
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)  # noqa: PTH103
    except OSError as error:
        raise ConfigurationError(f"output cannot be kept in {directory}: {error.strerror}; give another") from error
    return directory


def new_run_id() -> str:
    """Return an id that no other run has, and that sorts by time."""
    return f"{_clock.as_utc(_clock.epoch()):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
