"""The shared-memory manager: blocks of bytes that are written once and read in place by every process of a run.

A segment is a memfd: it has no name to leak, and is gone with the last process that holds it. The launcher
holds all that belong to its stores; others open them by the launcher's `/proc` entry, map them, and hold no
descriptor. Over the quota, or when descriptors are scarce, bytes lie in one nameless file on disk instead.
Where there is no memfd, or `CANOBATCH_SEGMENTS=shm` is set, they are named blocks, owned by a server process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from canobatch import _procs, _shm
from canobatch.effects import LARGE, Placed, stream_of
from canobatch.errors import StoreError, StoreFullError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from canobatch.effects import Data, Flat

#: Which kind of segments this process makes: "memfd" or "shm".
KIND_VARIABLE = "CANOBATCH_SEGMENTS"

#: Every segment begins with this and its identity, so that a reader who is late never reads a stranger's bytes.
#: The spans of its value follow, so that it can be told from its bytes alone.
_HEADER = struct.Struct("<8s16sQ")
_SPAN = struct.Struct("<QQ")
_COUNT = struct.Struct("<Q")
_MAGIC = b"canobat1"
_ALIGN = 64
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG, errno.EMFILE, errno.ENFILE})

#: How a writer is told where its bytes go: kind, path, offset.
Ticket = tuple[str, str, int]
#: How a reader finds a segment: path, offset, size in bytes, identity.
Address = tuple[str, int, int, bytes]


# -- how much there may be


class Quota:
    """Counts bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        # A charge may be given back in the midst of another's taking, by the garbage collector.
        self._lock = threading.RLock()

    def take(self, size: int) -> Charge | None:
        """Return the right to ``size`` bytes, given back when it is dropped; None when that is too much."""
        with self._lock:
            if self.used + size > self.limit:
                return None
            self.used += size
        return Charge(self, size)

    def give_back(self, size: int) -> None:
        """Count ``size`` bytes less."""
        with self._lock:
            self.used -= size


class Charge:
    """The right to some bytes of a quota; held by the segment and by its mappings here."""

    __slots__ = ("__weakref__", "_quota", "_size")

    def __init__(self, quota: Quota, size: int) -> None:
        self._quota = quota
        self._size = size

    def __del__(self) -> None:
        self._quota.give_back(self._size)


# -- segments


class Segment:
    """A segment that this process owns; its bytes are given up when it is dropped."""

    __slots__ = ("__weakref__", "_charge", "_home", "_size", "_uid", "_view")

    def __init__(self, home: _shm.Home, size: int, uid: bytes, charge: Charge | None) -> None:
        self._home: _shm.Home | None = home
        self._size = size
        self._uid = uid
        self._charge = charge
        self._view: weakref.ref[memoryview] | None = None
        _owned.add(self)

    @property
    def address(self) -> Address:
        """How another process finds it."""
        home = self._home
        if home is None:
            raise StoreError("a large value belongs to the process that made it; after os.fork() it cannot be read")
        return home.path, home.offset, self._size, self._uid

    def view(self) -> memoryview:
        """Return its bytes, read-only; the mapping outlives the segment, and is the same while anybody has it."""
        view = None if self._view is None else self._view()
        if view is None:
            view = _map(self.address, self._charge)
            self._view = weakref.ref(view)
        return view

    def abandon(self) -> None:
        """In a forked child: leave it to the parent."""
        home, self._home = self._home, None
        if isinstance(home, _shm.File):
            home.close()

    def __del__(self) -> None:
        home, self._home = self._home, None
        if home is not None:
            with suppress(OSError):
                home.close()


class Attached:
    """A segment of another process, mapped when first read and for as long as this is held."""

    __slots__ = ("_address", "_view")

    def __init__(self, address: Address) -> None:
        self._address = address
        self._view: memoryview | None = None

    @property
    def address(self) -> Address:
        """How it is found."""
        return self._address

    def view(self) -> memoryview:
        """Return its bytes, read-only."""
        if self._view is None:
            self._view = _map(self._address)
        return self._view


class Written:
    """A segment that this process wrote by another's leave, and that becomes the other's."""

    __slots__ = ("__weakref__", "_path", "_ticket", "fd", "number", "size", "uid")

    def __init__(self, number: int, ticket: Ticket, size: int, uid: bytes, fd: int) -> None:
        #: By this the other knows what it was for.
        self.number = number
        self.size = size
        self.uid = uid
        #: To be sent, and closed by whoever sends it; -1 where the other has the bytes already.
        self.fd = fd
        self._ticket = ticket
        self._path = f"/proc/self/fd/{fd}" if fd >= 0 else ticket[1]

    def view(self) -> memoryview:
        """Return its bytes, read-only."""
        return _map((self._path, self._ticket[2], self.size, self.uid))


