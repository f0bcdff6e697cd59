"""Objects that have one home and are used from every process; the permits they give.

One lock guards every brokered object of a process; nothing blocks while it is held.
"""

from __future__ import annotations

import os
import queue
import secrets
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Self

from canobatch import _clock, broker

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from types import TracebackType


#: Operations after which others may get what they wait for.
_NEWS = frozenset({"give_back", "leave_line"})


class Brokered:
    """Base of what has one home and is used from every process.

    A method named in ``operations`` takes ``now``, seconds of the home's monotonic clock, as its last argument,
    and runs at home under the lock; what it takes and returns are plain data. ``admit`` returns a ticket, a
    number, or None; the ticket is the caller's until ``give_back(ticket, outcome, now)``. What can be waited for
    has a line of turns, to stand in at home only. ``take`` returns None, or the seconds after which to ask again
    and who says so.
    """

    operations: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        #: Where it lives, and its number there; None: here.
        self._home: tuple[bytes, int] | None = None
        self._number = 0
        self._watchers: list[Callable[[], None]] = []

    @property
    def is_here(self) -> bool:
        """Whether this process is its home."""
        return self._home is None

    def ask(self, operation: str, *args: Any) -> Any:
        """Perform an operation where the object lives.

        Raises:
            ResourceError: Its home cannot be reached.
        """
        if self._home is not None:
            return broker.links.ask(self._home, operation, args)
        with _lock:
            answer = getattr(self, operation)(*args, _clock.monotonic())
        if operation in _NEWS:
            self.tell_watchers()
        return answer

    def admit_within(self, timeout: float | timedelta | None) -> int | None:
        """Wait in line for a ticket; None when ``timeout`` seconds have passed."""
        deadline = None if timeout is None else _clock.monotonic() + _clock.as_seconds(timeout)
        if self._home is not None:
            return broker.links.wait(self._home, deadline)
        # Not an event, which a finalizer could not set everywhere.
        news: queue.SimpleQueue[None] = queue.SimpleQueue()
        forget = self.watch(lambda: news.put(None))
        turn = self.ask("stand_in_line", 0)
        ticket: int | None = None
        try:
            while (ticket := self.ask("admit", turn)) is None:
                news.get(timeout=None if deadline is None else _clock.time_left(deadline))
        except queue.Empty:
            pass
        finally:
            forget()
            if ticket is None:
                self.ask("leave_line", turn)
        return ticket

    def take_within(self, cost: Any, timeout: float | timedelta | None) -> tuple[float, str] | None:
        """Ask until ``take`` has taken ``cost``; return its refusal as soon as ``timeout`` cannot be kept."""
        deadline = None if timeout is None else _clock.monotonic() + _clock.as_seconds(timeout)
        while True:
            refusal: tuple[float, str] | None = self.ask("take", cost)
            if refusal is None or (deadline is not None and _clock.monotonic() + refusal[0] > deadline):
                return refusal
            _clock.sleep(refusal[0])

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call ``watcher`` when there may be a ticket; returns how to stop that. At home only."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def tell_watchers(self) -> None:
        """A ticket was given back, or somebody has left the line."""
        for watcher in tuple(self._watchers):
            watcher()

    def facts(self) -> dict[str, Any]:
        """Return the attributes that are the same everywhere: settings, nothing that changes."""
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        address, number = self._home or (broker.open_broker().address, self.known_as())
        return _arrive, (type(self), address, number, self.facts())

    def known_as(self) -> int:
        """Return its number, given when first asked for."""
        with _lock:
            if not self._number:
                self._number = secrets.randbits(62) + 1
            broker.known[self._number] = self
            return self._number

    def live_at(self, home: tuple[bytes, int], facts: dict[str, Any]) -> None:
        """Become a proxy."""
        Brokered.__init__(self)
        self._home = home
        self.__dict__.update(facts)


def _arrive(cls: type[Brokered], address: bytes, number: int, facts: dict[str, Any]) -> Brokered:
    """Return the object itself where it lives, a proxy elsewhere."""
    found = broker.find(address, number)
    if isinstance(found, Brokered):
        return found
    proxy = cls.__new__(cls)
    proxy.live_at((address, number), facts)
    return proxy


class Permit:
    """Leave to make one call, or to be inside; a context manager.

    Leaving its ``with`` ends it: as a success, or as a failure when an exception is raised. It is given back as
    neither when it is dropped, and when the process that holds it dies. It cannot be sent to another process.
    """

    def __init__(self, owner: Brokered, ticket: int) -> None:
        self._owner = owner
        self._ticket: int | None = ticket
        self._pid = os.getpid()

    def succeed(self) -> None:
        """End it as a success."""
        self.end(True)

    def fail(self) -> None:
        """End it as a failure."""
        self.end(False)

    def release(self) -> None:
        """End it as neither."""
        self.end(None)

    def end(self, outcome: bool | None) -> None:
        """End it as a success (True), a failure (False) or neither (None); twice is fine."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._owner.ask("give_back", ticket, outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(kind is None)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a permit belongs to the process that took it; take another where it is needed")

    def __del__(self) -> None:
        # A forked child has copies of its parent's permits.
        if self._ticket is not None and self._pid == os.getpid():
            with suppress(Exception):
                self.release()


#: Re-entrant, as a finalizer that gives a permit back may run in the midst of an operation of its thread.
_lock = threading.RLock()


def _start_anew() -> None:
    """In a forked child: nobody holds the lock."""
    global _lock  # noqa: PLW0603 - it may have been held at the fork
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_start_anew)
