"""Kernel locks on files: free at once when their holder ends, in whatever way.

Of our own because of what it costs to import one: a run with a journal needs a lock before anything else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from canobatch import _clock

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds to try while nobody has it: who only asks whether it is held, holds it, shared, for some microseconds.
_PATIENCE = 0.1


class FileLock:
    """A lock that one process at a time has, by the name of a file. Any thread may release it; forks do not have it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self, *, waits: bool = False) -> bool:
        """Take it; return whether it is ours. ``waits``: until it is.

        Raises:
            OSError: There can be no lock.
        """
        deadline = _clock.monotonic() + _PATIENCE
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
                if _is_named(fd, self._path):
                    self._fd, fd = fd, -1
                    _held.add(self)
                    return True
                # Its last holder took the name away: the lock is on another file by now.
            except BlockingIOError:
                if is_held(self._path) or _clock.monotonic() >= deadline:
                    return False
                _clock.sleep(0.01)
            finally:
                if fd >= 0:
                    os.close(fd)

    def release(self, *, is_last: bool = False) -> None:
        """Give it back; ``is_last``: nobody will need it again."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        if is_last:
            # While it is held: who waits for it sees that it lost its name, and begins anew.
            with suppress(OSError):
                self._path.unlink()
        # Not only closed: a child that was just forked may have it for some microseconds more.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def is_held(path: Path) -> bool:
    """Return whether somebody holds a lock."""
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


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    # A lock belongs to what was opened, and so would outlive the parent in its child.
    for lock in list(_held):
        fd, lock._fd = lock._fd, None  # noqa: SLF001 - our own
        if fd is not None:
            with suppress(OSError):
                os.close(fd)


os.register_at_fork(after_in_child=_let_go_in_child)
