"""The status page: 64 bytes shared by a worker and its pool, so that no message says "I have begun".

The worker publishes the call it runs and when it began; the pool looks when a timeout is due or after a
death. The pool withholds calls that wait behind a long one: the worker skips them, others get them.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

_RUNNING = struct.Struct("<Qd")
_WITHHELD = struct.Struct("<QQ")
_WITHHELD_AT = 32
_SIZE = 4096


class StatusPage:
    """One worker's page. Calls are numbered from 1; 0 means idle."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _SIZE)

    @classmethod
    def create(cls) -> tuple[StatusPage, int]:
        """Return a new page and the descriptor by which a worker maps it."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("canobatch-status", os.MFD_CLOEXEC)
        else:
            fd, path = tempfile.mkstemp(prefix="canobatch-status-")
            os.unlink(path)  # noqa: PTH108
        os.ftruncate(fd, _SIZE)
        return cls(fd), fd

    def publish(self, call: int, started: float) -> None:
        """Worker: say that ``call`` has begun, at ``started`` on the monotonic clock."""
        _RUNNING.pack_into(self._map, 0, call, started)

    def clear(self) -> None:
        """Worker: say that no call runs."""
        _RUNNING.pack_into(self._map, 0, 0, 0.0)

    def running(self) -> tuple[int, float]:
        """Return the call that runs and when it began; (0, 0.0) when idle."""
        call, started = _RUNNING.unpack_from(self._map, 0)
        return call, started

    def withhold(self, first: int, end: int) -> None:
        """Pool: let the worker skip the calls from ``first`` up to, not including, ``end``.

        Earlier ranges need not be kept: a worker gets a new call only behind those it has skipped.
        """
        _WITHHELD.pack_into(self._map, _WITHHELD_AT, first, end)

    def is_withheld(self, call: int) -> bool:
        """Worker: return whether ``call`` is somebody else's now."""
        first, end = _WITHHELD.unpack_from(self._map, _WITHHELD_AT)
        return bool(first <= call < end)

    def close(self) -> None:
        """Unmap the page."""
        self._map.close()
