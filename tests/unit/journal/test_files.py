"""The files of a journal: who may read them, what is refused, what is left of them."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from canobatch import _faults, _sqlite
from canobatch.effects import entry_of
from canobatch.errors import ConfigurationError, JournalError, RunNotFoundError
from canobatch.journal import Commit, RunStatus, SqliteJournal
from tests.support.runs import LARGE, entries, new_run, put, success, take_over


@pytest.fixture
def journal(tmp_path):
    """A journal in a directory that does not exist yet."""
    return SqliteJournal(tmp_path / "a" / "home")


def paths(journal):
    """Return the names of all files, from the journal's directory."""
    return sorted(str(path.relative_to(journal.directory)) for path in journal.directory.rglob("*") if path.is_file())


def query(path, *statements):
    """Execute statements on a database by hand."""
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_nobody_else_may_read_a_file(journal):
    """Every file is 0600 and every directory 0700, whatever the umask."""
    before = os.umask(0)
    try:
        journal.begin(new_run("ended")).end(RunStatus.COMPLETED)
        run = journal.begin(new_run())
        run.record(success(1, 0, LARGE)).wait()
        found = {path: stat.S_IMODE(path.stat().st_mode) for path in journal.directory.rglob("*")}
    finally:
        os.umask(before)
    run.close()
    assert {path.name for path in found} >= {"run.db", "run.db-wal", "r.lock", "1-1"}
    assert {path: mode for path, mode in found.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}


def test_a_run_that_nobody_has_is_one_plain_file(journal):
    """Let go of, a run's database is in no write-ahead mode, so that it can be read anywhere."""
    run = journal.begin(new_run())
    run.record(success(1, 0)).wait()
    assert "runs/r/run.db-wal" in paths(journal)
    run.end(RunStatus.FAILED, is_resumable=True)
    assert [path for path in paths(journal) if path.startswith("runs")] == ["runs/r/run.db"]
    again, _ = take_over(journal)
    again.record(success(1, 0)).wait()
    assert "runs/r/run.db-wal" in paths(journal)
    again.close()
    assert "runs/r/run.db-wal" not in paths(journal)


@pytest.mark.parametrize(("durable", "level"), [("process", 0), ("power", 2)])
def test_the_database_is_as_durable_as_asked(durable, level, tmp_path):
    """A run's database has a write-ahead log, and waits for the disk only against a loss of power."""
    journal = SqliteJournal(tmp_path, durable=durable)
    run = journal.begin(new_run())
    connection = run._writer._database._connection
    run._writer.flush()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
    run.close()


@pytest.mark.parametrize("durable", ["process", "power"])
def test_a_log_stays_short(durable, tmp_path, monkeypatch):
    """A log that has grown long is written back now and then, and from then on that waits for the disk."""
    monkeypatch.setattr(_sqlite, "_LONG_LOG", 1 << 20)
    journal = SqliteJournal(tmp_path, durable=durable)
    run = journal.begin(new_run())
    log = tmp_path / "runs" / "r" / "run.db-wal"
    for branch in range(2000):
        run.record(success(1, branch, b"x" * 30_000)).wait() if branch % 50 == 0 else run.record(
            success(1, branch, b"x" * 30_000)
        )
    run._writer.flush()
    assert log.stat().st_size < 16 << 20 < (tmp_path / "runs" / "r" / "run.db").stat().st_size
    connection = run._writer._database._connection
    assert connection.execute("PRAGMA synchronous").fetchone() == ({"process": 1, "power": 2}[durable],)
    assert sum(1 for _ in run.attempts(1)) == 2000
    run.close()


def test_a_wrong_durable_is_refused(tmp_path):
    """There are two ways to be durable."""
    with pytest.raises(ConfigurationError, match='"process" or "power"'):
        SqliteJournal(tmp_path, durable="disk")


@pytest.mark.parametrize("directory", [None, 3, b"runs"])
def test_a_directory_that_is_no_path_is_refused(directory):
    """At once, not with the first run."""
    with pytest.raises(ConfigurationError, match="directory must be a path"):
        SqliteJournal(directory)


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_file_where_the_journal_should_be_is_named(tmp_path, below):
    """It is left as it is."""
    place = tmp_path / "file"
    place.write_text("mine")
    with pytest.raises(JournalError, match="is a file, or below one") as caught:
        SqliteJournal(place / below).begin(new_run())
    assert caught.value.reason == "foreign"
    assert place.read_text() == "mine"


