"""A workflow's definition: states, handlers, exits, and whether they fit together. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from canobatch.errors import ConfigurationError
from canobatch.join import JoinConfig
from canobatch.models import BatchTask, CompensatableTask, StreamTask
from canobatch.models.base import Model
from canobatch.models.check import model_problems
from canobatch.task import Task, TaskConfig, arity_problem, config_of, entry_point, task_name

#: Seconds for the roll-back of a run with a total timeout, where nothing else is said.
_MOST_GRACE = 30.0
_IN_WORKERS = 'branches always run in workers; drop where="parent"'


def is_hashable(value: Any) -> bool:
    """Return whether ``value`` can be looked up; a tuple of lists says it is Hashable, and is not."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def label(state: Any) -> str:
    """Return how a state is named in messages and records."""
    if isinstance(state, Enum):
        return state.name
    try:
        return repr(state)
    except Exception:  # noqa: BLE001 - a user's __repr__
        return f"<{type(state).__name__}>"


class _Later:
    def __repr__(self) -> str:
        return "LATER"


#: What items may yield that have none now and may have one soon: they are asked again, and nothing waits for them.
LATER = _Later()


@dataclass(slots=True)
class Single:
    """One task for a state."""

    task: Any
    on_error: Any = None
    config: TaskConfig | None = None
    #: It may only read and decide.
    is_router: bool = False
    #: What its registration says that it is.
    kind: type[Model] | None = None


@dataclass(slots=True)
class Split:
    """Many tasks for a state: a list, or a callable that makes it when the state is entered."""

    tasks: Any
    join: JoinConfig
    config: TaskConfig | None = None

    @property
    def total(self) -> int | None:
        """How many branches there are, if that is known."""
        return None if callable(self.tasks) else len(self.tasks)


@dataclass(slots=True)
class Map:
    """One function over many items for a state."""

    fn: Any
    items: Any
    join: JoinConfig
    config: TaskConfig | None = None
    #: Whether a run has taken the items; an iterator can be taken once.
    is_used_up: bool = False

    @property
    def total(self) -> int | None:
        """How many branches there are, if that is known."""
        is_known = not isinstance(self.items, str) and not callable(self.items) and hasattr(self.items, "__len__")
        return len(self.items) if is_known else None


Handler = Single | Split | Map


