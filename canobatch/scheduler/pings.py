"""Pings: a run's start, success and failure, told to a service that raises the alarm when they stay out."""

from __future__ import annotations

import http.client
import logging
import queue
import threading
import urllib.parse
import urllib.request
from typing import Literal

_log = logging.getLogger(__name__)

#: Seconds that one ping may take.
_PATIENCE = 10.0
#: How many pings may wait; more are dropped.
_LONGEST_QUEUE = 1000

_SUFFIXES = {"start": "/start", "success": "", "failure": "/fail"}


class Pinger:
    """Sends pings one after another, in a thread of its own; none of them holds up a run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._urls: queue.Queue[str | None] = queue.Queue(_LONGEST_QUEUE)
        self._thread: threading.Thread | None = None

    def ping(self, url: str, what: Literal["start", "success", "failure"]) -> None:
        """Send ``url`` for a success, with ``/start`` or ``/fail`` after its path otherwise; returns at once."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, name="canobatch-pings", daemon=True)
                self._thread.start()
        try:
            self._urls.put_nowait(ping_address(url, what))
        except queue.Full:
            _log.warning("%d pings are waiting; the %s ping of %s is dropped", _LONGEST_QUEUE, what, url)

    def close(self, timeout: float) -> None:
        """Send what waits, for at most ``timeout`` seconds."""
        thread = self._thread
        if thread is not None:
            try:
                self._urls.put(None, timeout=timeout)
            except queue.Full:
                return
            thread.join(timeout)

    def _send_all(self) -> None:
        while (url := self._urls.get()) is not None:
            try:
                with urllib.request.urlopen(url, timeout=_PATIENCE):  # noqa: S310 - the scheme was checked
                    pass
            except (OSError, ValueError, http.client.HTTPException) as error:
                _log.warning("the ping %s failed: %s", url, error)


def ping_address(url: str, what: Literal["start", "success", "failure"]) -> str:
    """Return the address of a ping."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + _SUFFIXES[what]))


def is_ping_url(url: object) -> bool:
    """Return whether pings can be sent to ``url``."""
    if not isinstance(url, str):
        return False
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
