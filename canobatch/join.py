"""When a split is settled: strategies, their arithmetic, and what a split came to. Pure.

Invariants: a tally counts each ended branch once, and its verdict never changes after it is final.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from enum import Enum, StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Any, overload

from canobatch.errors import WorkflowError
from canobatch.limits import Semaphore

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class JoinStrategy:
    """How many branches of a split must succeed before the run goes on.

    Use the constructors. `any`, `quorum`, `percentage` and `partial_results` accept exactly the first
    successes they need and have the rest killed; `all` waits for every branch; `partial_timeout` takes
    what there is when the split's timeout passes.

    Example:
        >>> JoinStrategy.percentage(0.07).needed(100)
        7
    """

    kind: str
    n: int | None = None
    p: float | None = None

    @classmethod
    def all(cls) -> JoinStrategy:
        """Every branch must succeed."""
        return cls("all")

    @classmethod
    def any(cls) -> JoinStrategy:
        """The first success joins; the rest are killed."""
        return cls("any")

    @classmethod
    def quorum(cls, n: int) -> JoinStrategy:
        """``n`` successes join; the rest are killed."""
        return cls("quorum", n=n)

    @classmethod
    def percentage(cls, p: float) -> JoinStrategy:
        """At least the part ``p`` (0 < p <= 1) of the branches must succeed; the rest are killed."""
        return cls("percentage", p=p)

    @classmethod
    def partial_results(cls, n: int) -> JoinStrategy:
        """``n`` successes join, and all outcomes so far are kept; the rest are killed."""
        return cls("partial_results", n=n)

    @classmethod
    def partial_timeout(cls, min_successes: int = 1) -> JoinStrategy:
        """Join when all ended or the split's timeout passed, with at least ``min_successes``."""
        return cls("partial_timeout", n=min_successes)

    def __str__(self) -> str:
        argument = self.n if self.n is not None else self.p
        return f"{self.kind}({'' if argument is None else repr(argument)})"

    @property
    def stops_early(self) -> bool:
        """Whether it may be satisfied while branches still run."""
        return self.kind != "all"

    def needed(self, total: int | None) -> int | None:
        """Return how many successes of ``total`` branches it needs; None while that cannot be known."""
        if self.kind == "any":
            return 1
        if self.kind == "all":
            return total
        if self.kind == "percentage":
            assert self.p is not None
            # Exact: the decimal number that was written, not its binary neighbour.
            share = Fraction(repr(self.p)) if isinstance(self.p, float) else Fraction(self.p)
            return None if total is None else math.ceil(share * total)
        return self.n

    def problems(self, total: int | None) -> list[str]:
        """Return what is impossible about it for ``total`` branches (None: not known), with the cure."""
        found = []
        if self.kind == "percentage":
            if not isinstance(self.p, int | float | Fraction) or isinstance(self.p, bool) or not 0 < self.p <= 1:
                found.append(f"percentage must be a number above 0 and at most 1, got {self.p!r}; 75 % is 0.75")
        elif self.n is not None or self.kind in {"quorum", "partial_results", "partial_timeout"}:
            if not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1:
                found.append(f"{self.kind} needs a whole number of at least 1, got {self.n!r}")
            elif total is not None and self.n > total:
                found.append(
                    f"{self} can never be met by {total} branch{'es' if total != 1 else ''}; "
                    f"ask for at most {total} or add branches"
                )
        elif self.kind == "any" and total == 0:
            found.append("any() needs at least one branch, and there are none; add a branch or use all()")
        return found


