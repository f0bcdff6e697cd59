"""Where a split's branches come from: a list, a store key, a callable, a generator that fails half-way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

from canobatch.definition import Map, Split, label
from canobatch.effects import describe_error
from canobatch.errors import ConfigurationError, StoreKeyError, TaskError, WorkflowError
from canobatch.task import bound_call

if TYPE_CHECKING:
    from canobatch.engine.driver import Driver


class Branches:
    """The branches of one visit of a split state.

    Attributes:
        tasks: One task per branch, or the one function of a map.
        total: How many branches there are, None while that is not known.
        are_made_here: Whether the tasks were made for this visit.

    Raises:
        WorkflowError: There is nothing to iterate over, or no more.
        TaskError: The callable or iterable that makes them failed.
        ConfigurationError: A task that was made cannot be one.
    """

    def __init__(self, driver: Driver, state: Any, handler: Split | Map) -> None:
        self._driver = driver
        self._state = state
        self._path = tuple(driver.path)
        self.is_map = isinstance(handler, Map)
        self.are_made_here = False
        self.tasks: list[Any]
        self.total: int | None
        self._items: Iterator[Any] | None = None
        if isinstance(handler, Map):
            self.tasks = [handler.fn]
            items = self._find_items(handler)
            try:
                self.total = len(items) if isinstance(items, Sized) else None
                self._items = iter(items)
            except Exception as error:
                raise self._failure("its items cannot be iterated over", error) from error
        else:
            self.are_made_here = callable(handler.tasks)
            self.tasks = self._make_tasks(handler) if self.are_made_here else handler.tasks
            self.total = len(self.tasks)

    def item(self, index: int) -> Any:
        """Return the item of branch ``index``, the next one; None in a split of tasks.

        Raises:
            StopIteration: There are no more branches.
        """
        if self._items is None:
            if index >= len(self.tasks):
                raise StopIteration
            return None
        try:
            return next(self._items)
        except StopIteration:
            if self.total not in (None, index):
                raise self._refusal(
                    f"its items have a length of {self.total}, but iterating over them gave {index}; give a list"
                ) from None
            raise
        except Exception as error:
            raise self._failure(f"its items failed after {index}", error) from error

    def _find_items(self, handler: Map) -> Iterable[Any]:
        items = handler.items
        if isinstance(items, str):
            try:
                items = self._driver.store.get(items)
            except StoreKeyError as error:
                raise self._refusal(f"its items: {error}") from error
        elif callable(items):
            items = self._evaluate(items)
        elif isinstance(items, Iterator):
            if handler.is_used_up:
                raise self._refusal(
                    "its items were used up before, being an iterator; give a list, or a callable that makes the "
                    "iterator"
                )
            handler.is_used_up = True
        if not isinstance(items, Iterable):
            raise self._refusal(f"its items are {items!r}, which cannot be iterated over")
        return items

    def _make_tasks(self, handler: Split) -> list[Any]:
        made = self._evaluate(handler.tasks)
        if not isinstance(made, Iterable):
            raise self._refusal(f"its callable made {made!r}, which cannot be iterated over")
        try:
            tasks = list(made)
        except Exception as error:
            raise self._failure("making its branches failed", error) from error
        problems = self._driver.definition.branch_problems(handler, tasks)
        if problems:
            raise ConfigurationError(f"state {label(self._state)}: " + "; ".join(problems), problems)
        return tasks

    def _evaluate(self, source: Any) -> Any:
        view = self._driver.view()
        try:
            made = bound_call(source, (1, 0))(self._driver.context(self._state, view, 1))
        except Exception as error:
            raise self._failure("making its branches failed", error) from error
        if view.operations:
            raise self._refusal(
                "the callable that makes its branches must not write to the store; do that in a state before"
            )
        return made

    def _refusal(self, text: str) -> WorkflowError:
        return WorkflowError(f"state {label(self._state)}: {text}", state=self._state, path=self._path)

    def _failure(self, what: str, error: Exception) -> TaskError:
        text = f"state {label(self._state)}: {what}: {describe_error(error)}"
        return TaskError(text, state=self._state, path=self._path)
