"""A worker's own resources: unpacked and set up when a task asks for them, kept, torn down at the end.

Their hooks run in the worker's main thread, where its tasks run: some libraries insist on one thread. So a hook
that hangs can only be ended with the process; a watchdog does that, after it has said why.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from canobatch import _procs
from canobatch.effects import loads
from canobatch.errors import ResourceError, ResourceLookupError
from canobatch.resources import Resource, checked, hook_error, hook_timeout_of, missing, result_of, unpacked

_log = logging.getLogger(__name__)


class WorkerResources(Mapping[Any, Any]):
    """One workflow's resources in this worker.

    Attributes:
        threads: How many threads their setups have started.
    """

    def __init__(self, packed: bytes) -> None:
        self._packed: dict[Any, bytes | None] = loads(packed)
        self._live: dict[Any, Any] = {}
        self.threads = 0
        #: Told why, before a setup that hangs ends the process; the worker sets it.
        self.last_words: Callable[[BaseException], None] = lambda _: None

    def find(self, key: Any, kind: type[Any] | None = None) -> Any:
        """Return what is under ``key``, set up if need be.

        Raises:
            ResourceLookupError: There is no such key, it is of another type, or it lives in the launcher only.
            ResourceError: It could not be unpacked or set up.
        """
        if key not in self._live:
            if key not in self._packed:
                raise missing(key, self._packed)
            data = self._packed[key]
            if data is None:
                raise ResourceLookupError(
                    f'resource {key!r} has scope="run": it lives in the launcher, and this task runs in a worker; '
                    'use scope="worker", or TaskConfig(where="parent") for a single task',
                    key=key,
                )
            thing = unpacked(key, data)
            if isinstance(thing, Resource):
                self._set_up(key, thing)
            self._live[key] = thing
        return checked(key, self._live[key], kind)

    def __getitem__(self, key: Any) -> Any:
        return self.find(key)

    def __contains__(self, key: object) -> bool:
        return key in self._packed

    def get(self, key: Any, default: Any = None) -> Any:
        """Return what is under ``key``, or ``default``."""
        return self.find(key) if key in self._packed else default

    def __iter__(self) -> Iterator[Any]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def close(self) -> None:
        """Tear down what was set up, the last first; what goes wrong is logged."""
        while self._live:
            key, thing = self._live.popitem()
            if not isinstance(thing, Resource):
                continue
            hung = f"resource {key!r}: teardown() has not ended in time; the worker ends without it"
            try:
                with _bounded(hook_timeout_of(thing), lambda hung=hung: _log.warning(hung)):  # type: ignore[misc]
                    result_of(thing.teardown)
            except BaseException as error:  # noqa: BLE001 - the next one's turn comes all the same
                _log.warning("%s", hook_error(key, "teardown", error), exc_info=error)

    def _set_up(self, key: Any, thing: Resource) -> None:
        limit = hook_timeout_of(thing)
        hung = ResourceError(
            f"resource {key!r}: setup() has not ended within {limit or 0.0:g} s in a worker, which was ended; "
            "raise its hook_timeout if that is not enough",
            key=key,
        )
        threads, children = threading.active_count(), set(_procs.children_of(os.getpid()))
        try:
            with _bounded(limit, lambda: self.last_words(hung)):
                result_of(thing.setup)
        except BaseException as error:
            raise hook_error(key, "setup", error) from error
        # What it has started is no left-over of the task that happened to ask first.
        self.threads += max(0, threading.active_count() - threads)
        _procs.kept_children.update(set(_procs.children_of(os.getpid())) - children)


@contextmanager
def _bounded(limit: float | None, last_words: Callable[[], None]) -> Iterator[None]:
    """End this process, after its last words, if the context is not left in time."""
    if limit is None:
        yield
        return

    def end() -> None:
        try:
            last_words()
        finally:
            os._exit(1)

    watchdog = threading.Timer(limit, end)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
        watchdog.join()