@dataclass(frozen=True, slots=True)
class JoinConfig:
    """How a split is joined, and where the run goes from there.

    Args:
        strategy: When the split is settled.
        join_state: The state to go to when the strategy is satisfied.
        timeout: Seconds from the start of the split; queueing counts. None: no limit.
        bulkhead: At most this many branches run at a time; a branch in its back-off holds no place. A `Semaphore`
            given to several joins lets no more than it has places for run in all of them together.
        into: Store key that receives the list of accepted values in branch order (or the folded value).
        reduce: ``(fn, initial)``: fold accepted values with ``fn(folded, value)`` instead of keeping them.
        ordered: Fold in branch order (default), or on arrival.
        on_failure: State to go to when the strategy is not met, instead of a `JoinError`.
        on_timeout: The same for the timeout; without it a timeout counts as a failure.
        fail_fast: Fail as soon as the strategy can no longer be met, and kill the rest.
        store_partial_results: Write ``split_results_summary`` and the three ``split_*_count`` keys.

    Example:
        >>> JoinConfig(JoinStrategy.quorum(2), "merge", timeout=30.0, into="parts").timeout
        30.0
    """

    strategy: JoinStrategy
    join_state: Any
    _: KW_ONLY
    timeout: float | None = None
    bulkhead: int | Semaphore | None = None
    into: str | None = None
    reduce: tuple[Callable[[Any, Any], Any], Any] | None = None
    on_failure: Any = None
    on_timeout: Any = None
    fail_fast: bool = False
    store_partial_results: bool = False
    ordered: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.timeout, timedelta):
            object.__setattr__(self, "timeout", self.timeout.total_seconds())

    def problems(self, total: int | None) -> list[str]:
        """Return everything impossible about it for ``total`` branches (None: not known)."""
        if not isinstance(self.strategy, JoinStrategy):
            return [f"strategy must be a JoinStrategy such as JoinStrategy.all(), got {self.strategy!r}"]
        found = self.strategy.problems(total)
        if self.timeout is not None and not (isinstance(self.timeout, int | float) and self.timeout >= 0):
            found.append(f"timeout must be at least 0 seconds, got {self.timeout!r}")
        if self.timeout is None and self.strategy.kind == "partial_timeout":
            found.append("partial_timeout needs a timeout; give JoinConfig(..., timeout=seconds)")
        is_count = isinstance(self.bulkhead, int) and not isinstance(self.bulkhead, bool) and self.bulkhead >= 1
        if self.bulkhead is not None and not is_count and not isinstance(self.bulkhead, Semaphore):
            found.append(
                f"bulkhead must be a whole number of at least 1, got {self.bulkhead!r}; leave it out for none, "
                "or give a Semaphore to share one"
            )
        if self.into is not None and not isinstance(self.into, str):
            found.append(f"into must be a store key (a string), got {self.into!r}")
        if self.reduce is not None:
            if self.into is None:
                found.append("reduce needs into=key, the store key that receives the folded value")
            if not (isinstance(self.reduce, tuple) and len(self.reduce) == 2 and callable(self.reduce[0])):
                found.append(f"reduce must be (function, initial value), got {self.reduce!r}")
        return found


class BranchStatus(StrEnum):
    """What became of a branch."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    CANCELLED = "cancelled"
    NOT_STARTED = "not_started"


_CUT = frozenset({BranchStatus.CANCELLED, BranchStatus.NOT_STARTED})


@dataclass(slots=True)
class BranchResult:
    """What one branch came to.

    ``duration`` and ``cpu_time`` are seconds of the last attempt, ``max_rss`` its peak in bytes where it
    can be known. ``error`` is what the branch would have raised as a single task.
    """

    index: int
    status: BranchStatus
    value: Any = None
    error: BaseException | None = None
    attempts: int = 0
    started_at: datetime | None = None
    duration: float | None = None
    cpu_time: float | None = None
    max_rss: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data; value and error as text."""
        return {
            "index": self.index,
            "status": self.status.value,
            "value": None if self.value is None else repr(self.value),
            "error": None if self.error is None else f"{type(self.error).__name__}: {self.error}",
            "attempts": self.attempts,
            "started_at": None if self.started_at is None else self.started_at.isoformat(),
            "duration": self.duration,
            "cpu_time": self.cpu_time,
            "max_rss": self.max_rss,
        }