def test_values_are_freed_when_nothing_refers_to_them(journal):
    """A large value's file goes when its key is replaced, its operation is committed, its run is pruned."""
    run = journal.begin(new_run())
    run.record(success(1, 0, b"", operations=(put("x", LARGE),)))
    run.record(success(1, 1, LARGE))
    run.note(1, "cursor", LARGE).wait()
    assert len([path for path in paths(journal) if "values" in path]) == 3
    run.commit(Commit(1, "LOAD", "AGAIN", entries=entries(x=LARGE, y=LARGE)))
    # The value of branch 1, x, y.
    assert len([path for path in paths(journal) if "values" in path]) == 3
    run.commit(Commit(2, "AGAIN", "AGAIN", entries={**entries(x=1), "y": None}))
    assert len([path for path in paths(journal) if "values" in path]) == 1
    run.end(RunStatus.COMPLETED)
    assert journal.prune() == ["r"]
    assert paths(journal) == []


def test_a_value_that_an_operation_puts_is_written_once(journal):
    """The commit of a visit takes the file of the operation over: the same bytes are not written again."""
    run = journal.begin(new_run())
    entry = entry_of(LARGE)
    run.record(success(1, 0, operations=(("put", "x", tuple(entry)), ("put", "gone", put("y", LARGE)[2])))).wait()
    values = journal.directory / "runs" / "r" / "values"
    assert sorted(path.name for path in values.iterdir()) == ["1-1", "1-2"]
    run.commit(Commit(1, "LOAD", "AGAIN", entries={"x": entry}))
    assert [path.name for path in values.iterdir()] == ["1-1"]
    run.close()
    again, recovered = take_over(journal)
    assert recovered.store == {"x": entry}
    again.commit(Commit(2, "AGAIN", "AGAIN", entries={"x": None}))
    assert list(values.iterdir()) == []
    again.close()


def test_a_visit_that_goes_on_keeps_the_files_of_its_operations(journal):
    """Committed in between, the operations may still be asked for: the store gets a file of its own."""
    run = journal.begin(new_run())
    entry = entry_of(LARGE)
    operation = ("put", "x", tuple(entry))
    run.record(success(1, 0, operations=(operation,)))
    run.commit(Commit(1, "LOAD", None, entries={"x": entry}))
    run.commit(Commit(1, "LOAD", None, entries={"x": entry_of(1)}))
    run.close()
    again, recovered = take_over(journal)
    assert recovered.store == {"x": entry_of(1)}
    assert [attempt.operations for attempt in again.attempts(1)] == [(operation,)]
    again.commit(Commit(1, "LOAD", "AGAIN"))
    assert list((journal.directory / "runs" / "r" / "values").iterdir()) == []
    again.close()


def test_what_a_crash_left_is_swept(journal):
    """A value whose row was never committed is deleted by whoever takes the run over; the others stay."""
    run = journal.begin(new_run())
    run.record(success(1, 0, LARGE))
    run.close()
    values = journal.directory / "runs" / "r" / "values"
    (values / "1-7").write_bytes(b"without a row")
    (values / "1-8").write_bytes(b"half")
    again, _ = take_over(journal)
    assert [path.name for path in values.iterdir()] == ["1-1"]
    assert [attempt.value for attempt in again.attempts(1)] == [LARGE]
    again.close()


def test_a_newer_schema_is_refused_and_left_alone(journal):
    """A database of a newer version is neither read nor changed, and the error says to upgrade."""
    journal.begin(new_run()).close()
    path = journal.directory / "runs" / "r" / "run.db"
    query(path, "UPDATE canobatch_schema SET version = 99", "CREATE TABLE later (x)")
    before = path.read_bytes()
    for look in (lambda: take_over(journal), lambda: journal.run("r"), lambda: journal.begin(new_run())):
        with pytest.raises(JournalError, match="upgrade canobatch") as caught:
            look()
        assert (caught.value.reason, caught.value.path) == ("newer", str(path))
    assert path.read_bytes() == before
    assert [run.status for run in journal.runs()] == [RunStatus.DAMAGED]


def test_a_foreign_database_is_refused_and_left_alone(journal):
    """A database of another program in our place is not touched."""
    journal.directory.mkdir(parents=True)
    path = journal.directory / "home.db"
    query(path, "CREATE TABLE precious (x)", "INSERT INTO precious VALUES (1)")
    before = path.read_bytes()
    mode = path.stat().st_mode
    with pytest.raises(JournalError, match="not a database of canobatch") as caught:
        journal.runs()
    assert caught.value.reason == "foreign"
    journal.begin(new_run()).end(RunStatus.COMPLETED)
    assert (path.read_bytes(), path.stat().st_mode) == (before, mode)


