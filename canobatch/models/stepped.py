"""SteppedTask: long work in steps, each from where the last one ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from canobatch.models.base import Driven

if TYPE_CHECKING:
    from canobatch.models.base import Stage


@dataclass(frozen=True, slots=True)
class More:
    """There is more to do, from ``cursor`` on: plain data."""

    cursor: Any


@dataclass(frozen=True, slots=True)
class Done:
    """That was the last step: go to ``state``."""

    state: Any


class SteppedTask(Driven):
    """A task in steps: ``step(ctx, cursor)`` returns `More` or `Done`; the first cursor is None.

    Each step is an attempt of its own, with the task's ``attempt_timeout`` and retries; a retry gets the same
    cursor. What a step wrote is committed with its cursor, before the next step begins. A later visit of the
    state begins with None again.

    Example:
        >>> class Pages(SteppedTask):
        ...     def step(self, ctx, cursor):
        ...         page = cursor or 1
        ...         ctx.store.append("titles", fetch_title(page))
        ...         return Done("report") if page == 10 else More(page + 1)
    """

    PHASES: ClassVar = {"step": (2,)}

    def step(self, ctx: Any, cursor: Any) -> More | Done:
        """Do one step."""
        raise NotImplementedError

    def drive(self, stage: Stage) -> Any:
        """Step until done."""
        while True:
            answer = stage.retry(lambda: stage.call("step", stage.cursor()))
            if isinstance(answer, Done):
                return answer.state
            if not isinstance(answer, More):
                raise stage.refusal(f"step returned {answer!r}; return More(cursor) or Done(state)")
            stage.keep(answer.cursor)
