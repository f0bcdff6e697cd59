"""Inputs and outputs of ``map``: lines in, lines out, in bounded memory."""

from __future__ import annotations

import json
import select
import sys
from collections import deque
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from canobatch.cli.text import one_line
from canobatch.definition import LATER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from canobatch.observe import Event

_CHUNK = 1 << 16
#: Characters of an input that are kept for messages.
_KEPT = 100


class BadLineError(ValueError):
    """A line of the input is not JSON."""


class Items:
    """The inputs, read as they are wanted; each line is one, without its end.

    It remembers what the branches that have not ended were given, so that failures can be told by it.

    Args:
        stream: Where lines come from, in bytes.
        is_json: Whether each line is JSON.
    """

    def __init__(self, stream: IO[bytes], *, is_json: bool) -> None:
        self._stream = stream
        self._is_json = is_json
        self._open: dict[int, str] = {}
        #: A mark for each branch that an earlier life of the run accepted: it will not end again.
        self._done = bytearray()
        self.count = 0

    def __iter__(self) -> Iterator[Any]:
        number = 0
        for line in self._lines():
            if line is LATER:
                yield LATER
                continue
            number += 1
            text = line.decode("utf-8", "surrogateescape")
            if self._is_json:
                if not text.strip():
                    continue
                try:
                    item = json.loads(text)
                except ValueError as error:
                    raise BadLineError(f"line {number} is not JSON: {error}") from error
            else:
                item = text
            if not (self.count < len(self._done) and self._done[self.count]):
                self._open[self.count] = text[:_KEPT]
            self.count += 1
            yield item

    def _lines(self) -> Iterator[Any]:
        """Yield lines, and LATER while a pipe has none: results must not wait for whoever writes it."""
        rest = b""
        while True:
            if not self.await_more(0.0):
                yield LATER
                continue
            chunk = self._read()
            if not chunk:
                if rest:
                    yield rest
                return
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                yield line.removesuffix(b"\r")

    def _read(self) -> bytes:
        read = getattr(self._stream, "read1", self._stream.read)
        chunk: bytes = read(_CHUNK)
        return chunk

    def await_more(self, timeout: float | None = None) -> bool:
        """Wait until there is something to read, be it the end; returns whether there is."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):
            return True
        # A file is always ready.
        return bool(select.select([descriptor], [], [], timeout)[0])

    def done_before(self, index: int) -> None:
        """Take note of a branch that is not run again; told before its input is read."""
        self._done.extend(bytes(max(0, index + 1 - len(self._done))))
        self._done[index] = 1

    def ended(self, index: int) -> str:
        """Return the beginning of what a branch was given, and forget it."""
        return self._open.pop(index, "")


class Failures:
    """An observer that keeps what is to be told of failed branches, with what they were given, until it is told."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._untold: deque[str] = deque()

    def on_event(self, event: Event) -> None:
        """Take one event."""
        if event.kind == "branch_kept" and event.branch is not None:
            self._items.done_before(event.branch)
        if event.kind not in ("branch_finished", "branch_killed") or event.branch is None:
            return
        given = self._items.ended(event.branch)
        status = str(getattr(event.detail, "status", event.detail))
        if status in {"failed", "timed_out", "lost"}:
            error = getattr(event.detail, "error", None)
            why = "" if error is None else f": {one_line(_words(error), 300)}"
            self._untold.append(f"input {event.branch + 1} ({one_line(given)}) {status.replace('_', ' ')}{why}")

    def tell(self, note: Callable[[str], None]) -> None:
        """Tell what has not been told."""
        while self._untold:
            note(self._untold.popleft())


def _words(error: BaseException) -> str:
    cause = error.__cause__
    return str(error) if cause is None else f"{type(cause).__name__}: {cause}"


class Output:
    """Writes results in the order of the inputs, each as soon as it is final: a fold.

    Text is written as it is, anything else as JSON; without ``is_json`` a None is not written at all.
    """

    def __init__(self, stream: IO[str], *, is_json: bool) -> None:
        self._stream = stream
        self._is_json = is_json
        #: Why nothing can be written any more.
        self.error: OSError | None = None
        self.is_terminal = stream.isatty()

    def write(self, count: int, value: Any) -> int:
        """Write one result; returns how many there were."""
        if value is None and not self._is_json:
            return count + 1
        text = value if isinstance(value, str) and not self._is_json else _dump(value)
        try:
            self._stream.write(f"{text}\n")
        except OSError as error:
            self.error = error
            # A run whose results are not written has not come to its end.
            raise
        return count + 1

    def flush(self) -> None:
        """Let readers see what there is."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self.error = error


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """Return something JSON can say of a value that it does not know."""
    for name in ("tolist", "_asdict", "isoformat"):
        method = getattr(value, name, None)
        if callable(method):
            return method()
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return list(value) if isinstance(value, set | frozenset) else str(value)


def open_input(source: str) -> IO[bytes]:
    """Return the bytes of a file, or of standard input for ``-``."""
    if source == "-":
        with suppress(AttributeError):
            return sys.stdin.buffer
    return open(source, "rb")  # noqa: PTH123 - closed by its user
