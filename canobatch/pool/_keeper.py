"""The parent's end of the keeper: start it, ask it, hear from it."""

from __future__ import annotations

import marshal
import os
import secrets
import socket
import subprocess
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from canobatch import _procs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Kinds of messages; the keeper module itself is never imported here, it would import loky.
HELLO, SPAWN, SPAWNED, REFUSED, KILL, DEAD, CLOSE = range(7)

#: In a worker's environment: how many pools it is inside of.
DEPTH = "CANOBATCH_DEPTH"

_BOOT = (
    "import sys; control, launcher, workers, threads = map(int, sys.argv[1:5]); sys.path[:] = sys.argv[5:]; "
    "from canobatch import keeper; keeper.main(control, launcher, workers, threads)"
)


class KeeperClient:
    """A running keeper. All methods but `fileno` expect the pool's lock to be held."""

    def __init__(self, token: str, env: Mapping[str, str], max_workers: int, threads_per_worker: int) -> None:
        self.token = f"{token}.{secrets.token_hex(8)}"
        _procs.open_standard_streams()
        self.sock, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The keeper watches its launcher by this; a pipe's end could be held by a forked child.
        launcher = os.pidfd_open(os.getpid())
        depth = int(os.environ.get(DEPTH, "0")) + 1
        fds = (other.fileno(), launcher)
        try:
            self._process = _procs.start_own(
                _BOOT,
                *(*fds, max_workers, threads_per_worker),
                fds=fds,
                env={**os.environ, **env, _procs.TOKEN: self.token, DEPTH: str(depth)},
            )
            self.pid = self._process.pid
            self.pidfd = os.pidfd_open(self.pid)
        except BaseException:
            self.sock.close()
            raise
        finally:
            other.close()
            os.close(launcher)
        self.sock.setblocking(False)
        _procs.kept_children.add(self.pid)
        self._outgoing: deque[tuple[bytes, list[int]]] = deque()

    def request(self, kind: int, argument: Any = None, fds: Sequence[int] = ()) -> None:
        """Send a request; takes over ``fds``."""
        self._outgoing.append((marshal.dumps((kind, argument)), list(fds)))
        self.flush()

    @property
    def has_unsent(self) -> bool:
        """Whether requests wait for room."""
        return bool(self._outgoing)

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        while self._outgoing:
            data, fds = self._outgoing[0]
            try:
                socket.send_fds(self.sock, [data], fds)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                pass  # its end is noticed by the pidfd
            self._outgoing.popleft()
            for fd in fds:
                os.close(fd)

    def receive(self) -> tuple[list[tuple[tuple[Any, ...], list[int]]], bool]:
        """Return the messages that are there, and whether the keeper's end is closed."""
        messages: list[tuple[tuple[Any, ...], list[int]]] = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 4)
            except (BlockingIOError, InterruptedError):
                return messages, False
            except OSError:
                return messages, True
            if not data:
                return messages, True
            messages.append((marshal.loads(data), fds))  # noqa: S302 - from our own process

    def end(self, timeout: float) -> int | None:
        """Wait for the keeper's end, by force after ``timeout`` seconds; close everything of it.

        Returns its exit status, or None when somebody else has reaped it.
        """
        if _procs.wait_dead([self.pidfd], timeout):
            _procs.send_signal(self.pidfd, 9)
            _procs.wait_dead([self.pidfd], timeout)
        status: int | None = None
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(timeout=1.0)
        self.forget()
        return status

    def forget(self) -> None:
        """Close what is held of the keeper; for a forked child, which must leave it alone."""
        _procs.kept_children.discard(self.pid)
        for _, fds in self._outgoing:
            for fd in fds:
                os.close(fd)
        self._outgoing.clear()
        self.sock.close()
        with suppress(OSError):
            os.close(self.pidfd)
        # Its destructor would complain, or wait for a process that is not ours to wait for.
        self._process.returncode = self._process.returncode if self._process.returncode is not None else 0
