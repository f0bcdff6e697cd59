"""Standard output is for data: what code of the user's prints there goes to standard error."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    data = os.fdopen(own, "w", encoding=stdout.encoding, errors=stdout.errors)
    try:
        yield data
        data.flush()
    finally:
        with suppress(OSError, ValueError):
            stdout.flush()
        os.dup2(own, 1)
        with suppress(OSError):
            # What could not be written for want of a reader was told above.
            data.close()
