"""Group commit: what waits to be written to a run is written in one transaction, by one thread at a time."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from canobatch import _clock
from canobatch.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from canobatch.journal._database import RunDatabase

#: What may wait before who records has to: calls, and bytes.
_MOST_CALLS = 20_000
_MOST_BYTES = 64 << 20
#: Seconds for which what nobody waits for may wait for more.
_GATHERING = 0.002

_Call = tuple["Callable[..., None]", tuple[Any, ...]]


class Place:
    """A place in the writer's queue: durable when everything up to it is."""

    __slots__ = ("_number", "_writer")

    def __init__(self, writer: GroupWriter, number: int) -> None:
        self._writer = writer
        self._number = number

    @property
    def is_durable(self) -> bool:
        """Whether a crash from now on cannot lose it."""
        return self._writer.durable >= self._number

    def wait(self, timeout: float | None = None) -> None:
        """Return once it is durable; see `Ticket`."""
        self._writer.wait(self._number, timeout)


class GroupWriter:
    """Takes calls on a `RunDatabase` from any thread and makes them in order, all that wait in one transaction.

    Who waits for a call writes it, and what waits with it, at once: a change of threads takes longer than the
    transaction. What nobody waits for is written by a thread of its own. Only one of them writes at a time.
    """

    def __init__(self, database: RunDatabase, name: str) -> None:
        self._database = database
        _ours.add(self)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._waiting: list[_Call] = []
        self._size = 0
        self._given = 0
        self._is_idle = False
        self._is_busy = False
        self._is_closing = False
        self._error: JournalError | None = None
        #: Calls up to this number are durable.
        self.durable = 0
        self._thread = threading.Thread(target=self._serve, name=f"canobatch-journal-{name}", daemon=True)
        self._thread.start()

    def submit(self, function: Callable[..., None], *arguments: Any, size: int = 0) -> Place:
        """Queue a call; ``size`` is about how many bytes it holds. Blocks while too much waits."""
        with self._lock:
            self._check()
            while len(self._waiting) >= _MOST_CALLS or self._size > _MOST_BYTES:
                self._done.wait()
                self._check()
            place = self._add(function, arguments, size)
            if self._is_idle:
                self._work.notify()
            return place

    def make(self, function: Callable[..., None], *arguments: Any) -> None:
        """Queue a call and return when it is durable."""
        with self._lock:
            self._check()
            place = self._add(function, arguments, 0)
        place.wait()

    def _add(self, function: Callable[..., None], arguments: tuple[Any, ...], size: int) -> Place:
        self._waiting.append((function, arguments))
        self._size += size
        self._given += 1
        return Place(self, self._given)

    def wait(self, number: int, timeout: float | None) -> None:
        """Wait until the call of this number is durable."""
        deadline = None if timeout is None else _clock.monotonic() + timeout
        while True:
            with self._lock:
                batch = self._turn(number, deadline)
            if batch is None:
                return
            self._write(batch)

    def _turn(self, number: int, deadline: float | None) -> list[_Call] | None:
        """Wait until it is this thread's turn to write, and return what; None: the call is durable."""
        while self.durable < number:
            if self._error is not None:
                raise self._again(self._error)
            self._check_process()
            if not self._is_busy and self._waiting:
                return self._take()
            rest = None if deadline is None else deadline - _clock.monotonic()
            if rest is not None and rest <= 0:
                raise TimeoutError(f"{self._database.path}: not written in time")
            self._done.wait(rest)
        return None

    def flush(self) -> None:
        """Wait until everything given so far is durable."""
        with self._lock:
            number = self._given
        self.wait(number, None)

    def close(self) -> None:
        """Write what waits, close the database, end the thread. Raises nothing; may be called twice."""
        if self not in _ours:
            return
        with self._lock:
            self._is_closing = True
            self._work.notify()
        self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._again(self._error)
        self._check_process()
        if self._is_closing:
            path = self._database.path
            raise JournalError(f"the run of {path} was closed here", path=str(path), reason="closed")

    def _check_process(self) -> None:
        if self not in _ours:
            path = self._database.path
            raise JournalError(f"{path} belongs to the process that forked this one", path=str(path), reason="closed")

    @staticmethod
    def _again(first: JournalError) -> JournalError:
        error = JournalError(str(first), path=first.path, reason=first.reason)
        error.__cause__ = first
        return error

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            self._write(batch)
        self._database.close(is_whole=self._error is None)

    def _next(self) -> list[_Call] | None:
        """Wait for work and return all there is; None when there will be none."""
        with self._lock:
            while self._is_busy or not self._waiting:
                if self._is_closing and not self._is_busy:
                    return None
                self._is_idle = True
                self._work.wait()
                self._is_idle = False
                if not self._is_closing:
                    # A commit that follows at once takes it along.
                    self._done.wait(_GATHERING)
            return self._take()

    def _take(self) -> list[_Call]:
        batch, self._waiting = self._waiting, []
        self._size = 0
        self._is_busy = True
        return batch

    def _write(self, batch: list[_Call]) -> None:
        error: BaseException | None = None
        try:
            self._database.write(batch)
        except BaseException as caught:  # noqa: BLE001 - raised to whoever waits
            error = caught
        with self._lock:
            self._is_busy = False
            if error is None:
                self.durable += len(batch)
            else:
                self._error = self._failure(error)
                self._waiting.clear()
            self._done.notify_all()
            if self._is_idle and (self._waiting or self._is_closing):
                self._work.notify()

    def _failure(self, error: BaseException) -> JournalError:
        if isinstance(error, JournalError):
            return error
        path = self._database.path
        failure = JournalError(f"{path} cannot be written: {type(error).__name__}: {error}", path=str(path))
        failure.__cause__ = error
        return failure


#: The writers of this process. To ask for its number is a system call, which takes microseconds in some sandboxes.
_ours: weakref.WeakSet[GroupWriter] = weakref.WeakSet()

# A forked child has copies of what its parent writes.
os.register_at_fork(after_in_child=_ours.clear)
