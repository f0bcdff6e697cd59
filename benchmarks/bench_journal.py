"""The journal: a branch's outcome made durable, alone and in groups; beside it a bare insert and commit."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side, Target

#: A value as small tasks return it.
VALUE = b"x" * 100

_BARE = "bare sqlite3"


def counts(options: Options) -> tuple[int, int]:
    """Return how many outcomes a repeat records alone, and how many in groups."""
    return (200, 2_000) if options.quick else (1_000, 10_000)


def journal_side(durable: Literal["process", "power"]) -> Callable[[Options], AbstractContextManager[Measure]]:
    """Return a side that records outcomes of a split in a journal that is as durable as said."""

    @contextmanager
    def prepare(options: Options) -> Iterator[Measure]:
        from canobatch.effects import entry_of
        from canobatch.journal import AttemptRecord, Commit, NewRun, SqliteJournal

        alone, grouped = counts(options)
        directory = tempfile.mkdtemp()
        numbers = itertools.count()
        journal = SqliteJournal(directory, durable=durable)

        def attempt(visit: int, branch: int) -> AttemptRecord:
            return AttemptRecord(visit, branch, 1, "succeeded", VALUE, (), None, 1.0, 0.1, 0.1, None, b"12345678")

        def measure() -> Sample:
            run_id = f"run {next(numbers)}"
            run = journal.begin(NewRun(run_id, "benchmark", 0, "A"))
            singles, commits = [], []
            for branch in range(alone):
                started = time.perf_counter()
                run.record(attempt(1, branch)).wait()
                singles.append(time.perf_counter() - started)
            for visit in range(1, alone + 1):
                commit = Commit(visit, "A", "A", entries={"key": entry_of(visit)})
                started = time.perf_counter()
                run.commit(commit)
                commits.append(time.perf_counter() - started)
            started = time.perf_counter()
            for branch in range(grouped):
                ticket = run.record(attempt(alone + 1, branch))
            ticket.wait()
            elapsed = time.perf_counter() - started
            run.close()
            (path,) = journal.directory.glob(f"runs/{run_id.replace(' ', '%20')}/run.db")
            size = path.stat().st_size
            started = time.perf_counter()
            run, _ = journal.take_over(run_id, workflow="benchmark", version=0)
            found = sum(1 for _ in run.attempts(alone + 1))
            resumed = time.perf_counter() - started
            run.close()
            assert found == grouped
            return {
                "alone": statistics.median(singles) * 1e6,
                "grouped": elapsed / grouped * 1e6,
                "commit": statistics.median(commits) * 1e6,
                "resume": resumed / (alone + grouped) * 1e6,
                "size": size / (2 * alone + grouped),
            }

        try:
            yield measure
        finally:
            shutil.rmtree(directory)

    return prepare


@contextmanager
def bare_side(options: Options) -> Iterator[Measure]:
    """One table, one connection, no thread: an insert and its commit, and many inserts in one transaction."""
    alone, grouped = counts(options)
    directory = tempfile.mkdtemp()
    connection = sqlite3.connect(f"{directory}/bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, started REAL, duration REAL, value BLOB)")

    def measure() -> Sample:
        singles = []
        for _ in range(alone):
            started = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t VALUES (NULL, ?, ?, ?)", (1.0, 0.1, VALUE))
            connection.execute("COMMIT")
            singles.append(time.perf_counter() - started)
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        for _ in range(grouped):
            connection.execute("INSERT INTO t VALUES (NULL, ?, ?, ?)", (1.0, 0.1, VALUE))
        connection.execute("COMMIT")
        elapsed = time.perf_counter() - started
        return {"alone": statistics.median(singles) * 1e6, "grouped": elapsed / grouped * 1e6}

    try:
        yield measure
    finally:
        connection.close()
        shutil.rmtree(directory)


ROW = Row(
    name="journal",
    title="durable record of a branch",
    figures=(
        Figure("alone", "per branch, alone", "µs", (Target(100.0),)),
        Figure("grouped", "per branch, in groups", "µs", (Target(20.0),)),
        Figure("commit", "per commit of a state", "µs", (Target(100.0),)),
        Figure("resume", "to take over, per recorded branch", "µs"),
        Figure("size", "in the file, per branch or state", "bytes"),
    ),
    sides=(
        Side(OURS, journal_side("process"), Kind.OURS),
        Side(_BARE, bare_side, Kind.BOUND),
        Side("canobatch, against power loss", journal_side("power"), Kind.VARIANT, every=3),
    ),
    rounds=9,
    quick_rounds=3,
    remark="Bare sqlite3 has no second thread, no order to keep and no digests; a commit of a state changes four rows.",
)
