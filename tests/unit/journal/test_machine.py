"""Any sequence of calls, crashes and take-overs leaves both journals with the same run."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from canobatch.effects import entry_of, record_error
from canobatch.journal import AttemptRecord, Commit, MemoryJournal, RunStatus, SqliteJournal
from tests.support.runs import essence, new_run, put, take_over

keys = st.sampled_from(["a", "b", "ä"])
values = st.one_of(st.integers(0, 3), st.binary(max_size=8))
changes = st.dictionaries(keys, st.none() | values.map(entry_of), max_size=3)
blobs = st.none() | st.binary(max_size=20) | st.just(b"x" * (1 << 20))


class Journals(RuleBasedStateMachine):
    """The SQLite journal beside the one in memory, which is the model."""

    @initialize()
    def begin(self):
        """Begin a run in both."""
        self.directory = tempfile.mkdtemp()
        self.journals = SqliteJournal(self.directory), MemoryJournal()
        self.runs = [journal.begin(new_run()) for journal in self.journals]
        self.visit = 1
        self.number = 0
        self.is_open = True

    def each(self, call):
        """Make the same call on both."""
        for run in self.runs:
            call(run)

    @precondition(lambda self: self.is_open)
    @rule(branch=st.none() | st.integers(0, 3), value=blobs, key=keys, fails=st.booleans())
    def record(self, branch, value, key, fails):
        """Record an attempt with a number of its own."""
        self.number += 1
        if fails:
            error = record_error(ValueError(str(self.number)))
            attempt = AttemptRecord(self.visit, branch, self.number, "failed", error=error)
        else:
            attempt = AttemptRecord(self.visit, branch, self.number, "succeeded", value, (put(key, value),))
        self.each(lambda run: run.record(attempt))

    @precondition(lambda self: self.is_open)
    @rule(name=keys, data=blobs)
    def note(self, name, data):
        """Note a fact, or drop it."""
        self.each(lambda run: run.note(self.visit, name, data))

    @precondition(lambda self: self.is_open)
    @rule(changed=changes, cleared=st.booleans(), leaves=st.booleans(), output=blobs, skips=st.integers(0, 2))
    def commit(self, changed, cleared, leaves, output, skips):
        """Commit a visit, or a step of it; sometimes routers lie behind it."""
        following = "NEXT" if leaves else None
        commit = Commit(self.visit, "HERE", following, is_cleared=cleared, entries=changed, attempts=self.number)

        def call(run):
            outputs = {} if output is None else {run.intend(self.visit, "HERE"): output}
            run.commit(replace(commit, outputs=outputs))

        self.each(call)
        if leaves:
            self.visit += 1 + skips
            if skips:
                self.each(lambda run: run.enter(self.visit, "ROUTED"))

    @precondition(lambda self: self.is_open)
    @rule(withdraws=st.booleans())
    def intend(self, withdraws):
        """Intend to run something that can be compensated."""

        def call(run):
            number = run.intend(self.visit, "HERE")
            if withdraws:
                run.withdraw(number)

        self.each(call)

    @precondition(lambda self: self.is_open)
    @rule()
    def begin_rollback(self):
        """Begin a rollback."""
        self.each(lambda run: run.begin_rollback(record_error(ValueError("back"))))

    @rule(ends=st.booleans())
    def come_back(self, ends):
        """Let go of the run, or end it, and take it over: both have the same."""
        if ends:
            self.each(lambda run: run.end(RunStatus.FAILED, state="HERE", is_resumable=True))
        self.each(lambda run: run.close())
        taken = [take_over(journal) for journal in self.journals]
        self.runs = [run for run, _ in taken]
        found, wanted = (essence(recovered) for _, recovered in taken)
        assert found == wanted

    @invariant()
    def attempts_agree(self):
        """Both have the same attempts."""
        for visit in range(max(1, self.visit - 1), self.visit + 1):
            found, wanted = (list(run.attempts(visit)) for run in self.runs)
            assert found == wanted

    def teardown(self):
        """Let go of the runs and delete the files."""
        self.each(lambda run: run.close())
        shutil.rmtree(self.directory)


Journals.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


class TestJournals(Journals.TestCase):
    """Runs the machine."""

    def runTest(self):  # noqa: N802 - unittest's name
        """Any sequence of calls leaves both journals with the same run."""
        super().runTest()
