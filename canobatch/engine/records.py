"""What is kept of a split's branches while it runs: all of them, or for very many counts and failures."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from canobatch.definition import label
from canobatch.errors import JoinError
from canobatch.join import BranchResult, BranchStatus, SplitResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from canobatch.join import JoinConfig

#: Branches from this index on leave a count, and a record only if they failed; of those, too, so many.
KEPT = 100_000


class Records:
    """Ended branches of one split; ``keeps_values``: those without a record leave their value all the same."""

    def __init__(self, *, keeps_values: bool) -> None:
        self._records: dict[int, BranchResult] = {}
        self._values: dict[int, Any] | None = {} if keeps_values else None
        self._late: Counter[BranchStatus] = Counter()
        self._late_failures = 0

    def wants(self, index: int, value: Any) -> bool:
        """Return whether a branch that succeeded is to be given to `add`; if not, it is counted now."""
        if index < KEPT:
            return True
        self._late[BranchStatus.SUCCEEDED] += 1
        if self._values is not None:
            self._values[index] = value
        return False

    def add(self, result: BranchResult) -> None:
        """Keep or count a branch that ended."""
        if result.index < KEPT:
            self._records[result.index] = result
            return
        self._late[result.status] += 1
        if result.error is not None and self._late_failures < KEPT:
            self._late_failures += 1
            self._records[result.index] = result

    def values(self) -> list[Any]:
        """Return the accepted values in branch order."""
        values = [
            record.value for _, record in sorted(self._records.items()) if record.status is BranchStatus.SUCCEEDED
        ]
        return values if not self._values else values + [value for _, value in sorted(self._values.items())]

    def collect(self, total: int, attempts: Mapping[int, int]) -> SplitResult:
        """Return what ``total`` branches came to; those that are missing were cut, after these ``attempts``."""
        for index, begun in attempts.items():
            if begun > 1 and (index >= KEPT or index not in self._records):
                self.add(BranchResult(index, BranchStatus.CANCELLED, attempts=begun - 1))
        for index in range(min(total, KEPT)):
            if index not in self._records:
                self._records[index] = BranchResult(index, BranchStatus.NOT_STARTED)
        records = [record for _, record in sorted(self._records.items())]
        if total <= KEPT:
            return SplitResult(records)
        statuses = Counter(record.status for record in records if record.index < KEPT)
        statuses += self._late
        statuses[BranchStatus.NOT_STARTED] += total - statuses.total()
        return SplitResult(records, statuses)


def join_error(state: Any, join: JoinConfig, result: SplitResult, *, is_timeout: bool) -> JoinError:
    """Return the error of a split that did not meet its strategy."""
    strategy = join.strategy
    counts = result.counts
    total = sum(counts.values())
    needed = strategy.needed(total)
    why = f"; it timed out after {join.timeout:g} s" if is_timeout else ""
    errors = result.errors
    listed = "".join(f"\n  {branch.error}" for branch in errors[:3])
    if counts["failed"] > 3:
        listed += f"\n  ... and {counts['failed'] - 3} more"
    error = JoinError(
        f"state {label(state)}: {strategy} needs {needed} of {total} branches to succeed, "
        f"{counts['succeeded']} did ({counts['failed']} failed, {counts['cancelled']} cancelled)"
        f"{why}{listed}",
        state=state,
        result=result,
    )
    if is_timeout:
        error.__cause__ = TimeoutError(f"the split's timeout of {join.timeout:g} s passed")
    elif errors:
        error.__cause__ = errors[0].error
    return error
