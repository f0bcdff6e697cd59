"""Where the bytes of segments lie: memfds and files without a name, and how they are mapped and opened."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import tempfile
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

#: Of the descriptors that this process may have, segments leave the rest.
_DESCRIPTOR_SHARE = 0.8


class Home(Protocol):
    """Where a segment's bytes lie, for as long as this is not closed."""

    path: str
    offset: int

    def close(self) -> None:
        """Give the bytes up."""


class File:
    """A memfd, or a file without a name; mappings of it outlive this."""

    offset = 0

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.path = f"/proc/{os.getpid()}/fd/{fd}"

    def close(self) -> None:
        """Give the bytes up, once."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Region:
    """A part of a file that several values share, for when descriptors are scarce.

    Its room is not used again while the file lives: someone may still have it mapped, and read zeros.
    """

    def __init__(self, file: SharedFile, path: str, offset: int) -> None:
        self._file = file
        self.path = path
        self.offset = offset

    def close(self) -> None:
        """Give the bytes up."""
        self._file.release()


class SharedFile:
    """A file without a name, closed when nothing lies in it any more."""

    def __init__(self) -> None:
        # A segment may be released in the midst of an allocation, by the garbage collector.
        self._lock = threading.RLock()
        self._file: File | None = None
        self._fd = -1
        self._end = 0
        self._regions = 0

    def allocate(self, size: int) -> Region:
        """Reserve room for ``size`` bytes on disk."""
        with self._lock:
            self._regions += 1
            try:
                if self._file is None:
                    self._fd = _nameless_file()
                    self._file = File(self._fd)
                offset = self._end
                os.posix_fallocate(self._fd, offset, size)
            except OSError:
                self.release()
                raise
            self._end = -(-(offset + size) // mmap.PAGESIZE) * mmap.PAGESIZE
            return Region(self, self._file.path, offset)

    def release(self) -> None:
        """Count one region less."""
        with self._lock:
            self._regions -= 1
            if not self._regions:
                self.forget()

    def forget(self) -> None:
        """Close it; in a forked child, that leaves it to the parent."""
        if self._file is not None:
            self._file.close()
        self._file, self._end = None, 0


def spill(size: int) -> File:
    """Return a file of ``size`` bytes on disk."""
    fd = _nameless_file()
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError:
        os.close(fd)
        raise
    return File(fd)


def _nameless_file() -> int:
    directory = os.environ.get("TMPDIR") or ("/var/tmp" if os.path.isdir("/var/tmp") else tempfile.gettempdir())  # noqa: S108, PTH112
    if hasattr(os, "O_TMPFILE"):
        with suppress(OSError):  # not on every file system
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fd, path = tempfile.mkstemp(prefix="canobatch-", dir=directory)
    os.unlink(path)  # noqa: PTH108
    return fd


def open_path(path: str, flags: int) -> int:
    """Open a file, or a named block."""
    is_block = path.count("/") == 1
    return block_module().open_block(path, flags) if is_block else os.open(path, flags | os.O_CLOEXEC)


def block_module() -> Any:
    """Return what knows of named blocks, imported when there are any."""
    from canobatch import _blocks  # noqa: PLC0415 - multiprocessing takes 15 ms to import

    return _blocks


def map_file(fd: int, offset: int, size: int, keeps: object) -> memoryview:
    """Map without keeping a descriptor, which `mmap.mmap` would; unmapped when nothing refers to it any more."""
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    array = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(array, _unmap, libc.munmap, address, size, keeps).atexit = False
    return memoryview(array).cast("B").toreadonly()


def _unmap(munmap: Callable[[int, int], int], address: int, size: int, keeps: object) -> None:  # noqa: ARG001 - let go now
    munmap(address, size)


def _libc() -> Any:
    global _library  # noqa: PLW0603
    if _library is None:
        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        numbers = (ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
        library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *numbers)
        library.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        _library = library
    return _library


_library: Any = None


# -- descriptors


def allow_many_descriptors() -> None:
    """Raise the soft limit on descriptors to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Awaited:
    """Where the descriptor of a memfd will be that another process is to make: it counts as taken until it comes."""

    path = ""
    offset = 0
    _lock = threading.RLock()
    #: How many there are.
    count = 0

    def __init__(self) -> None:
        self._is_open = True
        with Awaited._lock:
            Awaited.count += 1

    def close(self) -> None:
        """It has come, or never will."""
        with Awaited._lock:
            Awaited.count -= self._is_open
            self._is_open = False


def are_descriptors_scarce() -> bool:
    """Return whether this process has few descriptors left."""
    # The lowest free number says how many there are, near enough.
    try:
        fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    os.close(fd)
    return fd + Awaited.count >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] * _DESCRIPTOR_SHARE
