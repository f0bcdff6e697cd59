"""A journal as somebody else might write one: each run is a file of the calls that were made, read again to resume.

It uses what `canobatch.journal` and `canobatch.errors` export, and nothing else of canobatch.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pickle
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

from canobatch.errors import JournalError, RunInUseError, RunNotFoundError, VersionMismatchError
from canobatch.journal import (
    CompensationRecord,
    Owner,
    Recovered,
    RunHistory,
    RunStatus,
    RunSummary,
    VisitRecord,
)

SINGLE = -1


class Book:
    """What a run came to by the calls that were made on it, in their order."""

    def begin(self, run, owner, now):
        """Open the book."""
        self.new, self.life, self.started = run, 0, now
        self.visits, self.attempts, self.store = {}, {}, dict(run.entries)
        self.cursors, self.compensations, self.rollback = {}, {}, None
        self.left = self.intents = 0
        self.own(owner, run.made_with)
        self.take()
        self.enter(1, run.initial, now)

    def take(self):
        """Note that the run goes on."""
        self.life += 1
        self.status, self.is_resumable = RunStatus.INTERRUPTED, True
        self.state = self.error = self.ended = None

    def own(self, owner, made_with):
        """Note a new owner."""
        self.owner, self.made_with = owner, made_with

    def enter(self, visit, state, now):
        """Open a visit, if it is not open or over."""
        if visit > self.left:
            self.visits.setdefault(visit, VisitRecord(visit, state, now))

    def record(self, attempt):
        """Note an attempt; what it wrote is of no use once its visit is committed."""
        branch = SINGLE if attempt.branch is None else attempt.branch
        operations = attempt.operations if attempt.visit > self.left else ()
        key = attempt.visit, branch, len(self.attempts)
        self.attempts[key] = attempt._replace(life=self.life, operations=operations)

    def note(self, visit, name, data):
        """Note a fact, or drop it."""
        self.cursors[visit, name] = data
        if data is None:
            del self.cursors[visit, name]

    def commit(self, commit, now):
        """Make a visit's effects, and leave it if it is over."""
        if commit.visit <= self.left:
            raise JournalError(f"visit {commit.visit} of {commit.state} was committed already", reason="duplicate")
        for attempt in commit.records:
            self.record(attempt)
        if commit.is_cleared:
            self.store.clear()
        self.store.update(commit.entries)
        self.store = {key: entry for key, entry in self.store.items() if entry is not None}
        for name, data in commit.cursors.items():
            self.note(commit.visit, name, data)
        for number, output in commit.outputs.items():
            self.compensations[number] = CompensationRecord(number, commit.visit, commit.state, "done", output)
        if commit.undone is not None:
            self.end_compensation(commit.undone, None)
        if commit.next_state is not None:
            self._leave(commit, now)

    def _leave(self, commit, now):
        visit, self.left = commit.visit, commit.visit
        entered = self.visits[visit].entered_at if visit in self.visits else now
        how = commit.next_state, commit.attempts, commit.total, commit.duration, commit.error
        self.visits[visit] = VisitRecord(visit, commit.state, entered, now, *how)
        self.enter(visit + 1, commit.next_state, now)
        self.cursors = {key: data for key, data in self.cursors.items() if key[0] != visit}
        for key in [key for key in self.attempts if key[0] == visit]:
            self.attempts[key] = self.attempts[key]._replace(operations=())

    def intend(self, visit, state, now):
        """Note that something is about to be done."""
        self.enter(visit, state, now)
        self.intents += 1
        self.compensations[self.intents] = CompensationRecord(self.intents, visit, state, "intended")
        return self.intents

    def withdraw(self, number):
        """It was not done."""
        self.compensations.pop(number, None)

    def begin_rollback(self, error):
        """The run goes back."""
        self.rollback = error

    def end_compensation(self, number, error):
        """Something was undone, or could not be."""
        status = "undone" if error is None else "failed"
        self.compensations[number] = self.compensations[number]._replace(status=status, error=error)

    def end(self, status, state, error, is_resumable, now):
        """The run ended."""
        self.status, self.state, self.error = status, state, error
        self.is_resumable, self.ended = is_resumable, now

    # -- what is told of it

    def summary(self, *, is_held):
        """Return its line in the list."""
        is_running = is_held and self.status is RunStatus.INTERRUPTED
        return RunSummary(
            self.new.run_id,
            self.new.workflow,
            self.new.version,
            RunStatus.RUNNING if is_running else self.status,
            self.state,
            self.started,
            self.ended,
            None if self.error is None else f"{self.error.type_name}: {self.error.text}",
            self.owner,
        )

    def history(self, *, is_held):
        """Return all of it without the values."""
        return RunHistory(
            self.summary(is_held=is_held),
            tuple(self.visits[visit] for visit in sorted(self.visits)),
            tuple(self.attempts[key]._replace(value=None, operations=()) for key in sorted(self.attempts)),
            tuple(self.compensations[number]._replace(output=None) for number in sorted(self.compensations)),
        )

    def recovered(self):
        """Return what who goes on has to know."""
        new, last = self.new, max(self.visits)
        return Recovered(
            run_id=new.run_id,
            workflow=new.workflow,
            version=new.version,
            params=new.params,
            made_with=self.made_with,
            status=self.status,
            is_resumable=self.is_resumable,
            life=self.life,
            visits=tuple(self.visits[visit] for visit in sorted(self.visits)),
            store=dict(self.store),
            cursors={name: data for (visit, name), data in self.cursors.items() if visit == last},
            compensations=tuple(self.compensations[number] for number in sorted(self.compensations)),
            rollback=self.rollback,
            state=self.state,
            error=self.error,
            owner=self.owner,
        )