def crossing(data: Data | None) -> Any:
    """Return packed data as plain data for another process: bytes, or where they lie."""
    if isinstance(data, Placed):
        segment: Any = data.segment
        return segment.address, data.spans
    return data


def arrived(data: Any) -> Data:
    """Return the packed data that `crossing` made plain."""
    if isinstance(data, tuple):
        where, spans = data
        return Placed(Attached(where), spans)
    packed: Data = data
    return packed


# -- as one piece


class _Held:
    """Bytes that this process holds anyway."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def view(self) -> memoryview:
        return self._data


def flat(data: Data) -> Flat:
    """Return packed data as one piece of bytes, without a copy."""
    return data.segment.view() if isinstance(data, Placed) else stream_of(data)


def unflat(data: Flat) -> Data:
    """Return the packed data that `flat` made one piece."""
    if data[: len(_MAGIC)] != _MAGIC:
        return data
    view = memoryview(data).toreadonly()
    (count,) = _COUNT.unpack_from(view, _HEADER.size)
    start = _HEADER.size + _COUNT.size
    spans = tuple(_SPAN.unpack_from(view, start + _SPAN.size * number) for number in range(count))
    return Placed(_Held(view), spans)


# -- the manager


class Grant(NamedTuple):
    """Leave to write one segment: what its writer is told, and what is kept for it meanwhile."""

    ticket: Ticket
    home: _shm.Home
    size: int
    charge: Charge | None

    def cancel(self) -> None:
        """Give up what was reserved: nothing was written, or its writer is dead."""
        self.home.close()


class Segments:
    """Makes segments, up to ``max_bytes`` in memory and beyond that on disk.

    Args:
        max_bytes: None: half of the memory that was available when it was first asked for.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._quota: Quota | None = None
        self._shared_file = _shm.SharedFile()
        _managers.add(self)

    @property
    def used(self) -> int:
        """Bytes in memory."""
        return 0 if self._quota is None else self._quota.used

    def place(self, stream: Sequence[Any], buffers: Sequence[memoryview] = ()) -> Placed:
        """Put a value's pickle and buffers into a segment of this process.

        Raises:
            StoreFullError: There is room neither in memory nor on disk.
        """
        layout = Layout(stream, buffers)
        grant = self.grant(layout.size)
        try:
            uid, fd = fill(grant.ticket, layout)
        except BaseException:
            grant.cancel()
            raise
        return Placed(self.adopt(grant, uid, fd), layout.spans)

    def house(self, data: Data) -> Data:
        """Give a value that `unflat` returned a segment of its own, if it needs one."""
        if not isinstance(data, Placed):
            return data
        stream, *buffers = data.parts()
        return self.place([stream], buffers)

    def place_if_large(self, data: bytes) -> Data:
        """Put one pickle into a segment if it is worth it."""
        return data if len(data) < LARGE else self.place([data])

    def grant(self, size: int, *, spare_descriptors: bool = False) -> Grant:
        """Reserve ``size`` bytes for a writer, here or in another process.

        Raises:
            StoreFullError: There is room neither in memory nor on disk.
        """
        quota = self._settle_quota()
        charge = quota.take(size)
        try:
            block = _allocate_block(size) if charge is not None and kind() == "shm" else None
            if block is not None:
                return Grant(("shm", block.path, 0), block, size, charge)
            is_scarce = spare_descriptors or _shm.are_descriptors_scarce()
            if charge is not None and not is_scarce and kind() == "memfd":
                return Grant(("memfd", "", 0), _shm.Awaited(), size, charge)
            home = self._shared_file.allocate(size) if is_scarce else _shm.spill(size)
        except OSError as error:
            limit = f"; {quota.used / 1e6:.0f} of {quota.limit / 1e6:.0f} MB are used" if charge is None else ""
            raise _full(size, error, limit) from error
        return Grant(("file", home.path, home.offset), home, size, None)

    def adopt(self, grant: Grant, uid: bytes, fd: int) -> Segment:
        """Become the owner of what was written by leave of ``grant``; ``fd`` is taken over."""
        home = grant.home
        if isinstance(home, _shm.Awaited):
            home.close()
            home = _shm.File(fd)
        return Segment(home, grant.size, uid, grant.charge)

    def forget(self) -> None:
        """In a forked child: leave everything to the parent."""
        self._lock = threading.Lock()
        self._shared_file.forget()
        self._shared_file = _shm.SharedFile()

    def _settle_quota(self) -> Quota:
        with self._lock:
            if self._quota is None:
                _shm.allow_many_descriptors()
                limit = _procs.available_memory() // 2 if self._max_bytes is None else self._max_bytes
                self._quota = Quota(limit)
            return self._quota

    def __reduce__(self) -> tuple[Any, ...]:
        return default, ()


