"""What a journal keeps of a run: plain data.

Values and items are bytes, large ones may be a memoryview; operations and errors are the plain tuples of `effects`. A
journal opens none of them. States are labels. Times are seconds since the epoch, durations seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from canobatch.effects import Entry, ErrorRecord, Flat, Operation


class RunStatus(StrEnum):
    """How a run stands."""

    #: Somebody holds its lock.
    RUNNING = "running"
    #: It has not ended and nobody holds its lock: its owner died, or let go of it.
    INTERRUPTED = "interrupted"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    #: It failed or was cancelled, and what could be compensated was.
    ROLLED_BACK = "rolled_back"
    #: Its journal cannot be read.
    DAMAGED = "damaged"


class Owner(NamedTuple):
    """Which process has a run: for messages, and for finding what it left. The lock decides, not this.

    Attributes:
        pid: Its number, in its own pid namespace.
        start_ticks: When it started, in the kernel's ticks since boot: tells it from a later one of that number.
        boot_id: Which boot of the machine that was.
        pid_namespace: The inode of its pid namespace.
        host: The machine's name.
        token: What everything that it started carries in its environment, "" while that is nothing.
    """

    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: int
    host: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class NewRun:
    """What is known of a run when it begins.

    Attributes:
        run_id: Its id, unique in the journal.
        workflow: The workflow's name.
        version: The workflow's version; another one cannot resume the run.
        initial: The state it begins with.
        params: Its parameters, pickled, or None.
        made_with: The interpreter and pickler, as far as values by value depend on them.
        entries: What its store holds before the first state.
    """

    run_id: str
    workflow: str
    version: int
    initial: str
    params: bytes | None = None
    made_with: str = ""
    entries: Mapping[str, Entry] = field(default_factory=dict)


class AttemptRecord(NamedTuple):
    """One ended attempt of one branch, or of a single task.

    Attributes:
        visit: Which visit of a state it belongs to; visits are numbered from 1 along the run's path.
        branch: Index of the branch, None for a single task.
        attempt: From 1; fresh attempts begin at 1 again, after a take-over with a higher ``life``.
        status: "succeeded" makes it accepted: it is not run again. "retried": it failed and another attempt was
            to follow. Else how its branch ended: "failed", "timed_out", "lost", "cancelled".
        value: The pickled value of a success.
        operations: Its store operations, until the visit is committed.
        error: Why it did not succeed.
        started: When it began.
        duration: How long it ran.
        cpu_time: CPU seconds.
        max_rss: Its peak, in bytes.
        item: Digest of the branch's item: another item at this index is another branch.
        life: How often the run had been begun or taken over; set by the journal.
    """

    visit: int
    branch: int | None
    attempt: int
    status: str
    value: Flat | None = None
    operations: tuple[Operation, ...] = ()
    error: ErrorRecord | None = None
    started: float | None = None
    duration: float | None = None
    cpu_time: float | None = None
    max_rss: int | None = None
    item: bytes | None = None
    life: int = 0


@dataclass(frozen=True, slots=True)
class Commit:
    """What one transaction makes of a visit: its effects on the store, and where the run goes.

    Attributes:
        visit: Which visit.
        state: Its state.
        next_state: The state of the next visit; None: the run stays in this one (a step, a window).
        is_cleared: Whether the store loses everything first.
        entries: The keys that changed, each with its new entry; None: removed.
        cursors: Facts of the visit that changed, as for `RunJournal.note`.
        records: Attempts to record with it: the one of a single task, and the branches that the join cut.
        attempts: How many attempts the visit took.
        total: How many branches it had, None where it was no split.
        duration: How long it took.
        error: What it failed with, when the run goes on nevertheless (``on_error``, ``on_failure``).
        outputs: By the number of an intent, what its task's compensation will be given: it is done now.
        undone: The number of a compensation whose effects these are: it ended well.
    """

    visit: int
    state: str
    next_state: str | None
    is_cleared: bool = False
    entries: Mapping[str, Entry | None] = field(default_factory=dict)
    cursors: Mapping[str, Flat | None] = field(default_factory=dict)
    records: tuple[AttemptRecord, ...] = ()
    attempts: int = 0
    total: int | None = None
    duration: float | None = None
    error: ErrorRecord | None = None
    outputs: Mapping[int, bytes] = field(default_factory=dict)
    undone: int | None = None


class RunFacts(NamedTuple):
    """What a journal keeps of a run as a whole; for journals themselves."""

    run_id: str
    workflow: str
    version: int
    made_with: str
    life: int
    owner: Owner
    status: str
    is_resumable: bool
    state: str | None
    started: float
    ended: float | None
    error: ErrorRecord | None
    rollback: ErrorRecord | None


class VisitRecord(NamedTuple):
    """One visit of a state, as committed so far; see `Commit` for the facts."""

    visit: int
    state: str
    entered_at: float
    left_at: float | None = None
    next_state: str | None = None
    attempts: int = 0
    total: int | None = None
    duration: float | None = None
    error: ErrorRecord | None = None


class CompensationRecord(NamedTuple):
    """A task that can be compensated.

    Attributes:
        number: Its place in the order in which compensations are undone, the highest first.
        visit: The visit it ran in.
        state: Its state.
        status: "intended": it may or may not have run, it is in doubt; "done": it succeeded; "undone": it was
            compensated; "failed": its compensation failed.
        output: What its compensation is given, once it is done.
        error: What its compensation failed with.
    """

    number: int
    visit: int
    state: str
    status: str
    output: bytes | None = None
    error: ErrorRecord | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """All that a resumed run has to know, as of its last transaction.

    Attributes:
        run_id: The run.
        workflow: Its workflow's name.
        version: Its workflow's version.
        params: Its parameters, pickled, or None.
        made_with: As in `NewRun`, of whoever wrote last before.
        status: How it stood: `RunStatus.INTERRUPTED` if it had not ended.
        is_resumable: Whether it was taken over; if not, it had ended for good and nothing of it was changed.
        life: How often it was begun or taken over, this time included.
        visits: Every visit, in order; the last one is where the run is. Outcomes: `RunJournal.attempts`.
        store: The store as of the last commit.
        cursors: The facts noted in the last visit.
        compensations: In the order of their intents; rolled back from the last to the first.
        rollback: The failure that a rollback was begun for; None: no rollback was begun.
        state: The exit state, or the state in which it ended.
        error: What it ended with.
        owner: Who had it.
    """

    run_id: str
    workflow: str
    version: int
    params: bytes | None
    made_with: str
    status: RunStatus
    is_resumable: bool
    life: int
    visits: tuple[VisitRecord, ...]
    store: Mapping[str, Entry]
    cursors: Mapping[str, Flat]
    compensations: tuple[CompensationRecord, ...]
    rollback: ErrorRecord | None
    state: str | None
    error: ErrorRecord | None
    owner: Owner


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line of the history.

    Attributes:
        run_id: The run.
        workflow: Its workflow's name.
        version: Its workflow's version.
        status: How it stands now.
        state: Where it ended; None while it has not.
        started_at: When it was begun, seconds since the epoch.
        ended_at: When it ended, None while it has not.
        error: Type and text of what it failed with, or None.
        owner: Who has it, or had it last.
    """

    run_id: str
    workflow: str
    version: int
    status: RunStatus
    state: str | None
    started_at: float
    ended_at: float | None
    error: str | None
    owner: Owner


@dataclass(frozen=True, slots=True)
class RunHistory:
    """One run with all its visits and attempts; values and operations are left out.

    Attributes:
        summary: As in the list.
        visits: In order.
        attempts: By visit, branch, and the order in which they were made.
        compensations: In the order of their intents.
    """

    summary: RunSummary
    visits: tuple[VisitRecord, ...]
    attempts: tuple[AttemptRecord, ...]
    compensations: tuple[CompensationRecord, ...]
