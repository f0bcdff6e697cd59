"""Keeps what a run prints within bounds, while it runs."""

from __future__ import annotations

import logging
import threading

from canobatch import output

_log = logging.getLogger(__name__)

#: Seconds between looks. A task can print more than is allowed within one; that is given back at the next.
_EVERY = 0.5


class Trimmer:
    """A thread of its own: the run's may be busy making items, and a task's with printing."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="canobatch-trimmer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look a last time; remove the files of workers that printed nothing."""
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_over.wait(_EVERY):
            self._trim()
        self._trim()
        output.remove_empty(self._directory)

    def _trim(self) -> None:
        try:
            output.trim_run(self._directory)
        except OSError as error:
            _log.warning("output in %s cannot be kept within its bounds: %s", self._directory, error)
