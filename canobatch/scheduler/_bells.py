"""Bells: by a FIFO each, the schedulers of a home wake each other, and know who is there and who is no more."""

from __future__ import annotations

import os
import secrets
import select
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from canobatch import _procs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Bells:
    """The FIFOs of all schedulers of a home, in a directory.

    Attributes:
        own: The name of this one's: its process, in which pid namespace, and which of its schedulers.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._namespace = str(_procs.pid_namespace())
        self.own = f"{os.getpid()}-{self._namespace}-{secrets.token_hex(4)}"
        self._fifo: int | None = None
        #: By name, the pidfds of others' processes.
        self._others: dict[str, int] = {}
        self._listener: threading.Thread | None = None
        self._is_closed = False

    def listen(self, tell: Callable[[], None]) -> None:
        """Call ``tell``, from a thread of its own, when this one's is rung, and when another's process has ended."""
        self._fifo = self._hang_up()
        self._listener = threading.Thread(
            target=self._listen, args=(self._fifo, tell), name="canobatch-wake", daemon=True
        )
        self._listener.start()
        # From now on the others are to take note of the end of this process.
        self.ring_all()

    def _hang_up(self) -> int:
        path = self._directory / self.own
        unseen = path.with_name(f".{self.own}")
        os.mkfifo(unseen, 0o600)
        # Also for writing: it has no end of file, and the reader can be woken to its end.
        fifo = os.open(unseen, os.O_RDWR | os.O_CLOEXEC)
        # Whoever finds one without a reader takes it for a dead scheduler's.
        unseen.rename(path)
        return fifo

    def _listen(self, fifo: int, tell: Callable[[], None]) -> None:
        while not self._is_closed:
            self._see_others()
            poller = select.poll()
            for fd in (fifo, *self._others.values()):
                poller.register(fd, select.POLLIN)
            rung = {fd for fd, _ in poller.poll()}
            if fifo in rung:
                os.read(fifo, 4096)
            for name, pidfd in list(self._others.items()):
                if pidfd in rung:
                    self._lose_sight_of(name)
                    # Nobody reads it any more: so it is removed.
                    self.reach(name)
            if not self._is_closed:
                tell()

    def _see_others(self) -> None:
        names = self._names()
        for name in [name for name in self._others if name not in names]:
            self._lose_sight_of(name)
        for name in names:
            pid, _, namespace = name.rpartition("-")[0].partition("-")
            # In another namespace the number means somebody else; and this process's own end is no news to it.
            if name not in self._others and namespace == self._namespace and pid != str(os.getpid()):
                with suppress(OSError, ValueError):
                    pidfd = os.pidfd_open(int(pid))
                    if self.reach(name):
                        self._others[name] = pidfd
                    else:
                        os.close(pidfd)

    def _lose_sight_of(self, name: str) -> None:
        os.close(self._others.pop(name))

    def _names(self) -> set[str]:
        with suppress(OSError):
            names = {path.name for path in self._directory.iterdir()}
            return {name for name in names if name != self.own and not name.startswith(".")}
        return set()

    def ring_all(self) -> None:
        """Wake all others."""
        for name in self._names():
            self.reach(name, b"!")

    def reach(self, name: str, message: bytes = b"") -> bool:
        """Return whether a scheduler lives, in whatever pid namespace; a ``message`` wakes it."""
        path = self._directory / name
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

    def close(self) -> None:
        """Take this one's down, if it has one, and end the thread."""
        self._is_closed = True
        if self._fifo is None:
            return
        with suppress(OSError):
            (self._directory / self.own).unlink()
        os.write(self._fifo, b"!")
        if self._listener is not None and self._listener is not threading.current_thread():
            self._listener.join()
        for fd in (self._fifo, *self._others.values()):
            os.close(fd)
        self._others.clear()
        self._fifo = None
