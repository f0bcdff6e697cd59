"""StreamTask: items as they come, handed on in windows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from canobatch.models.base import Model
from canobatch.models.policy import ErrorPolicy
from canobatch.models.window import Count, Window
from canobatch.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Iterable


class CloseReason(StrEnum):
    """Why a stream is closed."""

    #: The source has no more items.
    EXHAUSTED = "exhausted"
    #: The run was cancelled.
    CANCELLED = "cancelled"
    #: The run's total timeout passed.
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An item that was skipped, and the text of what it failed with."""

    item: Any
    error: str


class StreamTask(Model):
    """A task over a source without a known end.

    - ``open(ctx, cursor)`` returns the items from ``cursor`` on (None: from the start). It runs in a thread of the
      parent, where it may block; a source that blocks for long should look at ``ctx.cancelled``.
    - ``process_item(ctx, item)`` returns ``(output, cursor)``, the cursor being where to go on after this item.
    - ``flush_window(ctx, outputs)`` hands a window's outputs on. It returns None to go on, or a state to stop.
      Only then the window is committed: what was written, with the cursor of its last item.
    - ``on_close(ctx, reason)`` returns the next state once the source is exhausted; see `CloseReason`. After a
      flush that stopped the stream it is not called.

    Nothing is pulled ahead of what is processed, and cursors are committed in the items' order. A cancel, and the
    run's total timeout, drain it: items in workers are killed, the open window is flushed and committed,
    ``on_close`` is called, its state ignored. After a failure nothing uncommitted is kept; a retry opens the source
    at the last committed cursor, so items are delivered at least once. Progress starts the count of attempts again.
    ``attempt_timeout`` and ``memory_limit`` bound each call of the other three phases.

    Attributes:
        window: `Count(n)`, `Duration(seconds)`, or ``Count(n) | Duration(seconds)``.
        concurrency: How many items are processed at a time; above 1 in the worker pool.
        item_retry: How many more attempts a failed item gets, and when.
        on_item_error: What to do about an item that has failed for good: `ErrorPolicy.fail_fast` (the default),
            `ErrorPolicy.tolerate` a number in a row, or `ErrorPolicy.skip`.
        dead_letters: The store key of the list that gets a `DeadLetter` for each item that was skipped.

    Example:
        >>> class Lines(StreamTask):
        ...     window = Count(100) | Duration(5.0)
        ...     on_item_error = ErrorPolicy.skip()
        ...     def open(self, ctx, cursor):
        ...         return read_lines(ctx.params.path, start=cursor or 0)
        ...     def process_item(self, ctx, item):
        ...         number, text = item
        ...         return json.loads(text), number + 1
        ...     def flush_window(self, ctx, outputs):
        ...         insert(outputs)
        ...     def on_close(self, ctx, reason):
        ...         return "done"
    """

    PHASES: ClassVar = {"open": (2,), "process_item": (2,), "flush_window": (2,), "on_close": (2,)}
    window: Window = Count(1)
    concurrency: int = 1
    item_retry: Retry = Retry.none()
    on_item_error: ErrorPolicy = ErrorPolicy.fail_fast()
    dead_letters: str = "dead_letters"

    def open(self, ctx: Any, cursor: Any) -> Iterable[Any]:
        """Return the items from ``cursor`` on."""
        raise NotImplementedError

    def process_item(self, ctx: Any, item: Any) -> tuple[Any, Any]:
        """Return the item's output, and the cursor after it."""
        raise NotImplementedError

    def flush_window(self, ctx: Any, outputs: list[Any]) -> Any:
        """Hand the outputs on; return None, or the state to stop at."""
        raise NotImplementedError

    def on_close(self, ctx: Any, reason: CloseReason) -> Any:
        """Return the next state."""
        raise NotImplementedError
