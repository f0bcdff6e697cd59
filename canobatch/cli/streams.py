"""Standard output is for data: what code of the user's prints there goes to standard error."""

from __future__ import annotations

import io
import os
import stat
import sys
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


#: Descriptors that data is written to.
_data: set[int] = set()


def leave_terminal() -> None:
    """Write to nowhere what would be written to a terminal: it is gone, and each line would be an error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in {1, 2} | _data:
        with suppress(OSError):
            # A terminal that is gone does not say any more that it was one.
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


class _Told(io.TextIOWrapper):
    """Standard error: nothing depends on who reads it, and a log on a full disk must not end a run."""

    def write(self, text: str) -> int:
        """Write as far as there is room."""
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Let readers see what there is."""
        with suppress(OSError):
            super().flush()


def prepare_streams() -> None:
    """Let what was closed before we began be a stream that goes nowhere, and let standard error never fail."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        from canobatch import _procs  # noqa: PLC0415 - slow to import, seldom needed

        _procs.open_standard_streams()
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115 - for good
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)
    stderr = sys.stderr
    sys.stderr = _Told(stderr.buffer, stderr.encoding, stderr.errors, line_buffering=True)


@contextmanager
def data_stream() -> Iterator[IO[str]]:
    """Give the caller the standard output for itself.

    Until the end whatever else writes there (a module that prints when it is imported, a task in this process, a
    worker) writes to standard error. Where standard output has been replaced it is returned as it is.
    """
    stdout = sys.stdout
    descriptor = None
    with suppress(OSError, ValueError, AttributeError):
        descriptor = stdout.fileno()
    if descriptor != 1:
        yield stdout
        return
    stdout.flush()
    own = os.dup(1)
    try:
        os.dup2(2, 1)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    if isinstance(sys.stderr, _Told):
        sys.stdout = sys.stderr
    data = os.fdopen(own, "w", encoding=stdout.encoding, errors=stdout.errors)
    _data.add(own)
    try:
        yield data
        data.flush()
    finally:
        _data.discard(own)
        sys.stdout = stdout
        with suppress(OSError, ValueError):
            stdout.flush()
        os.dup2(own, 1)
        with suppress(OSError):
            # What could not be written for want of a reader was told above.
            data.close()
