"""ItemResult: what became of one item of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ItemResult:
    """What became of one item.

    Attributes:
        index: Its place among the items, from 0.
        value: What ``process_item`` returned; None if it failed.
        error: What the last attempt failed with, or None: the item's own error, or a `TaskError` such as
            `WorkerLostError` or `TaskTimeoutError`.
    """

    index: int
    value: Any = None
    error: BaseException | None = None

    @property
    def succeeded(self) -> bool:
        """Whether there is a value."""
        return self.error is None
