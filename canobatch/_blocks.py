"""Named blocks of shared memory, for where there is no memfd; all of them belong to one server process.

The server is a `SharedMemoryManager` of the standard library that also makes the blocks, so that no other
process ever owns a name: whoever is killed, the server removes them all when its launcher ends. Nobody who
opens a block registers it with a resource tracker.
"""

from __future__ import annotations

import _posixshmem  # type: ignore[import-not-found]
import atexit
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing import managers
from multiprocessing.connection import Client
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from canobatch import _procs

_BOOT = (
    "import sys; ready, launcher = map(int, sys.argv[1:3]); sys.path[:] = sys.argv[3:]; "
    "from canobatch import _blocks; _blocks.serve(ready, launcher)"
)

_KEY_LENGTH = 32


def open_block(name: str, flags: int) -> int:
    """Return a descriptor of a block; no resource tracker hears of it."""
    fd: int = _posixshmem.shm_open(name, flags, mode=0o600)
    return fd


class Block:
    """A block of this process's server, until it is closed."""

    offset = 0

    def __init__(self, server: _Server, name: str) -> None:
        self._server = server
        self._name = name
        self.path = "/" + name

    def close(self) -> None:
        """Have it removed."""
        if self._server.is_usable:
            self._server.call("release_segment", self._name)


def allocate(size: int) -> Block:
    """Return a new block of ``size`` bytes.

    Raises:
        OSError: There is no room for it, or the server cannot be reached.
    """
    server = _running_server()
    name = server.call("create_block", size)
    if not isinstance(name, str):
        raise OSError(name, os.strerror(name))
    return Block(server, name)


# -- the server, in its own process


class _BlockServer(managers.SharedMemoryServer):
    public = [*managers.SharedMemoryServer.public, "create_block"]  # noqa: RUF012

    def create_block(self, c: Any, size: int) -> str | int:
        """Make a block with all of its pages, as a full file system is a SIGBUS later; return its name or an errno."""
        try:
            block = SharedMemory(create=True, size=size)
        except OSError as error:
            return error.errno or 0
        try:
            fd = open_block("/" + block.name, os.O_RDWR)
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)
        except OSError as error:
            block.unlink()
            return error.errno or 0
        finally:
            block.close()
        self.track_segment(c, block.name)
        return block.name


class _Manager(managers.SharedMemoryManager):
    _Server = _BlockServer


def serve(ready: int, launcher: int) -> None:
    """Serve the launcher behind a pidfd until it ends; then remove every block."""
    channel = socket.socket(fileno=ready)
    authkey = channel.recv(_KEY_LENGTH)
    # Abstract where possible: a socket in the file system would outlive a kill.
    address = f"\0canobatch-{os.urandom(8).hex()}" if sys.platform == "linux" else None
    server: Any = _Manager(address=address, authkey=authkey).get_server()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    channel.sendall(os.fsencode(address or server.address))
    channel.close()
    try:
        server.serve_forever()
    finally:
        server.shared_memory_context.unlink()


def _end_with(launcher: int) -> None:
    while _procs.wait_dead([launcher], 86400.0):
        pass
    signal.raise_signal(signal.SIGTERM)


# -- the launcher's end


class _Server:
    """A running server."""

    def __init__(self) -> None:
        _procs.open_standard_streams()
        launcher = os.pidfd_open(os.getpid())
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), launcher)
        try:
            self._process = _procs.start_own(_BOOT, *fds, fds=fds, options=("-W", "ignore"))
        finally:
            theirs.close()
            os.close(launcher)
        _procs.kept_children.add(self._process.pid)
        self._pid = os.getpid()
        self._authkey = os.urandom(_KEY_LENGTH)
        with ours:
            ours.sendall(self._authkey)
            self._address = os.fsdecode(ours.recv(4096))
        if not self._address:
            raise OSError(errno.ECONNREFUSED, "the server of shared memory could not start: what it printed says why")

    @property
    def is_usable(self) -> bool:
        """Whether it lives, and is this process's own."""
        return self._pid == os.getpid() and self._process.poll() is None

    def call(self, method: str, argument: Any) -> Any:
        """Have the server do something."""
        with Client(self._address, authkey=self._authkey) as connection:
            return managers.dispatch(connection, None, method, (argument,))  # type: ignore[attr-defined]

    def stop(self) -> None:
        """End it; it removes its blocks first."""
        if self.is_usable:
            self._process.terminate()
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            _procs.kept_children.discard(self._process.pid)


_server: _Server | None = None
_lock = threading.Lock()


def _running_server() -> _Server:
    global _server  # noqa: PLW0603 - one serves all stores
    with _lock:
        if _server is None or not _server.is_usable:
            _server = _Server()
            atexit.register(_server.stop)
        return _server


def _forget_in_child() -> None:
    global _server, _lock
    _server, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_in_child)
