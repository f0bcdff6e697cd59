"""Bells: by a FIFO each, the schedulers of a home wake each other, and know who is there."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Bells:
    """The FIFOs of all schedulers; ``own`` is the name of this one."""

    def __init__(self, directory: Path, own: str) -> None:
        self.directory = directory
        self._own = own

    def hang_up(self) -> int:
        """Make one's own; return the descriptor to read it from."""
        path = self.directory / self._own
        unseen = path.with_name(f".{self._own}")
        os.mkfifo(unseen, 0o600)
        # Also for writing: it has no end of file, and the reader can be woken to its end.
        fifo = os.open(unseen, os.O_RDWR | os.O_CLOEXEC)
        # Whoever finds one without a reader takes it for a dead scheduler's.
        unseen.rename(path)
        return fifo

    def take_down(self) -> None:
        """Remove one's own."""
        with suppress(OSError):
            (self.directory / self._own).unlink()

    def ring_all(self) -> None:
        """Wake all others."""
        names: list[str] = []
        with suppress(OSError):
            names = [path.name for path in self.directory.iterdir()]
        for name in names:
            if name != self._own and not name.startswith("."):
                self.reach(name, b"!")

    def reach(self, name: str, message: bytes = b"") -> bool:
        """Return whether a scheduler lives, in whatever pid namespace; a ``message`` wakes it."""
        path = self.directory / name
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            # Nobody reads: it has ended without cleaning up.
            with suppress(OSError):
                path.unlink()
            return False
        try:
            # It may be full, which is as good; or its reader ends at this very moment.
            with suppress(BlockingIOError, BrokenPipeError):
                os.write(fd, message)
        finally:
            os.close(fd)
        return True
