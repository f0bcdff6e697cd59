"""Tasks that fail on purpose, wherever they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canobatch.task import Task, TaskConfig, bound_call, entry_point, task_name

if TYPE_CHECKING:
    from collections.abc import Callable


class _Failing(Task):
    """Raises in its first attempts, then does the work of another task."""

    def __init__(self, task: Any, error: BaseException, attempts: int) -> None:
        self._task = task
        self._error = error
        self._attempts = attempts
        config = getattr(task, "config", None)
        self.config = config if isinstance(config, TaskConfig) else None

    def run(self, *args: Any) -> Any:
        if args[0].attempt <= self._attempts:
            raise self._error
        # A map's function takes the item too; any other task may take no argument at all.
        call: Callable[..., Any] = bound_call(entry_point(self._task), (2,) if len(args) == 2 else (1, 0))
        return call(*args)

    def __repr__(self) -> str:
        return f"failing({task_name(self._task)})"


def failing(task: Any, error: BaseException, *, attempts: int = 1) -> Task:
    """Return a task that raises ``error`` in its first attempts and is ``task`` from then on.

    Works in the parent, inline and in workers, for single tasks, branches, and the function of a map.

    Args:
        task: A task or a function.
        error: What is raised; it must survive pickling to get to a worker.
        attempts: How many attempts fail.

    Example:
        >>> workflow.register(S.LOAD, failing(load, OSError("disk"), attempts=2))     # doctest: +SKIP
    """
    return _Failing(task, error, attempts)
