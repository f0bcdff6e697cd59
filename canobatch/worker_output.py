"""A worker's standard output and error, caught where C code and subprocesses write to as well."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from contextlib import suppress
from typing import Any

from canobatch.output import OutputFile

_log = logging.getLogger(__name__)


class Capture:
    """Turns descriptors 1 and 2 to the file of a run, and back."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._file: OutputFile | None = None
        #: Where 1 and 2 led before.
        self._before: tuple[int, int] | None = None
        self._stdio = _Stdio()

    def turn_to(self, directory: str, visit: int, state: str) -> None:
        """What calls print from now on goes to a file in ``directory``."""
        try:
            if self._file is None or self._file.directory != directory or self._file.is_gone:
                self.turn_back()
                self._file = OutputFile(directory, self._name)
                self._before = os.dup(1), os.dup(2)
            self._file.visit(visit, state)
        except OSError as error:
            self._give_up(error)

    def turn_back(self) -> None:
        """What calls print goes where it went before."""
        if self._before is not None:
            for number, fd in enumerate(self._before, 1):
                os.dup2(fd, number)
                os.close(fd)
            self._before = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def begin(self, branch: int | None, attempt: int, started: float) -> None:
        """What follows is printed by this attempt."""
        if self._file is None:
            return
        # Each time: a task may have closed or redirected them.
        os.dup2(self._file.fd, 1)
        os.dup2(self._file.fd, 2)
        self._stdio.by_line()
        self._file.begin(branch, attempt, started)

    def end(self) -> tuple[str, int, int] | None:
        """The attempt is over, and Python's buffers are empty; return the file's name and the bytes it printed."""
        if self._file is None:
            return None
        self._stdio.flush()
        try:
            return self._file.end()
        except OSError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: OSError) -> None:
        """A full disk, say: what tasks do counts all the same."""
        self.turn_back()
        _log.warning("what tasks print in worker %s is not kept: %s", self._name, error)


class _Stdio:
    """The buffers of Python and of C: written out by line, so that a kill loses no more than a line."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._stream: Any = None
        with suppress(ValueError):
            self._stream = ctypes.c_void_p.in_dll(self._library, "stdout")
        self._is_by_line = False

    def by_line(self) -> None:
        """From now on a line is written when it is complete."""
        if self._is_by_line:
            return
        self._is_by_line = True
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        if self._stream is not None:
            line_buffered = 1  # _IOLBF
            self._library.setvbuf(self._stream, None, line_buffered, ctypes.c_size_t(0))

    def flush(self) -> None:
        """Write what C code has printed. Not all streams: another thread may hold one of them for long."""
        if self._stream is not None:
            self._library.fflush(self._stream)
