"""Source: the items of a stream, pulled by a thread of their own, so that a blocking source holds up nothing else."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_log = logging.getLogger(__name__)

#: Seconds that a source has to return when it is closed.
_PATIENCE = 5.0


class Source:
    """Pulls as many items as it is asked for.

    Args:
        name: Of its thread.
        open_: Returns the items.
        wake: Called when there is something to be seen here.

    Attributes:
        is_open: Whether ``open_`` has returned.
        error: What opening or pulling failed with.
    """

    def __init__(self, name: str, open_: Callable[[], Iterable[Any]], wake: Callable[[], None]) -> None:
        self._open = open_
        self._wake = wake
        self._changed = threading.Condition()
        self._items: deque[Any] = deque()
        self._asked = 0
        self._is_closed = False
        self._has_ended = False
        self.is_open = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_exhausted(self) -> bool:
        """Whether there are no more items, now or later."""
        with self._changed:
            return self._has_ended and not self._items

    def ask(self, items: int) -> None:
        """Ask for as many items beyond those taken so far."""
        with self._changed:
            self._asked = max(0, items - len(self._items))
            self._changed.notify_all()

    def take(self) -> list[Any]:
        """Return the items that have come."""
        with self._changed:
            taken = list(self._items)
            self._items.clear()
            return taken

    def close(self) -> None:
        """End it; a generator is closed. One that blocks is left alone after 5 s."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            _log.warning("the source of %s still blocks, and is left behind; let it look at ctx.cancelled", self.name)

    @property
    def name(self) -> str:
        """The name of its thread."""
        return self._thread.name

    def _run(self) -> None:
        iterator = None
        try:
            iterator = iter(self._open())
            with self._changed:
                self.is_open = True
            self._wake()
            while self._may_pull():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                with self._changed:
                    self._items.append(item)
                    self._asked -= 1
                self._wake()
        except BaseException as error:  # noqa: BLE001 - the run's own thread raises it
            self.error = error
        finally:
            self._end(iterator)

    def _may_pull(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._asked > 0)
            return not self._is_closed

    def _end(self, iterator: Any) -> None:
        try:
            if hasattr(iterator, "close"):
                iterator.close()
        except BaseException as error:  # noqa: BLE001 - as above
            self.error = self.error or error
        with self._changed:
            self._has_ended = True
        self._wake()