@dataclass(slots=True)
class Definition:
    """States and what they do. Frozen once a run has begun with it."""

    name: str
    default_config: TaskConfig
    total_timeout: float | None = None
    compensation_timeout: float | None = None
    params: type | None = None
    #: Only a definition of the same version may resume a run.
    version: int = 0
    handlers: dict[Any, Handler] = field(default_factory=dict)
    exits: dict[Any, None] = field(default_factory=dict)
    is_frozen: bool = False

    def add(self, state: Any, handler: Handler, *, replace: bool) -> None:
        """Register a handler.

        Raises:
            ConfigurationError: The state has one already, cannot be a state, or the definition is frozen.
        """
        self._require_open(f"register state {label(state)}")
        if state is None or not is_hashable(state):
            raise ConfigurationError(f"{state!r} cannot be a state; use an Enum member, a string or a number")
        if state in self.handlers and not replace:
            raise ConfigurationError(f"state {label(state)} is registered already; pass replace=True if that is meant")
        self.handlers[state] = handler

    def add_exit(self, state: Any) -> None:
        """Make ``state`` an exit; twice is fine."""
        self._require_open(f"add exit state {label(state)}")
        if state is None or not is_hashable(state):
            raise ConfigurationError(f"{state!r} cannot be a state; use an Enum member, a string or a number")
        self.exits[state] = None

    @property
    def grace(self) -> float | None:
        """Seconds that a run which is over may still take to end what must not be cut short, and to roll back."""
        if self.compensation_timeout is not None or self.total_timeout is None:
            return self.compensation_timeout
        return min(self.total_timeout / 2, _MOST_GRACE)

    def config_of(self, handler: Handler, task: Any) -> TaskConfig:
        """Return the configuration of a task: its registration's, its own, or the workflow's default."""
        if isinstance(handler.config, TaskConfig):
            return handler.config
        return config_of(task, self.default_config)

    def knows(self, state: Any) -> bool:
        """Return whether ``state`` is registered or an exit."""
        return is_hashable(state) and (state in self.handlers or state in self.exits)

    def known_states(self) -> str:
        """Return all states for a message."""
        return ", ".join(label(s) for s in dict.fromkeys([*self.handlers, *self.exits])) or "none"

    # -- validation

    def problems(self) -> list[str]:
        """Return everything that is wrong with it, one sentence each with its cure."""
        found = []
        if not self.handlers:
            found.append("no state is registered; add one with register(state, task)")
        if not self.exits:
            found.append("there is no exit state, so a run could never end; add one with add_exit_state(state)")
        for state, handler in self.handlers.items():
            found += [f"state {label(state)}: {problem}" for problem in self._problems_of(handler)]
        found += self._ambiguous_labels()
        return found

    def _problems_of(self, handler: Handler) -> Iterator[str]:
        if isinstance(handler, Single):
            yield from self._target_problems(on_error=handler.on_error)
            yield from self._task_problems(handler, handler.task, (1, 0))
            config = self.config_of(handler, handler.task)
            yield from self._kind_problems(handler, config)
            if config.where == "parent" and self.total_timeout is not None:
                yield (
                    'where="parent" cannot be combined with a total_timeout: nothing in the parent can be killed; '
                    'use where="worker"'
                )
            return
        join = handler.join
        if not isinstance(join, JoinConfig):
            yield f"the join must be a JoinConfig, got {join!r}"
            return
        yield from join.problems(handler.total)
        yield from self._target_problems(
            join_state=join.join_state, on_failure=join.on_failure, on_timeout=join.on_timeout
        )
        if isinstance(handler, Map):
            yield from self._task_problems(handler, handler.fn, (2,))
            yield from self._items_problems(handler.items)
            if self.config_of(handler, handler.fn).where == "parent":
                yield _IN_WORKERS
        elif callable(handler.tasks):
            yield from self._source_problems(handler.tasks)
        else:
            yield from self.branch_problems(handler, handler.tasks)
        if isinstance(join.reduce, tuple) and len(join.reduce) == 2 and callable(join.reduce[0]):
            problem = arity_problem(join.reduce[0], (2,), "(folded, value)")
            if problem:
                yield f"reduce: {problem}"

    def _kind_problems(self, handler: Single, config: TaskConfig) -> Iterator[str]:
        task, kind = handler.task, handler.kind
        if kind is not None and not isinstance(task, kind | type):
            yield f"register_{_word(kind)} takes a {kind.__name__}, got {task_name(task)}; use register for any task"
        if config.where != "parent":
            return
        if isinstance(task, CompensatableTask) and self.compensation_timeout is not None:
            yield (
                'where="parent" cannot be combined with a compensation_timeout: nothing in the parent can be killed; '
                'use where="worker"'
            )
        if isinstance(task, BatchTask | StreamTask) and task.concurrency != 1:
            yield (
                f'{task_name(task)}.concurrency is {task.concurrency}, but where="parent" runs one item after the '
                "other; drop one of them"
            )

    def branch_problems(self, handler: Split, tasks: list[Any]) -> list[str]:
        """Return what is wrong with the tasks of a split, each with its branch."""
        found = [
            f"branch {index}: {problem}"
            for index, task in enumerate(tasks)
            for problem in self._task_problems(handler, task, (1, 0))
        ]
        found += [
            f"branch {index}: {task_name(task)} is a {kind.__name__}, which needs a state of its own: a branch may be "
            f"killed at any time; use register_{_word(kind)}"
            for index, task in enumerate(tasks)
            for kind in (StreamTask, CompensatableTask)
            if isinstance(task, kind)
        ]
        found += [
            f"branch {index}: {_IN_WORKERS}"
            for index, task in enumerate(tasks)
            if self.config_of(handler, task).where == "parent"
        ]
        return found

    def _target_problems(self, **targets: Any) -> Iterator[str]:
        for name, target in targets.items():
            if target is None and name != "join_state":
                continue
            if not self.knows(target):
                yield (
                    f"{name} {label(target)} is neither registered nor an exit state; register it or add it with "
                    f"add_exit_state({label(target)})"
                )

    def _task_problems(self, handler: Handler, task: Any, accepted: tuple[int, ...]) -> Iterator[str]:
        if isinstance(task, type):
            yield f"{task.__name__} is a class; register an instance: {task.__name__}(...)"
            return
        if not callable(entry_point(task)) or (not isinstance(task, Task) and not callable(task)):
            yield f"{task!r} is not a task; give a function or an instance of a Task subclass"
            return
        if isinstance(task, Model):
            yield from model_problems(task)
        elif isinstance(task, Task) and type(task).run is Task.run:
            yield f"{task_name(task)} does not define run(self, ctx)"
            return
        else:
            problem = arity_problem(entry_point(task), accepted)
            if problem:
                yield problem
        config = handler.config or getattr(task, "config", None)
        if config is not None and not isinstance(config, TaskConfig):
            yield f"the config of {task_name(task)} must be a TaskConfig, got {config!r}"

    def _items_problems(self, items: Any) -> Iterator[str]:
        if callable(items):
            yield from self._source_problems(items)
        elif not isinstance(items, Iterable):
            yield f"items must be an iterable, a store key or a callable ctx -> iterable, got {items!r}"

    def _source_problems(self, source: Callable[..., Any]) -> Iterator[str]:
        problem = arity_problem(source, (1, 0))
        if problem:
            yield problem

    def _ambiguous_labels(self) -> Iterator[str]:
        seen: dict[str, Any] = {}
        for state in dict.fromkeys([*self.handlers, *self.exits]):
            other = seen.setdefault(label(state), state)
            if other is not state and other != state:
                yield f"two states are both called {label(state)}: {other!r} and {state!r}; rename one"

    def validate(self) -> None:
        """Raise `ConfigurationError` that lists all problems, if there are any."""
        raise_problems(f"workflow {self.name!r}", self.problems())

    def validate_initial(self, state: Any) -> None:
        """Raise `ConfigurationError` if a run cannot start at ``state``."""
        if not self.knows(state):
            raise ConfigurationError(
                f"workflow {self.name!r}: initial state {label(state)} is neither registered nor an exit state; "
                f"states: {self.known_states()}"
            )

    def _require_open(self, what: str) -> None:
        if self.is_frozen:
            raise ConfigurationError(
                f"cannot {what}: workflow {self.name!r} has run and its definition is fixed; build another"
            )

    # -- picture

    def graph(self) -> str:
        """Return a Mermaid state diagram; transitions of tasks are read off their code where it names states."""
        lines = ["stateDiagram-v2"]
        if self.handlers:
            lines.append(f"    [*] --> {_node(next(iter(self.handlers)))}")
        for state, handler in self.handlers.items():
            if state in self.exits:
                continue
            lines += [f"    {_node(state)} --> {_node(target)}{text}" for target, text in self.transitions(handler)]
            if not isinstance(handler, Single):
                lines.append(f"    note right of {_node(state)}: {_split_note(handler)}")
        lines += [f"    {_node(state)} --> [*]" for state in self.exits]
        return "\n".join(lines) + "\n"

    def transitions(self, handler: Handler) -> list[tuple[Any, str]]:
        """Return the transitions out of a state that are known, each with the text of its arrow."""
        if isinstance(handler, Single):
            named = [(target, "") for target in self._named_states(handler.task)]
            return named + ([(handler.on_error, ": on error")] if handler.on_error is not None else [])
        join = handler.join
        found = [(join.join_state, f": {join.strategy}")]
        if join.on_failure is not None:
            found.append((join.on_failure, ": on failure"))
        if join.on_timeout is not None:
            found.append((join.on_timeout, ": on timeout"))
        return found

    def _named_states(self, task: Any) -> list[Any]:
        codes = [function.__code__ for function in functions_of(task) if hasattr(function, "__code__")]
        names = {name for code in codes for name in (*code.co_names, *code.co_freevars)}
        constants = {each for code in codes for each in code.co_consts if is_hashable(each)}
        states = dict.fromkeys([*self.handlers, *self.exits])
        return [
            s
            for s in states
            if (isinstance(s, Enum) and s.name in names and type(s).__name__ in names)
            or (not isinstance(s, Enum) and s in constants)
        ]


def functions_of(task: Any) -> list[Any]:
    """Return the functions that make up a task: its own, or those of its phases."""
    phases = [getattr(task, phase) for phase in task.PHASES] if isinstance(task, Model) else [entry_point(task)]
    return [inspect.unwrap(getattr(phase, "__func__", phase)) for phase in phases]


def _node(state: Any) -> str:
    return node_name(label(state))


def node_name(text: str) -> str:
    """Return how the state of this label is called in a diagram."""
    return "".join(c if c.isalnum() else "_" for c in text)


def _word(kind: type[Model]) -> str:
    """Return how the method that registers a kind of model calls it."""
    return "with_compensation" if kind is CompensatableTask else kind.__name__.removesuffix("Task").lower()


def _split_note(handler: Split | Map) -> str:
    count = "many" if handler.total is None else str(handler.total)
    return f"{count} branches"


def raise_problems(subject: str, problems: list[str]) -> None:
    """Raise a `ConfigurationError` that lists ``problems``, if there are any."""
    if len(problems) == 1:
        raise ConfigurationError(f"{subject}: {problems[0]}", problems)
    if problems:
        listed = "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, 1))
        raise ConfigurationError(f"{subject} has {len(problems)} problems:{listed}", problems)
