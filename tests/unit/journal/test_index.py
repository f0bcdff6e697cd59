"""The index of runs: it is only for speed, and is never believed over a run's own file."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys

import pytest

from canobatch import _sqlite
from canobatch.errors import JournalError
from canobatch.journal import RunStatus, SqliteJournal, sqlite
from canobatch.journal.home import Home
from tests.support.runs import new_run, take_over


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A journal with an index from the first run on."""
    monkeypatch.setattr(sqlite, "_WORTH_INDEXING", 1)
    return SqliteJournal(tmp_path / "home")


def end(journal, run_id="r", **facts):
    """Begin a run and end it."""
    journal.begin(new_run(run_id)).end(facts.pop("status", RunStatus.COMPLETED), **facts)


def opened(monkeypatch):
    """Return a list that gets the path of each database that is opened for reading."""
    seen = []
    connect = _sqlite.connect_readonly
    monkeypatch.setattr(_sqlite, "connect_readonly", lambda path: seen.append(path) or connect(path))
    return seen


def query(path, statement, *values):
    """Execute a statement on a database by hand."""
    connection = sqlite3.connect(path)
    with connection:
        found = connection.execute(statement, values).fetchall()
    connection.close()
    return found


def test_a_run_that_ended_is_read_once(journal, monkeypatch):
    """The second list opens nothing but those that may have changed."""
    end(journal, "one", state="LOAD")
    end(journal, "two", status=RunStatus.FAILED, is_resumable=True)
    journal.begin(new_run("three")).close()
    first = journal.runs()
    seen = opened(monkeypatch)
    assert SqliteJournal(journal.directory).runs() == first
    assert [path.parent.name for path in seen] == ["three"]
    assert [run.status for run in first] == [RunStatus.INTERRUPTED, RunStatus.FAILED, RunStatus.COMPLETED]


def test_few_runs_are_not_worth_an_index(tmp_path):
    """A list of some runs writes nothing; one of many does."""
    journal = SqliteJournal(tmp_path)
    end(journal)
    assert len(journal.runs()) == 1
    assert not (tmp_path / "home.db").exists()
    for number in range(40):
        end(journal, f"r{number}")
    assert len(journal.runs()) == 41
    assert query(tmp_path / "home.db", "SELECT count(*) FROM runs") == [(41,)]


def test_a_run_that_is_resumed_is_read_again(journal):
    """Whatever the index says of it: running, interrupted, and how it ended at last."""
    end(journal, status=RunStatus.FAILED, is_resumable=True)
    listed = [journal.runs()[0].status]
    run, _ = take_over(journal)
    listed.append(journal.runs()[0].status)
    run.close()
    listed.append(journal.runs()[0].status)
    run, _ = take_over(journal)
    listed.append(journal.runs()[0].status)
    run.end(RunStatus.COMPLETED)
    listed.append(journal.runs()[0].status)
    assert listed == ["failed", "running", "interrupted", "running", "completed"]


def test_another_run_of_the_same_id_is_read(journal):
    """A run that was pruned leaves nothing that a later one of its id could be taken for."""
    end(journal, state="LOAD")
    end(journal, "other")
    assert len(journal.runs()) == 2
    assert sorted(journal.prune()) == ["other", "r"]
    end(journal, state="SHIP")
    assert [(run.run_id, run.state) for run in journal.runs()] == [("r", "SHIP")]
    # And what is gone goes from the index too.
    assert query(journal.directory / "home.db", "SELECT name FROM runs") == [("r",)]


def test_a_run_that_was_put_back_from_a_copy_is_read(journal, tmp_path):
    """The index belongs to the files that were there."""
    end(journal, status=RunStatus.FAILED, is_resumable=True)
    subprocess.run(["cp", "-a", journal.directory / "runs" / "r", tmp_path / "copy"], check=True)
    run, _ = take_over(journal)
    run.end(RunStatus.COMPLETED)
    assert journal.runs()[0].status is RunStatus.COMPLETED
    subprocess.run(["rm", "-r", journal.directory / "runs" / "r"], check=True)
    subprocess.run(["cp", "-a", tmp_path / "copy", journal.directory / "runs" / "r"], check=True)
    assert journal.runs()[0].status is RunStatus.FAILED


