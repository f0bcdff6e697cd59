"""What observers are told of the branches of one visit: each that is started ends once, whatever happens.

That a branch ended is told once the journal has it: what they hear of is never done again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from canobatch.errors import JournalError
from canobatch.join import BranchResult, BranchStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from canobatch.engine.driver import Driver
    from canobatch.errors import TaskError
    from canobatch.pool import Call


class BranchEvents:
    """Makes nothing where nobody listens (``is_wanted``)."""

    def __init__(self, driver: Driver, state: Any) -> None:
        self.is_wanted = driver.is_observed
        self._driver = driver
        self._state = state
        #: Branches that were started and have not ended, each with its attempt.
        self._open: dict[int, int] = {}
        #: Kind, branch, attempt, detail.
        self._news: list[tuple[str, int, int | None, Any]] = []
        self._is_news = False

    def started(self, calls: Sequence[Call]) -> None:
        """A worker was given these calls; one that is sent again, or an attempt after the first, is no news."""
        for call in calls:
            index = call.branch
            if index is not None and self.is_wanted:
                if index not in self._open:
                    self._emit("branch_started", index, call.attempt, None)
                self._open[index] = call.attempt

    def kept(self, result: BranchResult) -> None:
        """A branch was accepted in an earlier life of the run."""
        if self.is_wanted:
            self._emit("branch_kept", result.index, result.attempts, result)

    def retried(self, error: TaskError) -> None:
        """An attempt failed, and another follows."""
        self._is_news = True
        if self.is_wanted and error.branch is not None:
            self._news.append(("retry", error.branch, error.attempt, error))

    def finished(self, result: BranchResult | None) -> None:
        """A branch ended for good; None: nobody wants to know which."""
        self._is_news = True
        if self.is_wanted and result is not None:
            self._news.append(("branch_finished", result.index, result.attempts, result))

    def killed(self, result: BranchResult) -> None:
        """A branch was cut."""
        if self.is_wanted:
            self._news.append(("branch_killed", result.index, result.attempts, result))

    def tell(self) -> None:
        """Tell what happened, when the journal has it.

        Raises:
            JournalError: It has not, and never will.
        """
        if self._is_news:
            self._driver.scribe.wait()
            self._is_news = False
        for kind, index, attempt, detail in self._news:
            if kind != "retry" and self._open.pop(index, None) is None:
                # It never reached a worker, or the news of that is still on its way.
                self._emit("branch_started", index, max(1, attempt or 0), None)
            self._emit(kind, index, attempt or None, detail)
        self._news.clear()

    def close(self) -> None:
        """The split is over: tell the rest, and that whatever has not ended was cut."""
        with suppress(JournalError):
            self._driver.scribe.wait()
        self._is_news = False
        self.tell()
        for index, attempt in self._open.items():
            # Given to a worker, or waiting for its next attempt; it has not begun that.
            status = BranchStatus.CANCELLED if attempt > 1 else BranchStatus.NOT_STARTED
            self.killed(BranchResult(index, status, attempts=attempt - 1))
        self.tell()

    def _emit(self, kind: str, index: int, attempt: int | None, detail: Any) -> None:
        self._driver.emit(kind, state=self._state, branch=index, attempt=attempt, detail=detail)
