"""The seam between runs and whatever remembers them.

`SqliteJournal` is the implementation for one host. A journal on a server needs these two protocols, a lock
that dies with its holder, and transactions; it needs no thread of its own.

The order of calls of one run is the order of what they mean: a call is durable no earlier than the calls
before it. So only `RunJournal.commit`, `RunJournal.intend` and the calls of a rollback have to be waited for; what was
recorded before one of them is durable with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from canobatch.effects import ErrorRecord
    from canobatch.journal.records import (
        AttemptRecord,
        Commit,
        NewRun,
        Recovered,
        RunHistory,
        RunStatus,
        RunSummary,
    )


class Ticket(Protocol):
    """What was handed to a journal and may not be durable yet."""

    @property
    def is_durable(self) -> bool:
        """Whether a crash from now on cannot lose it."""

    def wait(self, timeout: float | None = None) -> None:
        """Return once it is durable.

        Raises:
            JournalError: It could not be written, and never will be.
            TimeoutError: ``timeout`` seconds passed first.
        """


class RunJournal(Protocol):
    """One run that this process has, and nobody else. Its calls may come from any thread, one after the other.

    Every call raises `JournalError` if an earlier one could not be written: after that nothing more is, and
    the run stands as of its last durable call. It can be resumed when the cause is gone.
    """

    @property
    def run_id(self) -> str:
        """The run's id."""

    @property
    def life(self) -> int:
        """How often the run was begun or taken over: 1 for a new run."""

    def enter(self, visit: int, state: str) -> Ticket:
        """Say that the run is in a state that no commit leads to: the one after a router.

        Not needed where the visit before was left by `commit`. A router itself records nothing: resumed in
        between, it is asked again.
        """

    def record(self, attempt: AttemptRecord) -> Ticket:
        """Keep how one attempt ended. From when it is durable, a success is not run again.

        The driver records what it accepts, in the order in which it accepts it, and need not wait: the commit
        of the visit comes after. It blocks when too much is waiting to be written.

        Of several records of a branch the last one counts.
        """

    def note(self, visit: int, name: str, data: bytes | None) -> Ticket:
        """Keep a fact of a visit under a name, in place of the one before; None drops it.

        For a wake-up time, a step's or a stream's cursor that comes without effects, a poll's count of errors.
        Facts belong to their visit, so a loop never meets its own past, and go when the visit is left.
        """

    def commit(self, commit: Commit) -> None:
        """Make a visit's effects and the next state durable, all in one transaction, and wait for it.

        What the visit's attempts recorded as operations is dropped: the entries hold their sum now. The values stay.
        """

    def intend(self, visit: int, state: str) -> int:
        """Make it known that a task which can be compensated is about to run, and wait until that is durable.

        A crash from now on leaves it in doubt, until `commit` has its output or `withdraw` says that it failed.

        Returns:
            The number of the intent, by which the run's other calls name it; later ones have higher numbers.
        """

    def withdraw(self, number: int) -> Ticket:
        """Say that the task of an intent failed by itself, so that there is nothing to compensate."""

    def begin_rollback(self, error: ErrorRecord) -> None:
        """Make it known that the run goes back, and why, and wait: a crash from now on resumes the rollback."""

    def end_compensation(self, number: int, error: ErrorRecord | None = None) -> None:
        """Keep that one compensation ended, well or with an error, and wait.

        One that wrote to the store ends well by `commit` with its number as ``undone``, in one transaction.
        """

    def own(self, token: str, made_with: str) -> Ticket:
        """Keep which process this owner is, and what a later one has to know of it.

        Args:
            token: What marks the processes that it starts, "" while there are none.
            made_with: As in `NewRun`.
        """

    def attempts(self, visit: int) -> Iterator[AttemptRecord]:
        """Yield what was recorded for a visit, branch by branch, each in the order of its attempts.

        Values come with it, operations only while the visit is not committed. Read while it is iterated over.
        """

    def end(
        self,
        status: RunStatus,
        *,
        state: str | None = None,
        error: ErrorRecord | None = None,
        is_resumable: bool = False,
    ) -> None:
        """Keep how the run ended, wait for it, and let go of the run.

        Args:
            status: COMPLETED, FAILED, CANCELLED or ROLLED_BACK.
            state: The exit state, or where it ended.
            error: What it ended with.
            is_resumable: Whether it may be taken over again. A failed run usually may, a rolled back one may not.
        """

    def close(self) -> None:
        """Write what waits and let go of the run without an end: it is interrupted, and can be resumed.

        Nothing happens if it has ended or is closed. Raises nothing: what could not be written was reported.
        """


class Journal(Protocol):
    """What remembers runs. Thread-safe."""

    def begin(self, run: NewRun) -> RunJournal:
        """Begin a run; it is durable when this returns, and this process owns it.

        Raises:
            RunInUseError: There is a run of this id.
            JournalError: It cannot be written.
        """

    def take_over(self, run_id: str, *, workflow: str, version: int) -> tuple[RunJournal, Recovered]:
        """Become the owner of a run whose owner is gone, and read what it came to.

        The owner before is what the journal tells, to whoever comes next, until `RunJournal.own`: what it left has
        to be killed by somebody.

        Of several who try, one wins. A run that ended for good is only read; its `RunJournal` is closed.

        Raises:
            RunNotFoundError: There is no such run, or it was killed before it began.
            RunInUseError: Its owner lives.
            VersionMismatchError: Another workflow or version began it.
            JournalError: It cannot be read, or is damaged; nothing was changed.
        """

    def runs(
        self, *, workflow: str | None = None, status: RunStatus | None = None, since: float | None = None
    ) -> Sequence[RunSummary]:
        """Return the runs, the latest first, that were begun since a time and are of a workflow and status."""

    def run(self, run_id: str) -> RunHistory:
        """Return one run's history.

        Raises:
            RunNotFoundError: There is no such run.
        """

    def prune(self, *, older_than: float | None = None, keep: int | None = None) -> list[str]:
        """Remove runs that have ended, with their values, and return their ids; no other run is touched.

        Args:
            older_than: Those that ended more than this many seconds ago; None: of any age.
            keep: All but this many, the latest ones; None: none is spared.
        """