def _allocate_block(size: int) -> Any:
    """Return a named block; None where its file system is full, for what is on disk has more room."""
    try:
        return _shm.block_module().allocate(size)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        return None


def kind() -> str:
    """Return which kind of segments this process makes."""
    chosen = os.environ.get(KIND_VARIABLE) or ("memfd" if hasattr(os, "memfd_create") else "shm")
    if chosen not in {"memfd", "shm"}:
        raise StoreError(f'{KIND_VARIABLE} must be "memfd" or "shm", got {chosen!r}')
    return chosen


def default() -> Segments:
    """Return the manager of everything in this process that has no quota of its own."""
    return _default


# -- writing


class Layout:
    """Where the pieces of a value go in a segment."""

    def __init__(self, stream: Sequence[Any], buffers: Sequence[memoryview] = ()) -> None:
        self.pieces: list[Any] = []
        spans: list[tuple[int, int]] = []
        end = self._header_size = _HEADER.size + _COUNT.size + _SPAN.size * (1 + len(buffers))
        for group in (stream, *([buffer] for buffer in buffers)):
            start = -(-end // _ALIGN) * _ALIGN
            if start > end:
                self.pieces.append(bytes(start - end))
            end = start
            for piece in group:
                self.pieces.append(piece)
                end += len(piece)
            spans.append((start, end - start))
        self.spans = tuple(spans)
        #: Bytes, header included.
        self.size = end

    def with_header(self, uid: bytes) -> Iterator[memoryview]:
        """Return everything that is to be written, in order."""
        spans = b"".join(_SPAN.pack(*span) for span in self.spans)
        yield memoryview(_HEADER.pack(_MAGIC, uid, self.size) + _COUNT.pack(len(self.spans)) + spans)
        for piece in self.pieces:
            yield memoryview(piece).cast("B")


def fill(ticket: Ticket, layout: Layout) -> tuple[bytes, int]:
    """Write a segment; return its identity and, for a memfd, its descriptor, else -1.

    Raises:
        StoreFullError: There is no room after all.
    """
    kind, path, offset = ticket
    uid = os.urandom(16)
    fd = -1
    try:
        if kind == "memfd":
            fd = os.memfd_create("canobatch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            fd = _shm.open_path(path, os.O_RDWR)
        _write(fd, offset, layout.with_header(uid))
        if kind == "memfd":
            _seal(fd)
            done, fd = fd, -1
            return uid, done
    except OSError as error:
        raise _full(layout.size, error) from error
    finally:
        if fd >= 0:
            os.close(fd)
    return uid, -1


def _seal(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS | _WRITE_SEAL)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # The kernel looks at a page of it just now. Its size is what a reader's life depends on; and nobody has it
        # open for writing but its owner.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS)


_SIZE_SEALS = 1 | 2 | 4  # SEAL, SHRINK, GROW
_WRITE_SEAL = 8


def _write(fd: int, offset: int, pieces: Iterator[memoryview]) -> None:
    for piece in pieces:
        rest = piece
        while rest.nbytes:
            # A single write stops short of 2 GiB.
            count = os.pwrite(fd, rest, offset)
            offset += count
            rest = rest[count:]


def _full(size: int, error: OSError, limit: str = "") -> StoreError:
    if error.errno not in _NO_ROOM:
        return StoreError(f"a value of {size / 1e6:.1f} MB cannot be put into shared memory: {error}")
    return StoreFullError(
        f"there is no room for a value of {size / 1e6:.1f} MB: {error.strerror}{limit}; remove values, give the store "
        "more with max_bytes, or point TMPDIR at a disk with room"
    )


# -- reading


def _map(address: Address, charge: Charge | None = None) -> memoryview:
    path, offset, size, uid = address
    try:
        fd = _shm.open_path(path, os.O_RDONLY)
    except OSError as error:
        raise StoreError(
            f"a large value cannot be reached at {path}: {error.strerror}; was its owner ended?"
        ) from error
    try:
        # A mapping beyond the end would be a SIGBUS later.
        is_whole = os.fstat(fd).st_size >= offset + size
        view = _shm.map_file(fd, offset, size, charge) if is_whole else memoryview(b"")
    except OSError as error:
        raise StoreError(f"a value of {size / 1e6:.1f} MB cannot be mapped: {error.strerror}") from error
    finally:
        os.close(fd)
    if view[: _HEADER.size] != _HEADER.pack(_MAGIC, uid, size):
        raise StoreError("a large value has been given up by its owner")
    return view


_owned: weakref.WeakSet[Segment] = weakref.WeakSet()
_managers: weakref.WeakSet[Segments] = weakref.WeakSet()
_default = Segments()


def _forget_in_child() -> None:
    # A child that lives on must not keep its parent's memory.
    for segment in list(_owned):
        segment.abandon()
    for manager in list(_managers):
        manager.forget()


os.register_at_fork(after_in_child=_forget_in_child)