class Written:
    """The ticket of what is written at once."""

    is_durable = True

    def wait(self, timeout=None):
        """Return."""


class LogRun:
    """A run that this process has: its book, and the file that has all the calls."""

    def __init__(self, file, book):
        self._file, self._book = file, book
        self._lock = threading.Lock()
        self.run_id, self.life = book.new.run_id, book.life

    def _say(self, name, *arguments):
        with self._lock:
            if self._file is None:
                raise JournalError(f"run {self.run_id} ended, or was closed here", reason="closed")
            answer = getattr(self._book, name)(*arguments)
            append(self._file, name, arguments)
        return Written() if answer is None else answer

    def enter(self, visit, state):
        """See `RunJournal`, like the others."""
        return self._say("enter", visit, state, time.time())

    def record(self, attempt):
        """Keep an attempt."""
        return self._say("record", attempt)

    def note(self, visit, name, data):
        """Keep a fact."""
        return self._say("note", visit, name, data)

    def commit(self, commit):
        """Commit."""
        self._say("commit", commit, time.time())

    def intend(self, visit, state):
        """Intend."""
        return self._say("intend", visit, state, time.time())

    def withdraw(self, number):
        """Withdraw."""
        return self._say("withdraw", number)

    def begin_rollback(self, error):
        """Go back."""
        self._say("begin_rollback", error)

    def end_compensation(self, number, error=None):
        """End one."""
        self._say("end_compensation", number, error)

    def own(self, token, made_with):
        """Own."""
        return self._say("own", this_process()._replace(token=token), made_with)

    def attempts(self, visit):
        """Yield the attempts of a visit."""
        with self._lock:
            return iter([self._book.attempts[key] for key in sorted(self._book.attempts) if key[0] == visit])

    def end(self, status, *, state=None, error=None, is_resumable=False):
        """End, and let go."""
        self._say("end", status, state, error, is_resumable, time.time())
        self.close()

    def close(self):
        """Let go."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None


class LogJournal:
    """A directory of such files; the lock of a run is one on its file."""

    def __init__(self, directory):
        self._directory = Path(directory)
        self._directory.mkdir(exist_ok=True)

    def begin(self, run):
        """Begin a run."""
        file = self._path(run.run_id).open("a+b")
        try:
            if not is_locked(file) or read(file) is not None:
                raise RunInUseError(
                    f"there is a run {run.run_id} already; resume it, or choose another id", run_id=run.run_id
                )
            book = Book()
            call = run, this_process(), time.time()
            book.begin(*call)
            append(file, "begin", call)
        except BaseException:
            file.close()
            raise
        return LogRun(file, book)

    def take_over(self, run_id, *, workflow, version):
        """Take a run over."""
        book = self._read(run_id)
        file = self._path(run_id).open("a+b")
        try:
            if not is_locked(file):
                pid = book.owner.pid
                raise RunInUseError(f"run {run_id} is in use by process {pid}", run_id=run_id, pid=pid)
            book = read(file, mends=True)
            check(book.new, workflow, version)
            before = book.recovered()
            run = LogRun(file, book)
            if not book.is_resumable:
                run.close()
                return run, before
            book.take()
            append(file, "take", ())
        except BaseException:
            file.close()
            raise
        run.life = book.life
        return run, replace(before, life=book.life)

    def runs(self, *, workflow=None, status=None, since=None):
        """List the runs."""
        found = [self._look(path).summary for path in self._directory.iterdir()]
        found = [
            run
            for run in found
            if workflow in {None, run.workflow}
            and status in {None, run.status}
            and (since is None or run.started_at >= since)
        ]
        return sorted(found, key=lambda run: run.started_at, reverse=True)

    def run(self, run_id):
        """Look at one."""
        self._read(run_id)
        return self._look(self._path(run_id))

    def prune(self, *, older_than=None, keep=None):
        """Remove what has ended."""
        now = time.time()
        ended = [run for run in self.runs() if run.status not in {RunStatus.RUNNING, RunStatus.INTERRUPTED}]
        doomed = [run for run in ended[keep or 0 :] if older_than is None or run.ended_at < now - older_than]
        for run in doomed:
            self._path(run.run_id).unlink()
        return [run.run_id for run in doomed]

    def _path(self, run_id):
        return self._directory / hashlib.sha256(run_id.encode("utf-8", "surrogatepass")).hexdigest()

    def _read(self, run_id):
        path = self._path(run_id)
        if not path.exists():
            raise RunNotFoundError(f"no run {run_id} in {self._directory}", run_id=run_id)
        with path.open("rb") as file:
            return read(file)

    @staticmethod
    def _look(path):
        with path.open("rb") as file:
            is_held = not is_locked(file)
            return read(file).history(is_held=is_held)


def check(new, workflow, version):
    """Refuse another definition."""
    recorded, present = f"{new.workflow} version {new.version}", f"{workflow} version {version}"
    if recorded != present:
        text = f"run {new.run_id} was begun by {recorded}, not by {present}"
        raise VersionMismatchError(text, run_id=new.run_id, recorded=recorded, present=present)


def this_process():
    """Describe this process, as far as it is known without the help of canobatch."""
    return Owner(os.getpid(), 0, "", 0, socket.gethostname())


def is_locked(file):
    """Lock a file if nobody else has; it is free again when it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Pickler(pickle.Pickler):
    """Large data comes as it lies in memory."""

    def reducer_override(self, value):
        """Take a copy of it."""
        return (bytes, (bytes(value),)) if isinstance(value, memoryview) else NotImplemented


def append(file, name, arguments):
    """Write a call, whole, behind what was written whole."""
    buffer = io.BytesIO()
    Pickler(buffer).dump((name, arguments))
    data = buffer.getvalue()
    file.seek(0, os.SEEK_END)
    file.write(len(data).to_bytes(8, "little") + data)
    file.flush()


def read(file, *, mends=False):
    """Return the book of a file, None if it has no call; what was not written to its end is no call."""
    book, end = None, 0
    file.seek(0)
    while len(size := file.read(8)) == 8:
        data = file.read(int.from_bytes(size, "little"))
        if len(data) < int.from_bytes(size, "little"):
            break
        name, arguments = pickle.loads(data)
        book = book or Book()
        getattr(book, name)(*arguments)
        end = file.tell()
    if mends:
        file.truncate(end)
    return book
