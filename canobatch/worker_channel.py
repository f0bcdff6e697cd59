"""A worker's end of its channel: frames in order, and the segments that a call writes by the launcher's leave."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from canobatch import _shm, wire
from canobatch.effects import Placed
from canobatch.errors import StoreFullError
from canobatch.segments import Layout, Written, fill

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Seconds that something of little weight waits for another frame to be sent.
_TRY = 0.2


class Channel:
    """Frames to and from the pool. Received by the main thread; sent by any."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._inbox = wire.Inbox()
        #: Frames that have arrived and not been served.
        self._frames: deque[tuple[int, bytes | bytearray]] = deque()
        # A task may report progress from a thread of its own.
        self._sending = threading.Lock()
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)
        #: The largest frame that certainly fits when the socket is writable: three quarters are free then.
        self._fitting = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 3

    def receive(self) -> tuple[int, bytes | bytearray] | None:
        """Wait for the next frame; None when the pool is gone."""
        if not self._frames and not self._fetch():
            return None
        return self._frames.popleft()

    def receive_kind(self, kind: int) -> bytes | bytearray:
        """Wait for a frame of this kind; what else arrives meanwhile is for later.

        Raises:
            ConnectionError: The pool is gone.
        """
        while True:
            found = next((frame for frame in self._frames if frame[0] == kind), None)
            if found is not None:
                self._frames.remove(found)
                return found[1]
            if not self._fetch():
                raise ConnectionError("the pool is gone")

    def send(self, kind: int, body: Any) -> None:
        """Send one frame."""
        parts = wire.frame(kind, body)
        with self._sending:
            wire.send_blocking(self._sock, parts)

    def try_send(self, kind: int, body: Any) -> bool:
        """Send one frame if that does not block; returns whether it was sent."""
        parts = wire.frame(kind, body)
        # The lock may be held by this very thread, beneath a signal handler or a destructor that logs.
        if not self._sending.acquire(timeout=_TRY):
            return False
        try:
            if sum(map(len, parts)) > self._fitting or not self._writable.poll(0):
                return False
            wire.send_blocking(self._sock, parts)
            return True
        finally:
            self._sending.release()

    def send_descriptors(self, fds: Sequence[int]) -> None:
        """Send descriptors, ahead of the frame that they belong to."""
        with self._sending:
            wire.send_descriptors(self._sock, fds)

    def _fetch(self) -> bool:
        frames = self._inbox.wait(self._sock)
        self._frames.extend(frames)
        return bool(frames)


class Scribe:
    """Puts the large values of one call into segments, and hands them over with its outcome."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._written: list[Written] = []

    def __bool__(self) -> bool:
        return bool(self._written)

    def place(self, stream: Sequence[Any], buffers: Sequence[memoryview] = ()) -> Placed:
        """Put a large value into a segment, by leave of the launcher, which counts what there is.

        Raises:
            StoreFullError: There is no room.
        """
        layout = Layout(stream, buffers)
        with self._lock:
            self._channel.send(wire.WANTED, (layout.size, _shm.are_descriptors_scarce()))
            number, answer = wire.open_body(self._channel.receive_kind(wire.GRANTED))
            if isinstance(answer, str):
                raise StoreFullError(answer)
            uid, fd = fill(answer, layout)
            written = Written(number, answer, layout.size, uid, fd)
            self._written.append(written)
        return Placed(written, layout.spans)

    def hand_over(self) -> list[tuple[int, bytes, bool]]:
        """Send the descriptors of what was written; return what the launcher must know of each."""
        fds = [segment.fd for segment in self._written if segment.fd >= 0]
        if fds:
            self._channel.send_descriptors(fds)
        written = [(segment.number, segment.uid, segment.fd >= 0) for segment in self._written]
        self.discard()
        return written

    def discard(self) -> None:
        """Give up what was written."""
        for segment in self._written:
            if segment.fd >= 0:
                os.close(segment.fd)
        self._written.clear()


def by_number(value: Any) -> Any:
    """Return plain data in which a segment of ours goes by its number."""
    if isinstance(value, Placed):
        assert isinstance(value.segment, Written)
        return value.segment.number, value.spans
    return tuple(map(by_number, value)) if isinstance(value, tuple) else value