def test_components_share_a_file(tmp_path):
    """Tables of different owners in one file have versions of their own."""
    path = tmp_path / "home.db"
    connection = _sqlite.create(path)
    one, two = ("CREATE TABLE a (x)",), ("CREATE TABLE b (x)",)
    with _sqlite.transaction(connection):
        _sqlite.migrate(connection, path, "first", [one])
    with _sqlite.transaction(connection):
        _sqlite.migrate(connection, path, "second", [two])
        _sqlite.migrate(connection, path, "first", [one, ("CREATE TABLE c (x)",)])
    assert _sqlite.schema_version(connection, path, "first", 2) == 2
    assert _sqlite.schema_version(connection, path, "second", 1) == 1
    assert _sqlite.schema_version(connection, path, "third", 1) == 0
    connection.close()


def test_a_transaction_is_whole_or_nothing(tmp_path):
    """What raises inside a transaction leaves no row behind."""
    connection = _sqlite.create(tmp_path / "x.db")
    connection.execute("CREATE TABLE t (x)")

    def fail():
        with _sqlite.transaction(connection):
            connection.execute("INSERT INTO t VALUES (1)")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    connection.close()


def test_a_run_that_never_began_is_not_found(journal, monkeypatch):
    """Killed between its files and its first row, a run is no run: not listed, not resumed, and its id is free."""

    class Crash(BaseException):
        pass

    def crash(name):
        if name == "journal.begin.created":
            raise Crash

    monkeypatch.setattr(_faults, "hook", crash)
    with pytest.raises(Crash):
        journal.begin(new_run())
    monkeypatch.setattr(_faults, "hook", None)
    assert (journal.directory / "runs" / "r" / "run.db").exists()
    assert journal.runs() == []
    with pytest.raises(RunNotFoundError, match="begin it anew"):
        take_over(journal)
    with pytest.raises(RunNotFoundError):
        journal.run("r")
    run = journal.begin(new_run())
    assert run.life == 1
    run.close()


def test_a_forked_child_has_no_part_in_a_run(journal):
    """A child that was forked from the owner can write nothing, and disturbs nothing by ending."""
    run = journal.begin(new_run())
    run.record(success(1, 0)).wait()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run.record(success(1, 1))
        except JournalError as error:
            code = 0 if error.reason == "closed" else 2
        run.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    run.record(success(1, 2)).wait()
    assert [attempt.branch for attempt in run.attempts(1)] == [0, 2]
    run.close()


def test_every_point_is_documented(journal, monkeypatch):
    """The fault points that are passed are the ones in the module's table, and each can be reached."""
    seen = []
    monkeypatch.setattr(_faults, "hook", seen.append)
    run = journal.begin(new_run())
    run.record(success(1, 0, LARGE)).wait()
    run.close()
    run, _ = take_over(journal)
    run.end(RunStatus.COMPLETED)
    journal.prune()
    listed = [line.split()[0] for line in _faults.__doc__.splitlines() if line.startswith("journal.")]
    assert sorted(set(seen)) == sorted(listed)


def test_reading_creates_nothing(tmp_path):
    """A journal that was only looked at leaves no file."""
    journal = SqliteJournal(tmp_path / "nothing")
    assert journal.runs() == []
    assert journal.prune() == []
    with pytest.raises(RunNotFoundError):
        journal.run("r")
    with pytest.raises(RunNotFoundError):
        take_over(journal)
    assert list(Path(tmp_path).iterdir()) == []


def test_large_parameters_have_a_file(journal):
    """They are written once, not with every change of the run's row; a damaged file is an error."""
    run = journal.begin(new_run(params=LARGE))
    run.own("token", "").wait()
    run.close()
    (path,) = (journal.directory / "runs" / "r" / "values").iterdir()
    assert path.stat().st_size == len(LARGE)
    assert (journal.directory / "runs" / "r" / "run.db").stat().st_size < len(LARGE) / 4
    for _ in range(2):
        run, recovered = take_over(journal)
        assert recovered.params == LARGE
        run.close()
    path.write_bytes(LARGE[:-1] + b"?")
    assert journal.run("r").summary.status is RunStatus.INTERRUPTED
    with pytest.raises(JournalError, match="does not hold what was written"):
        take_over(journal)
    path.write_bytes(LARGE)
    run, recovered = take_over(journal)
    assert recovered.params == LARGE
    run.end(RunStatus.COMPLETED)
    assert journal.prune() == ["r"]
    assert not path.exists()