def test_runs_without_an_index_are_listed(journal):
    """Without it the list is the same."""
    end(journal, "one", state="LOAD")
    journal.begin(new_run("two")).close()
    before = journal.runs()
    for name in ("home.db", "home.db-journal"):
        (journal.directory / name).unlink()
    assert journal.runs() == before
    assert [run.run_id for run in before] == ["two", "one"]


def test_an_index_that_cannot_be_written_is_done_without(journal, monkeypatch):
    """A list is none the worse for it."""
    end(journal)

    def fail(*_):
        raise JournalError("home.db cannot be written", path="home.db", reason="readonly")

    monkeypatch.setattr(Home, "index_also", fail)
    assert [run.run_id for run in journal.runs()] == ["r"]


def test_a_newer_index_is_refused(journal):
    """An index of a newer version is not read; a run that ends meanwhile says so in its own database."""
    end(journal)
    journal.runs()
    query(journal.directory / "home.db", "UPDATE canobatch_schema SET version = 99 WHERE component = 'runs'")
    with pytest.raises(JournalError, match=r"home\.db has version 99"):
        journal.runs()
    end(journal, "other")
    assert journal.run("other").summary.status is RunStatus.COMPLETED


def test_a_killed_writer_of_the_index_disturbs_nobody(journal):
    """What was half-written to the index when its writer was killed is rolled back by the next reader."""
    end(journal)
    journal.runs()
    program = """if True:
        import os, signal, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("PRAGMA journal_mode=PERSIST")
        connection.execute("PRAGMA cache_size=1")
        connection.execute("PRAGMA cache_spill=1")
        connection.execute("BEGIN IMMEDIATE")
        for number in range(500):
            connection.execute("INSERT INTO runs VALUES (?, zeroblob(2000), 0)", (f"half {number}",))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", program, journal.directory / "home.db"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [run.run_id for run in journal.runs()] == ["r"]


def test_flips_in_the_index_are_found(journal):
    """A list of runs from a damaged index is an error, or right."""
    chance = random.Random(5)
    for index in range(3):
        end(journal, f"r{index}")
    right = journal.runs()
    path = journal.directory / "home.db"
    whole = path.read_bytes()
    used = [at for at in range(len(whole)) if whole[at]]
    errors = []
    for _ in range(60):
        data = bytearray(whole)
        data[chance.choice(used)] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            found = journal.runs()
        except JournalError as error:
            errors.append(str(error))
        else:
            assert found == right
    assert len(errors) > 10
    assert [error for error in errors if str(path) not in error] == []


def test_a_truncated_index_is_found(journal):
    """The same for an index that was cut, at any place, and for one whose own journal was."""
    chance = random.Random(6)
    for index in range(3):
        end(journal, f"r{index}")
    right = journal.runs()
    whole = {name: (journal.directory / name).read_bytes() for name in ("home.db", "home.db-journal")}
    errors = []
    for number in range(20):
        for name, data in whole.items():
            (journal.directory / name).write_bytes(data)
        path = journal.directory / ("home.db" if number % 4 else "home.db-journal")
        with path.open("r+b") as file:
            file.truncate(chance.choice([0, 1, 100, 4096, chance.randrange(path.stat().st_size)]))
        try:
            found = journal.runs()
        except JournalError as error:
            errors.append(str(error))
        else:
            assert found == right
    assert errors
    assert [error for error in errors if str(journal.directory / "home.db") not in error] == []


def test_an_index_of_an_earlier_version_is_made_anew(journal):
    """It lacks what tells whether a run is still the one that was read."""
    end(journal)
    right = journal.runs()
    path = journal.directory / "home.db"
    query(path, "UPDATE canobatch_schema SET version = 1 WHERE component = 'runs'")
    query(path, "UPDATE runs SET facts = x'00'")
    assert [journal.runs(), journal.runs()] == [right, right]
    assert query(path, "SELECT version FROM canobatch_schema") == [(2,)]
