"""What tasks print: one file per worker and run, and beside it an index that says which bytes are whose.

The worker writes both, so they are true also when it is killed, or the launcher with it; anyone may read them
meanwhile. A task's output is whatever it and its children write to descriptors 1 and 2. Of an attempt that prints
more than `ATTEMPT_LIMIT` the middle is given back to the disk; offsets stay what they were.

An index begins with what runs now, in place; lines of JSON follow: ``[visit, state]`` when a visit of a state
begins, ``[visit, branch, attempt, start, end, started]`` for each attempt that ended and had printed something.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from canobatch import _clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Bytes that are kept of one attempt: of its beginning, and of its end.
KEPT_HEAD, KEPT_TAIL = 2 << 20, 6 << 20
ATTEMPT_LIMIT = KEPT_HEAD + KEPT_TAIL
#: Bytes that are kept of one run, of its latest attempts.
RUN_LIMIT = 256 << 20

#: Number, visit, attempt, branch (-1: none), start (-1: nothing runs), when it began, the number again.
_NOW = struct.Struct("<QIIqqdQ")
_HEAD = 64
_BLOCK = 4096
_READ = 1 << 16
_FOLLOW_EVERY = 0.2


class Span(NamedTuple):
    """What one attempt printed.

    Attributes:
        state: The state's label.
        visit: Which visit of a state along the run's path, from 1.
        branch: Index of the branch, None for a single task.
        attempt: From 1.
        path: The file.
        start: Where it begins, in bytes.
        end: Where it ends; None: it runs, or was killed, and the file ends with it.
        started: When the attempt began, in seconds since the epoch.
    """

    state: str
    visit: int
    branch: int | None
    attempt: int
    path: Path
    start: int
    end: int | None
    started: float

    def read(self) -> bytes:
        """Return all of it that was kept, with a note where some was not."""
        return b"".join(self.pieces())

    def pieces(self, start: int | None = None) -> Iterator[bytes]:
        """Return it in pieces, from an offset in the file on."""
        at = self.start if start is None else start
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            end = os.fstat(fd).st_size if self.end is None else self.end
            while at < end:
                data_at = _next_data(fd, at, end)
                if data_at > at:
                    yield b"\n[%d bytes of output were left out]\n" % (data_at - at)
                    at = data_at
                    continue
                piece = os.pread(fd, min(_READ, _next_hole(fd, at, end) - at), at)
                if not piece:
                    return
                yield piece
                at += len(piece)
        finally:
            os.close(fd)


def spans(directory: Path | str) -> list[Span]:
    """Return what was printed in a run so far, in the order of visit, branch and attempt; also while it runs."""
    found: list[Span] = []
    for path in sorted(Path(directory).glob("*.idx")):
        found += Index(path).read()
    return sorted(found, key=_place)


def _place(span: Span) -> tuple[Any, ...]:
    return span.visit, -1 if span.branch is None else span.branch, span.started, span.attempt


def follow(
    directory: Path | str, is_over: Callable[[], bool], wanted: Callable[[Span], bool] = lambda _: True
) -> Iterator[tuple[Span, bytes]]:
    """Yield what is printed as it comes, each piece with its attempt, until ``is_over()`` and all was read."""
    indexes: dict[Path, Index] = {}
    seen: dict[tuple[Path, int], int] = {}
    while True:
        is_last = is_over()
        for path in sorted(Path(directory).glob("*.idx")):
            index = indexes.setdefault(path, Index(path))
            for span in sorted(filter(wanted, index.read()), key=_place):
                key = span.path, span.start
                at = seen.get(key, span.start)
                size = _size(span.path) if span.end is None else span.end
                for piece in span._replace(end=size).pieces(at):
                    yield span, piece
                if span.end is None:
                    seen[key] = max(at, size)
                else:
                    # It is not read again from the index.
                    seen.pop(key, None)
        if is_last:
            return
        _clock.sleep(_FOLLOW_EVERY)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Index:
    """Reads one index; what ended is returned once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._output = path.with_suffix(".out")
        self._at = _HEAD
        self._states: dict[int, str] = {}

    def read(self) -> list[Span]:
        """Return the attempts that ended since the last time, and the one that runs or was killed."""
        try:
            with self._path.open("rb", buffering=0) as file:
                # First what runs: if it ends meanwhile, it is read twice at worst, and the second time whole.
                now = self._now(file.fileno())
                file.seek(self._at)
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return []
        found = []
        for line in lines[:-1]:
            self._at += len(line) + 1
            facts = json.loads(line)
            if len(facts) == 2:
                self._states[facts[0]] = facts[1]
            else:
                visit, branch, attempt, start, end, started = facts
                found.append(self._span(visit, branch, attempt, start, end, started))
        if now is not None and now[0] in self._states and not any(span.start == now[3] for span in found):
            found.append(self._span(*now))
        return found

    def _span(self, visit: int, branch: int | None, attempt: int, start: int, end: int | None, started: float) -> Span:
        return Span(self._states.get(visit, "?"), visit, branch, attempt, self._output, start, end, started)

    def _now(self, fd: int) -> tuple[int, int | None, int, int, None, float] | None:
        for _ in range(100):
            data = os.pread(fd, _NOW.size, 0)
            if len(data) < _NOW.size:
                return None
            number, visit, attempt, branch, start, started, again = _NOW.unpack(data)
            if number == again:
                return None if start < 0 else (visit, None if branch < 0 else branch, attempt, start, None, started)
        return None


