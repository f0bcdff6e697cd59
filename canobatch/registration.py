"""What a workflow is made of: states, what they do, and where runs end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar

from canobatch.definition import Definition, Map, Single, Split
from canobatch.errors import ConfigurationError
from canobatch.models import CompensatableTask, SteppedTask, StreamTask
from canobatch.task import TaskConfig, bind_params

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from canobatch.join import JoinConfig

_F = TypeVar("_F")


class Registration:
    """The defining half of a `Workflow`. Every registering method changes it and returns it.

    Attributes:
        definition: What was registered, for tools that look; only the methods change it.
    """

    def __init__(self, definition: Definition) -> None:
        self.definition = definition

    @property
    def name(self) -> str:
        """The workflow's name."""
        return self.definition.name

    @property
    def states(self) -> list[Any]:
        """The states that have a handler, in the order of their registration."""
        return list(self.definition.handlers)

    @property
    def exit_states(self) -> list[Any]:
        """The states in which runs end."""
        return list(self.definition.exits)

    def register(
        self,
        state: Any,
        task: Any,
        *,
        on_error: Any = None,
        config: TaskConfig | None = None,
        replace: bool = False,
    ) -> Self:
        """Register one task for a state: a function of ``(ctx)`` or of nothing, or a `Task`; it returns the next state.

        An instance of any model of `canobatch.models` behaves here as under the method made for it.

        Args:
            state: An Enum member, a string, a number.
            task: What runs.
            on_error: State to go to when the task has failed for good, instead of failing the run.
            config: Overrides the task's own configuration.
            replace: Whether the state may be registered already.

        Raises:
            ConfigurationError: The state is registered already, or the workflow has run.
        """
        self.definition.add(state, Single(task, on_error, config), replace=replace)
        return self

    def register_router(
        self, state: Any, task: Any, *, on_error: Any = None, config: TaskConfig | None = None, replace: bool = False
    ) -> Self:
        """Register a task that only reads and decides: a function, or a `RouterTask`. See `register`.

        It must not write to the store: that is a `WorkflowError`, and changes nothing.
        """
        self.definition.add(state, Single(task, on_error, config, is_router=True), replace=replace)
        return self

    def register_stepped(
        self,
        state: Any,
        task: SteppedTask,
        *,
        on_error: Any = None,
        config: TaskConfig | None = None,
        replace: bool = False,
    ) -> Self:
        """Register a `SteppedTask`; ``validate`` refuses any other. See `register`."""
        self.definition.add(state, Single(task, on_error, config, kind=SteppedTask), replace=replace)
        return self

    def register_stream(
        self,
        state: Any,
        task: StreamTask,
        *,
        on_error: Any = None,
        config: TaskConfig | None = None,
        replace: bool = False,
    ) -> Self:
        """Register a `StreamTask`; ``validate`` refuses any other. See `register`."""
        self.definition.add(state, Single(task, on_error, config, kind=StreamTask), replace=replace)
        return self

    def register_with_compensation(
        self,
        state: Any,
        task: CompensatableTask,
        *,
        on_error: Any = None,
        config: TaskConfig | None = None,
        replace: bool = False,
    ) -> Self:
        """Register a `CompensatableTask`; ``validate`` refuses any other. See `register`.

        Going to ``on_error`` is no failure of the run, and rolls nothing back.
        """
        self.definition.add(state, Single(task, on_error, config, kind=CompensatableTask), replace=replace)
        return self

    def register_split(
        self,
        state: Any,
        tasks: Iterable[Any] | Callable[..., Iterable[Any]],
        join: JoinConfig,
        *,
        config: TaskConfig | None = None,
        replace: bool = False,
    ) -> Self:
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
        self.definition.add(state, Split(tasks, join, config), replace=replace)
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
    ) -> Self:
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
        self.definition.add(state, Map(fn, items, join, config), replace=replace)
        return self

    def add_exit_state(self, state: Any) -> Self:
        """Make ``state`` one in which runs end; an exit wins over a handler of the same state."""
        self.definition.add_exit(state)
        return self

    def add_exit_states(self, states: Iterable[Any]) -> Self:
        """Make each of ``states`` one in which runs end.

        Raises:
            ConfigurationError: They are one string, whose letters nobody means.
        """
        if isinstance(states, str):
            raise ConfigurationError(f"add_exit_states needs several states; for one call add_exit_state({states!r})")
        for state in states:
            self.definition.add_exit(state)
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

    def validate(self) -> Self:
        """Check the definition as a whole.

        Raises:
            ConfigurationError: It lists all problems found, each with its fix.
        """
        self.definition.validate()
        return self

    def validate_initial_state(self, state: Any) -> Self:
        """Check that a run can start at ``state``.

        Raises:
            ConfigurationError: It is neither registered nor an exit state.
        """
        self.definition.validate_initial(state)
        return self

    def validate_params(self, params: Any) -> Self:
        """Check that a run can be given these parameters.

        Raises:
            ConfigurationError: They do not fit; the text names the parameter.
        """
        bind_params(self.definition.params, params)
        return self

    def graph(self) -> str:
        """Return a Mermaid state diagram of what is known of the transitions."""
        return self.definition.graph()
