"""The thread that owns a run's connection and writes what waits, all of it in one transaction."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from canobatch import _clock
from canobatch.errors import JournalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from canobatch.journal._database import RunDatabase

#: What may wait before who records has to: calls, and bytes.
_MOST_CALLS = 20_000
_MOST_BYTES = 64 << 20


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
    """Takes calls on a `RunDatabase` from any thread and makes them in order, in groups, in its own thread."""

    def __init__(self, database: RunDatabase, name: str) -> None:
        self._database = database
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._size = 0
        self._given = 0
        self._is_idle = False
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
            self._waiting.append((function, arguments))
            self._size += size
            self._given += 1
            if self._is_idle:
                self._work.notify()
            return Place(self, self._given)

    def wait(self, number: int, timeout: float | None) -> None:
        """Wait until the call of this number is durable."""
        deadline = None if timeout is None else _clock.monotonic() + timeout
        with self._lock:
            while self.durable < number:
                if self._error is not None:
                    raise self._again(self._error)
                self._check_process()
                rest = None if deadline is None else deadline - _clock.monotonic()
                if rest is not None and rest <= 0:
                    raise TimeoutError(f"{self._database.path}: not written within {timeout} s")
                self._done.wait(rest)

    def flush(self) -> None:
        """Wait until everything given so far is durable."""
        with self._lock:
            number = self._given
        self.wait(number, None)

    def close(self) -> None:
        """Write what waits, close the database, end the thread. Raises nothing; may be called twice."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._is_closing = True
            self._work.notify()
        self._thread.join()

    @property
    def is_broken(self) -> bool:
        """Whether something could not be written."""
        return self._error is not None

    def _check(self) -> None:
        if self._error is not None:
            raise self._again(self._error)
        self._check_process()
        if self._is_closing:
            path = self._database.path
            raise JournalError(f"the run of {path} was closed here", path=str(path), reason="closed")

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            path = self._database.path
            raise JournalError(f"{path} belongs to the process that forked this one", path=str(path), reason="closed")

    @staticmethod
    def _again(first: JournalError) -> JournalError:
        error = JournalError(str(first), path=first.path, reason=first.reason)
        error.__cause__ = first
        return error

    def _serve(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._database.write(batch)
                with self._lock:
                    self.durable += len(batch)
                    self._done.notify_all()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self._fail(error)
        finally:
            self._database.close(is_whole=self._error is None)

    def _next(self) -> list[tuple[Callable[..., None], tuple[Any, ...]]] | None:
        """Wait for work and return all there is; None when there will be none."""
        with self._lock:
            while not self._waiting:
                if self._is_closing:
                    return None
                self._is_idle = True
                self._work.wait()
                self._is_idle = False
            batch, self._waiting = self._waiting, []
            self._size = 0
            return batch

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, JournalError):
            path = self._database.path
            failure = JournalError(f"{path} cannot be written: {type(error).__name__}: {error}", path=str(path))
            failure.__cause__ = error
            error = failure
        with self._lock:
            self._error = error
            self._waiting.clear()
            self._done.notify_all()
