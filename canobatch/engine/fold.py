"""Fold: reduces accepted values in branch order as they come, without keeping them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canobatch.effects import dumps, loads

if TYPE_CHECKING:
    from collections.abc import Callable

_SKIPPED = object()


class FoldError(Exception):
    """The function failed; ``__cause__`` is its error, ``index`` the branch whose value it was given."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class Fold:
    """``fn(folded, value)`` over accepted branches; in branch order unless ``ordered`` is False."""

    def __init__(self, fn: Callable[[Any, Any], Any], initial: Any, *, ordered: bool) -> None:
        self._fn = fn
        # The caller's initial value serves other runs too.
        self._folded = loads(dumps(initial))
        self._is_ordered = ordered
        self._early: dict[int, Any] = {}
        #: The first branch that has not been folded or skipped.
        self.next = 0

    def add(self, index: int, value: Any) -> None:
        """Take an accepted value."""
        if self._is_ordered and index != self.next:
            self._early[index] = value
            return
        self._fold(index, value)
        self._advance(index)

    def skip(self, index: int) -> None:
        """Take note that a branch failed."""
        if self._is_ordered and index != self.next:
            self._early[index] = _SKIPPED
        else:
            self._advance(index)

    def finish(self) -> Any:
        """Fold what waits behind branches that were cut, and return the result."""
        for index in sorted(self._early):
            if self._early[index] is not _SKIPPED:
                self._fold(index, self._early[index])
        self._early.clear()
        return self._folded

    def _advance(self, index: int) -> None:
        if not self._is_ordered:
            self.next += 1
            return
        self.next = index + 1
        while self.next in self._early:
            value = self._early.pop(self.next)
            if value is not _SKIPPED:
                self._fold(self.next, value)
            self.next += 1

    def _fold(self, index: int, value: Any) -> None:
        try:
            self._folded = self._fn(self._folded, value)
        except Exception as error:
            raise FoldError(index) from error
