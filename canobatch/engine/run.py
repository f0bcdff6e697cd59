"""Run: the handle of one execution of a workflow."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from canobatch import _clock
from canobatch.errors import WorkflowError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from canobatch.engine.driver import Driver
    from canobatch.engine.report import RunReport
    from canobatch.store import Store

_log = logging.getLogger(__name__)


class Run:
    """A run in the background. Made by `Workflow.start`.

    It ends with the process: wait for it before the program ends.
    """

    def __init__(self, driver: Driver, *, begins: bool = True) -> None:
        self._driver = driver
        self._pid = os.getpid()
        self._ended = threading.Event()
        self._state: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._drive, name=f"canobatch-run-{driver.run_id}", daemon=True)
        self._lock = threading.Lock()
        self._is_driven = False
        self._watchers: list[Callable[[], None]] | None = []
        if begins:
            self.begin()

    def begin(self) -> None:
        """Begin, if it was made with ``begins=False``; once only."""
        try:
            self._thread.start()
        except RuntimeError as error:
            # No thread is to be had; whoever waits must not wait for ever.
            self._driver.scribe.close()
            self.fail(error)
            self.end()
            raise

    def drive(self) -> None:
        """Run to the end in the calling thread, instead of `begin`; who waits for it is told by `end`."""
        try:
            self._state = self._driver.run()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self._error = error

    def fail(self, error: BaseException) -> None:
        """Let it have failed, instead of `drive`."""
        self._error = error

    @property
    def id(self) -> str:
        """The run's id."""
        return self._driver.run_id

    @property
    def store(self) -> Store:
        """The run's store; complete once the run has ended."""
        return self._driver.store

    @property
    def error(self) -> BaseException | None:
        """What it failed with, once it has ended; else None."""
        return self._error

    def wait(self, timeout: float | timedelta | None = None) -> Any:
        """Wait for the end and return the exit state.

        Args:
            timeout: Seconds to wait at most, or a `timedelta`; None: no limit.

        Raises:
            TimeoutError: ``timeout`` seconds passed first; the run goes on.
            CanobatchError: What the run failed with.
            WorkflowError: This is a forked child, and the run goes on in its parent.
        """
        if self._pid != os.getpid() and not self._ended.is_set():
            raise WorkflowError(f"run {self.id} goes on in the process that began it; wait for it there")
        seconds = None if timeout is None else min(_clock.as_seconds(timeout), _clock.LONGEST)
        if not self._ended.wait(seconds):
            raise TimeoutError(f"run {self.id} has not ended within {seconds:g} s")
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self._state

    def cancel(self, reason: str = "cancelled", *, keep: bool | None = False) -> None:
        """Ask the run to end: what runs in workers is killed; returns at once.

        Args:
            reason: Why; in the error with which it ends.
            keep: Whether it may be resumed afterwards, if it has a journal. True: it may, and what could be
                compensated is left in effect; None: it may, unless something had to be compensated.
        """
        self._driver.token.cancel(reason, keep=keep)

    def kill(self, reason: str = "killed") -> None:
        """Cancel the run, and do not wait for a compensatable task to come to its end; returns at once.

        What is done is rolled back all the same; the task that was cut is in doubt. A task that runs in this
        process cannot be killed.
        """
        self._driver.hasten(reason)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` when the run has come to its end, before those who wait are told; now, if it has ended.

        It may be called in any thread; it may ask for the report, and must not wait for the run.
        """
        with self._lock:
            if self._watchers is not None:
                self._watchers.append(watcher)
                return
        watcher()

    def report(self) -> RunReport:
        """Return what the run did so far."""
        return self._driver.report()

    def wait_through_interrupt(self) -> Any:
        """Begin, and wait like `wait`; what a signal handler raises meanwhile cancels the run.

        What means to end the process, Ctrl-C or a ``sys.exit``, is raised when the run has ended; a second one
        abandons it. Anything else, an alarm for example, may be there to end a wait that is too long.
        """
        try:
            self.begin()
            return self.wait()
        except BaseException as error:
            if not self._ended.is_set():
                self.cancel("interrupted", keep=None)
                # It may have come before there was a thread; cancelled, the run ends here as it would there.
                self._drive()
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    self._ended.wait()
            raise

    def _drive(self) -> None:
        with self._lock:
            is_driven, self._is_driven = self._is_driven, True
        if not is_driven:
            self.drive()
            self.end()

    def end(self) -> None:
        """Tell those who watch and those who wait that it has ended, after `drive` or `fail`; once only."""
        with self._lock:
            watchers, self._watchers = self._watchers or [], None
        for watcher in watchers:
            try:
                watcher()
            except BaseException:  # noqa: BLE001 - the end of a run is not for others to spoil
                _log.exception("a watcher of run %s failed", self.id)
        self._ended.set()

    def __repr__(self) -> str:
        state = "running" if not self._ended.is_set() else "failed" if self._error else "finished"
        return f"<Run {self.id} {state}>"
