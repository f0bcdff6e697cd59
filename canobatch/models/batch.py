"""BatchTask: many items, in worker processes, and one conclusion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from canobatch.models.base import Driven
from canobatch.retry import Retry

if TYPE_CHECKING:
    from canobatch.models.base import Stage
    from canobatch.models.item import ItemResult


class BatchTask(Driven):
    """A task over items: ``load(ctx)`` gives them, ``process_item(ctx, item)`` runs for each in the worker pool.

    ``finish(ctx, results)`` gets one `ItemResult` per item, in their order, and returns the next state. An item
    that fails, times out or loses its worker is an error in its result and nothing to the others; ``finish``
    decides what it means. ``load`` and ``finish`` are retried as the task's configuration says, each by itself:
    finished items are not done again. ``attempt_timeout`` and ``memory_limit`` bound each call: ``load``, one
    attempt of one item, ``finish``. All that was written is committed, in the items' order, with the next state.

    Where `load` runs in the parent (the default) it may be a generator, read as workers want items.
    With ``where="parent"`` items run there too, one after the other. ``ctx.branch`` is the item's index.

    Attributes:
        concurrency: How many items run at a time; at least 1.
        item_retry: How many more attempts a failed item gets, and when.

    Example:
        >>> class Resize(BatchTask):
        ...     concurrency = 4
        ...     item_retry = Retry.fixed(2, 0.5)
        ...     def load(self, ctx):
        ...         return sorted(Path("images").iterdir())
        ...     def process_item(self, ctx, path):
        ...         return resize(path)
        ...     def finish(self, ctx, results):
        ...         ctx.store.put("failed", [r.index for r in results if r.error])
        ...         return "done"
    """

    PHASES: ClassVar = {"load": (1, 0), "process_item": (2,), "finish": (2,)}
    concurrency: int = 1
    item_retry: Retry = Retry.none()

    def load(self, *args: Any) -> Iterable[Any]:
        """Return the items: ``load(self, ctx)`` or ``load(self)``."""
        raise NotImplementedError

    def process_item(self, ctx: Any, item: Any) -> Any:
        """Return an item's value."""
        raise NotImplementedError

    def finish(self, ctx: Any, results: list[ItemResult]) -> Any:
        """Return the next state."""
        raise NotImplementedError

    def drive(self, stage: Stage) -> Any:
        """Load, process, finish."""
        items = stage.retry(lambda: stage.call("load"))
        if not isinstance(items, Iterable):
            raise stage.refusal(f"load returned {items!r}, which cannot be iterated over; return the items")
        results = stage.process(items)
        return stage.retry(lambda: stage.call("finish", results))
