"""What observers are told of the branches of one visit: each that is started ends once, whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canobatch.join import BranchResult, BranchStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from canobatch.engine.driver import Driver
    from canobatch.pool import Call


class BranchEvents:
    """Costs nothing, and does nothing, where nobody listens (``is_wanted``)."""

    def __init__(self, driver: Driver, state: Any) -> None:
        self.is_wanted = driver.is_observed
        self._driver = driver
        self._state = state
        #: Branches that were started and have not ended, each with its attempt.
        self._open: dict[int, int] = {}

    def started(self, calls: Sequence[Call]) -> None:
        """A worker was given these calls; one that is sent again, or an attempt after the first, is no news."""
        for call in calls:
            index = call.branch
            if index is not None and self.is_wanted:
                if index not in self._open:
                    self._start(index, call.attempt)
                self._open[index] = call.attempt

    def finished(self, result: BranchResult) -> None:
        """A branch ended for good."""
        self._end("branch_finished", result)

    def killed(self, result: BranchResult) -> None:
        """A branch was cut."""
        self._end("branch_killed", result)

    def close(self) -> None:
        """The split is over: whatever has not ended was cut."""
        for index, attempt in list(self._open.items()):
            # Given to a worker, or waiting for its next attempt; it has not begun that.
            status = BranchStatus.CANCELLED if attempt > 1 else BranchStatus.NOT_STARTED
            self.killed(BranchResult(index, status, attempts=attempt - 1))

    def _start(self, index: int, attempt: int) -> None:
        self._driver.emit("branch_started", state=self._state, branch=index, attempt=attempt)

    def _end(self, kind: str, result: BranchResult) -> None:
        if not self.is_wanted:
            return
        if self._open.pop(result.index, None) is None:
            # It never reached a worker, or the news of that is still on its way.
            self._start(result.index, max(1, result.attempts))
        self._driver.emit(kind, state=self._state, branch=result.index, attempt=result.attempts or None, detail=result)