class OutputFile:
    """A worker's file and its index, open for writing."""

    def __init__(self, directory: str, name: str) -> None:
        self.directory = directory
        self.name = name
        self.fd = _open(f"{directory}/{name}.out", os.O_WRONLY)
        try:
            self._index = _open(f"{directory}/{name}.idx", os.O_RDWR)
        except OSError:
            os.close(self.fd)
            raise
        if os.fstat(self._index).st_size < _HEAD:
            os.write(self._index, _NOW.pack(0, 0, 0, 0, -1, 0.0, 0).ljust(_HEAD - 1, b"\0") + b"\n")
        self._map = mmap.mmap(self._index, _HEAD)
        self._number: int = _NOW.unpack_from(self._map)[0]
        self._visit = 0
        self._now: tuple[int | None, int, int, float] | None = None

    @property
    def is_gone(self) -> bool:
        """Whether someone removed it."""
        return os.fstat(self.fd).st_nlink == 0

    def visit(self, visit: int, state: str) -> None:
        """What follows belongs to this visit."""
        if visit != self._visit:
            self._visit = visit
            self._note([visit, state])

    def begin(self, branch: int | None, attempt: int, started: float) -> None:
        """What follows belongs to this attempt."""
        start = os.fstat(self.fd).st_size
        self._now = branch, attempt, start, started
        self._publish(attempt, -1 if branch is None else branch, start, started)

    def end(self) -> tuple[str, int, int] | None:
        """The attempt is over; return its file's name and the bytes it printed, None if there are none."""
        if self._now is None:
            return None
        branch, attempt, start, started = self._now
        self._now = None
        end = os.fstat(self.fd).st_size
        if end > start:
            end = trim(self.fd, start, end)
            self._note([self._visit, branch, attempt, start, end, started])
        self._publish(0, 0, -1, 0.0)
        return (self.name, start, end) if end > start else None

    def close(self) -> None:
        """Close both."""
        self._map.close()
        os.close(self._index)
        os.close(self.fd)

    def _publish(self, attempt: int, branch: int, start: int, started: float) -> None:
        self._number += 1
        _NOW.pack_into(self._map, 0, self._number, self._visit, attempt, branch, start, started, self._number)

    def _note(self, facts: list[Any]) -> None:
        os.write(self._index, json.dumps(facts, separators=(",", ":")).encode() + b"\n")


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


# -- bounds


def trim(fd: int, start: int, end: int) -> int:
    """Give up the middle of what the last attempt in a file printed, if it is too much; return where it ends then."""
    if end - start <= ATTEMPT_LIMIT + _BLOCK:
        return end
    if not punch(fd, start + KEPT_HEAD, end - KEPT_TAIL):
        # This file system keeps no holes: what was printed last goes.
        os.ftruncate(fd, start + KEPT_HEAD)
        return start + KEPT_HEAD
    return end


def trim_run(directory: Path | str, limit: int = RUN_LIMIT) -> None:
    """Give up what is too much of what runs now, then the oldest attempts of a run that printed too much."""
    used = 0
    indexes = sorted(Path(directory).glob("*.idx"))
    for path in indexes:
        output = path.with_suffix(".out")
        with suppress(FileNotFoundError):
            size = output.stat().st_blocks * 512
            if size > ATTEMPT_LIMIT:
                _trim_open(path)
                size = output.stat().st_blocks * 512
            used += size
    if used <= limit:
        return
    for span in sorted(spans(directory), key=lambda span: span.started):
        if span.end is None:
            continue
        with suppress(FileNotFoundError):
            fd = os.open(span.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                before = os.fstat(fd).st_blocks
                punch(fd, span.start, span.end)
                used -= (before - os.fstat(fd).st_blocks) * 512
            finally:
                os.close(fd)
        if used <= limit * 3 // 4:
            return


def _trim_open(path: Path) -> None:
    for span in Index(path).read():
        if span.end is None:
            fd = os.open(span.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                trim(fd, span.start, os.fstat(fd).st_size)
            finally:
                os.close(fd)


def remove_empty(directory: Path | str) -> None:
    """Remove the files of workers that printed nothing."""
    for path in Path(directory).glob("*.out"):
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
                path.with_suffix(".idx").unlink()


def punch(fd: int, start: int, end: int) -> bool:
    """Give whole blocks between two offsets back to the disk; returns False where that cannot be done."""
    start, end = -(-start // _BLOCK) * _BLOCK, end // _BLOCK * _BLOCK
    if start >= end:
        return True
    import ctypes  # noqa: PLC0415 - slow to import, seldom needed

    library = ctypes.CDLL(None, use_errno=True)
    library.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    keep_size_and_punch = 3
    return bool(library.fallocate(fd, keep_size_and_punch, start, end - start) == 0)


def _next_data(fd: int, at: int, end: int) -> int:
    try:
        return min(os.lseek(fd, at, os.SEEK_DATA), end)
    except OSError as error:
        # ENXIO: a hole up to the end.
        return end if error.errno == errno.ENXIO else at


def _next_hole(fd: int, at: int, end: int) -> int:
    try:
        return min(os.lseek(fd, at, os.SEEK_HOLE), end)
    except OSError:
        return end
