"""Where the memory of large values is: who holds it, and a machine of one's own to run out of it in."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self

MB = 1_000_000

_SEGMENT = re.compile(r"/memfd:canobatch \(deleted\)$")


def segments_of(*pids: int) -> dict[int, int]:
    """Return the size in whole pages of each memfd segment, by inode, that these processes hold open or mapped."""
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found.update(_mapped(pid))
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if _SEGMENT.search(os.readlink(f"/proc/{pid}/fd/{name}")):
                        status = os.stat(f"/proc/{pid}/fd/{name}")
                        found[status.st_ino] = -(-status.st_size // mmap.PAGESIZE) * mmap.PAGESIZE
    return found


def _mapped(pid: int) -> Iterable[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and _SEGMENT.search(fields[5]):
            start, end = (int(text, 16) for text in fields[0].split("-"))
            yield int(fields[4]), end - start


def bytes_of(*pids: int) -> int:
    """Return how many bytes of memfd segments these processes keep."""
    return sum(segments_of(*pids).values())


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1


# -- in a script: a file system of its own

CANNOT = "no mount namespace here"

_NEW_NAMESPACE = 0x20000
_NEW_USER = 0x10000000
_RECURSIVE, _PRIVATE = 0x4000, 0x40000


def confine(**sizes: int) -> None:
    """In a script, first thing: put a file system of so many bytes of memory at each directory.

    ``shm`` means /dev/shm, any other name a directory here, where values spill to. Prints `CANNOT` and ends where that
    is not allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_NAMESPACE) != 0:
        if libc.unshare(_NEW_NAMESPACE | _NEW_USER) != 0:
            _give_up()
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if libc.mount(None, b"/", None, _RECURSIVE | _PRIVATE, None) != 0:
        _give_up()
    for name, size in sizes.items():
        place = "/dev/shm" if name == "shm" else os.path.abspath(name)
        os.makedirs(place, exist_ok=True)
        if libc.mount(b"tmpfs", place.encode(), b"tmpfs", 0, f"size={size}".encode()) != 0:
            _give_up()
        if name != "shm":
            os.environ["TMPDIR"] = place


def _give_up() -> None:
    print(CANNOT, flush=True)
    os._exit(0)


class Directory:
    """A directory as another process sees it, also after that process has ended."""

    def __init__(self, pid: int, path: str) -> None:
        self._fd = os.open(f"/proc/{pid}/root{path}", os.O_RDONLY | os.O_DIRECTORY)

    def names(self) -> list[str]:
        """Return what is in it."""
        return sorted(os.listdir(self._fd))

    def used(self) -> int:
        """Return how many bytes of its file system are taken, nameless files included."""
        status = os.fstatvfs(self._fd)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def close(self) -> None:
        """Let it go."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