class SplitResult(Sequence[BranchResult]):
    """What a split came to: a sequence of `BranchResult` in branch order.

    A split of more than 100 000 branches keeps the records of the first 100 000, those of later failures, and
    counts of all: then ``is_whole`` is False, and ``successes``, ``cancelled`` and ``values`` raise, as they would
    be short.
    """

    def __init__(self, branches: Sequence[BranchResult], statuses: Mapping[BranchStatus, int] | None = None) -> None:
        self.branches = tuple(branches)
        self.is_whole = statuses is None
        self._statuses = Counter(b.status for b in self.branches) if statuses is None else Counter(statuses)

    @property
    def counts(self) -> dict[str, int]:
        """How many branches "succeeded", "failed" (timed out and lost ones too), and were "cancelled"."""
        counts = {"succeeded": 0, "failed": 0, "cancelled": 0}
        for status, count in self._statuses.items():
            kind = "succeeded" if status is BranchStatus.SUCCEEDED else "cancelled" if status in _CUT else "failed"
            counts[kind] += count
        return counts

    @property
    def successes(self) -> tuple[BranchResult, ...]:
        """The branches that were accepted."""
        self._require_whole()
        return tuple(b for b in self.branches if b.status is BranchStatus.SUCCEEDED)

    @property
    def errors(self) -> tuple[BranchResult, ...]:
        """The branches that failed for good, timed out, or were lost."""
        return tuple(b for b in self.branches if b.error is not None and b.status not in _CUT)

    @property
    def cancelled(self) -> tuple[BranchResult, ...]:
        """The branches that the join or the split's timeout cut, begun or not."""
        self._require_whole()
        return tuple(b for b in self.branches if b.status in _CUT)

    @property
    def values(self) -> list[Any]:
        """The accepted values in branch order."""
        return [b.value for b in self.successes]

    @property
    def summary(self) -> str:
        """One line of counts."""
        succeeded, failed, cancelled = self.counts.values()
        return f"Split results: {succeeded} succeeded, {failed} failed, {cancelled} cancelled"

    def _require_whole(self) -> None:
        if not self.is_whole:
            raise WorkflowError(
                f"only {len(self.branches)} of {sum(self.counts.values())} branches have a record; use counts and "
                "errors, and into= or reduce= for the values"
            )

    @overload
    def __getitem__(self, index: int) -> BranchResult: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[BranchResult, ...]: ...
    def __getitem__(self, index: int | slice) -> BranchResult | tuple[BranchResult, ...]:
        return self.branches[index]

    def __len__(self) -> int:
        return len(self.branches)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SplitResult) and (self.branches, self._statuses) == (other.branches, other._statuses)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<SplitResult {self.summary.removeprefix('Split results: ')}>"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            **self.counts,
            "branches": [branch.to_dict() for branch in self.branches],
        }


class Verdict(Enum):
    """What a tally says."""

    PENDING = "pending"
    SATISFIED = "satisfied"
    FAILED = "failed"


@dataclass(slots=True)
class JoinTally:
    """Counts ended branches of one split and says when the split is settled.

    ``total`` is None while the number of branches is not known (a generator); `close` sets it.
    """

    strategy: JoinStrategy
    total: int | None = None
    fail_fast: bool = False
    successes: int = 0
    failures: int = 0
    verdict: Verdict = Verdict.PENDING
    _needed: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._needed = self.strategy.needed(self.total)
        self._judge()

    def offer(self, success: bool) -> Verdict:
        """Count one branch that ended for good, and return the verdict."""
        if self.verdict is Verdict.PENDING:
            if success:
                self.successes += 1
            else:
                self.failures += 1
            self._judge()
        return self.verdict

    def close(self, total: int) -> Verdict:
        """Say that there are ``total`` branches and no more will come; return the verdict."""
        if self.total is None:
            self.total = total
            self._needed = self.strategy.needed(total)
            self._judge()
        return self.verdict

    def expire(self) -> Verdict:
        """Say that the split's timeout passed; return the verdict, which is final."""
        if self.verdict is Verdict.PENDING:
            enough = self.strategy.kind == "partial_timeout" and self.successes >= (self._needed or 0)
            self.verdict = Verdict.SATISFIED if enough else Verdict.FAILED
        return self.verdict

    def _judge(self) -> None:
        if self.verdict is not Verdict.PENDING:
            return
        needed, total = self._needed, self.total
        ended = self.successes + self.failures
        is_over = total is not None and ended >= total
        waits_for_all = self.strategy.kind == "partial_timeout" and not is_over
        if needed is not None and self.successes >= needed and not waits_for_all:
            self.verdict = Verdict.SATISFIED
        elif is_over or (self.fail_fast and self._is_out_of_reach(ended)):
            self.verdict = Verdict.FAILED

    def _is_out_of_reach(self, ended: int) -> bool:
        if self.strategy.kind == "all":
            return self.failures > 0
        if self._needed is None or self.total is None:
            return False
        return self.successes + self.total - ended < self._needed
