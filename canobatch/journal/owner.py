"""Who has a run: the kernel's lock decides, a row describes."""

from __future__ import annotations

import fcntl
import functools
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from canobatch import _clock, _procs, _sqlite
from canobatch.journal.records import Owner

if TYPE_CHECKING:
    from pathlib import Path

    from filelock import BaseFileLock

#: Seconds to try while nobody has it: who only asks whether it is held, holds it, shared, for some microseconds.
_PATIENCE = 0.1


def this_process() -> Owner:
    """Return the description of this process."""
    return _describe(os.getpid())


@functools.lru_cache(maxsize=1)
def _describe(pid: int) -> Owner:
    return Owner(pid, _procs.start_ticks(pid), _procs.boot_id(), _procs.pid_namespace(), os.uname().nodename)


class RunLock:
    """The lock of one run. It dies with its holder, however that ends; a fork of the holder does not have it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: BaseFileLock | None = None

    def acquire(self) -> bool:
        """Take it; returns whether nobody else has it.

        Raises:
            JournalError: There can be no lock.
        """
        from filelock import FileLock, Timeout  # noqa: PLC0415 - 45 ms

        # Any thread may release it, and a lock file that outlives its holder is worse than none.
        lock = FileLock(self._path, mode=0o600, thread_local=False, fallback_to_soft=False)
        deadline = _clock.monotonic() + _PATIENCE
        while True:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if is_held(self._path) or _clock.monotonic() >= deadline:
                    return False
                _clock.sleep(0.01)
            except OSError as error:
                raise _sqlite.meaning_of(self._path, error) from error
            else:
                self._lock = lock
                return True

    def release(self, *, is_last: bool = False) -> None:
        """Give it back; ``is_last``: nobody will need it again."""
        if self._lock is None:
            return
        if is_last:
            # While it is held: who waits for it sees that it lost its name, and begins anew.
            with suppress(OSError):
                self._path.unlink()
        self._lock.release()
        self._lock = None


def is_held(path: Path) -> bool:
    """Return whether somebody holds a run's lock."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared: those who ask do not disturb each other.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
