"""Frames on a stream socket: a kind, a length, a body. Knows nothing of what they mean.

The pool's end never blocks: reading keeps partial frames, writing queues what does not fit. The
worker's end blocks. Bodies of control frames are `marshal` (both ends run the same interpreter);
bytes that users made travel inside them unopened.
"""

from __future__ import annotations

import array
import marshal
import os
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEADER = struct.Struct("<BQ")
#: Bodies larger than this are received into a buffer of their own. A larger read would be a mapping each time.
_INLINE = 1 << 16

#: Descriptors in one message; the kernel takes 253.
_MOST_FDS = 200
_ANCILLARY = socket.CMSG_SPACE(_MOST_FDS * 4)

DEFINE, FORGET, CALLS, SETUP, EXIT, GRANTED = 1, 2, 3, 4, 5, 6
READY, OUTCOME, PROGRESS, BROKEN, WANTED, DESCRIPTORS, LOG = 16, 17, 18, 19, 20, 21, 22


def frame(kind: int, body: Any) -> list[bytes]:
    """Return the parts of a frame whose body is plain data (None, numbers, strings, bytes, containers)."""
    data = marshal.dumps(body)
    return [_HEADER.pack(kind, len(data)), data] if len(data) > 4096 else [_HEADER.pack(kind, len(data)) + data]


def pack_body(body: Any) -> bytes:
    """Return plain data as bytes, for `open_body`."""
    return marshal.dumps(body)


def open_body(data: bytes | bytearray) -> Any:
    """Return what `frame` packed."""
    return marshal.loads(data)  # noqa: S302 - from our own process


def frame_header(kind: int, length: int) -> bytes:
    """Return the header of a frame whose body of ``length`` bytes follows by other means."""
    return _HEADER.pack(kind, length)


class Inbox:
    """Turns what arrives on a socket into frames; keeps partial ones.

    With ``takes_descriptors``, those that arrive wait in ``descriptors``, in order, for whoever they are meant for.
    """

    def __init__(self, *, takes_descriptors: bool = False) -> None:
        self.descriptors: deque[int] = deque()
        #: Whether the kernel threw some away, having no more to give to this process.
        self.has_lost_descriptors = False
        self._takes_descriptors = takes_descriptors
        self._buffer = bytearray()
        self._large: memoryview | None = None
        self._filled = 0
        self._kind = 0

    def receive(self, sock: socket.socket, reads: int = 4) -> tuple[list[tuple[int, bytes | bytearray]], bool]:
        """Read up to ``reads`` times; return the complete frames and whether the other end has closed."""
        frames: list[tuple[int, bytes | bytearray]] = []
        for _ in range(reads):
            try:
                count = self._read_large(sock, frames) if self._large is not None else self._read(sock, frames)
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionError:
                return frames, True
            if count == 0:
                return frames, True
            if count < _INLINE and self._large is None:
                # A short read took all there was.
                break
        return frames, False

    def drain(self, sock: socket.socket) -> tuple[list[tuple[int, bytes | bytearray]], bool]:
        """Read like `receive`; the second result says that nothing is left to read."""
        before = sum(map(len, (self._buffer,))) + self._filled
        frames, is_closed = self.receive(sock, reads=64)
        after = sum(map(len, (self._buffer,))) + self._filled
        return frames, is_closed or (not frames and before == after)

    def wait(self, sock: socket.socket) -> list[tuple[int, bytes | bytearray]]:
        """Block until there is at least one frame; return [] when the other end has closed."""
        while True:
            frames, is_closed = self.receive(sock, reads=1)
            if frames or is_closed:
                return frames

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.descriptors:
            os.close(self.descriptors.popleft())

    def _take_descriptors(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        if flags & socket.MSG_CTRUNC:
            self.has_lost_descriptors = True
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self.descriptors.extend(fds)

    def _read(self, sock: socket.socket, frames: list[tuple[int, bytes | bytearray]]) -> int:
        if self._takes_descriptors:
            # A plain read would drop them.
            data, ancillary, flags, _ = sock.recvmsg(_INLINE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            if ancillary or flags & socket.MSG_CTRUNC:
                self._take_descriptors(ancillary, flags)
        else:
            data = sock.recv(_INLINE)
        if not data:
            return 0
        buffer = self._buffer
        buffer += data
        at, end = 0, len(buffer)
        while end - at >= 9:
            kind, length = _HEADER.unpack_from(buffer, at)
            if end - at - 9 < length:
                if length > _INLINE:
                    self._begin_large(kind, length, memoryview(buffer)[at + 9 :])
                    at = end
                break
            frames.append((kind, bytes(memoryview(buffer)[at + 9 : at + 9 + length])))
            at += 9 + length
        if at == end:
            self._buffer = bytearray()
        elif at:
            del buffer[:at]
        return len(data)

    def _begin_large(self, kind: int, length: int, head: memoryview) -> None:
        self._kind = kind
        self._large = memoryview(bytearray(length))
        self._filled = len(head)
        self._large[: self._filled] = head
        head.release()

    def _read_large(self, sock: socket.socket, frames: list[tuple[int, bytes | bytearray]]) -> int:
        assert self._large is not None
        if self._takes_descriptors:
            rest = [self._large[self._filled :]]
            count, ancillary, flags, _ = sock.recvmsg_into(rest, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            if ancillary or flags & socket.MSG_CTRUNC:
                self._take_descriptors(ancillary, flags)
        else:
            count = sock.recv_into(self._large[self._filled :])
        self._filled += count
        if count and self._filled == len(self._large):
            body = self._large.obj
            self._large.release()
            self._large = None
            assert isinstance(body, bytearray)
            frames.append((self._kind, body))
        return count


class Outbox:
    """What is still to be written to a non-blocking socket, in order."""

    def __init__(self) -> None:
        self._parts: deque[memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._parts)

    def send(self, sock: socket.socket, parts: list[bytes]) -> bool:
        """Write ``parts`` behind what waits; return whether everything is out."""
        if not self._parts and len(parts) == 1:
            # The usual case: one small frame, an idle channel.
            try:
                sent = sock.send(parts[0])
            except BlockingIOError:
                sent = 0
            except ConnectionError:
                return True
            if sent == len(parts[0]):
                return True
            self._parts.append(memoryview(parts[0])[sent:])
            return False
        self._parts.extend(memoryview(part) for part in parts)
        return self.flush(sock)

    def flush(self, sock: socket.socket) -> bool:
        """Write as much as fits; return whether everything is out. A closed other end swallows the rest."""
        while self._parts:
            try:
                sent = sock.send(self._parts[0])
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionError:
                self._parts.clear()
                return True
            if sent == len(self._parts[0]):
                self._parts.popleft()
            else:
                self._parts[0] = self._parts[0][sent:]
        return True


def send_descriptors(sock: socket.socket, fds: Sequence[int]) -> None:
    """Send descriptors over a blocking socket, ahead of the frame that they belong to."""
    for start in range(0, len(fds), _MOST_FDS):
        group = fds[start : start + _MOST_FDS]
        socket.send_fds(sock, frame(DESCRIPTORS, len(group)), group)


def send_blocking(sock: socket.socket, parts: list[bytes]) -> None:
    """Write all ``parts`` to a blocking socket."""
    for part in parts:
        sock.sendall(part)
