"""A damaged file is an error or a true state of the run, never a wrong one."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
from contextlib import closing
from itertools import pairwise

import pytest

from canobatch.errors import JournalError, RunNotFoundError
from canobatch.journal import RunStatus, SqliteJournal
from tests.support.runs import VISITS, essence, new_run, story, take_over, truths


def copy(source, target):
    """Copy a home by another process: to close a database's file here would drop this process's locks on it."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-r", source, target], check=True)


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Homes of one run each: its owner killed early, late, and after closing it; and ended."""
    places = {}
    for name, steps in (("early", 4), ("middle", 6), ("late", 99), ("closed", 99), ("ended", 99)):
        home = tmp_path_factory.mktemp(name)
        journal = SqliteJournal(home / "live")
        run = journal.begin(new_run())
        for _ in zip(range(steps), story(run), strict=False):
            pass
        if name == "closed":
            run.close()
        elif name == "ended":
            run.end(RunStatus.FAILED, state="SHIP", is_resumable=True)
        copy(home / "live", home / "dead")
        run.close()
        places[name] = home / "dead"
    return places


def named(error, path):
    """Return "error" if it names a file of ``path``."""
    assert str(path) in str(error)
    return "error"


def look(home, known):
    """Take the run of ``home`` over; return "error" or "truth", or fail."""
    journal = SqliteJournal(home)
    try:
        history = journal.run("r")
    except JournalError:
        history = None
    try:
        run, recovered = take_over(journal)
    except JournalError as error:
        return named(error, home)
    try:
        attempts = [list(run.attempts(visit)) for visit in VISITS]
    except JournalError as error:
        # A value's file: looked at when the value is.
        return named(error, home)
    finally:
        run.close()
    found = essence(recovered)
    found.update(status=RunStatus.INTERRUPTED, state=None)
    assert (found, attempts) in known
    if history is not None:
        assert len(history.visits) == len(recovered.visits)
    return "truth"


def read_all(journal):
    """Take the run over and read all its values."""
    run, _ = take_over(journal)
    with closing(run):
        return [list(run.attempts(visit)) for visit in VISITS]


def files_of(home):
    """Return the run's files, but for what is made anew from the others."""
    return sorted(path for path in (home / "runs").rglob("*") if path.is_file() and not path.name.endswith("-shm"))


@pytest.mark.parametrize("place", ["early", "late", "closed", "ended"])
def test_an_undamaged_copy_is_a_truth(place, homes, tmp_path):
    """What a killed owner left is found as it was."""
    copy(homes[place], tmp_path / "home")
    assert look(tmp_path / "home", truths()[-1:] if place != "early" else truths()) == "truth"


@pytest.mark.parametrize("place", ["early", "late", "closed", "ended"])
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_are_found(place, seed, homes, tmp_path):
    """One byte changed anywhere: an error that names the file, or a state the run was in."""
    chance, known = random.Random(f"{place} {seed}"), truths()
    answers = []
    for _ in range(25):
        copy(homes[place], tmp_path / "home")
        files = files_of(tmp_path / "home")
        path = chance.choice([one for one in files if one.parent.name != "values"] + files[:1])
        data = bytearray(path.read_bytes())
        # Most of a page is empty: half of the flips go to bytes that are not 0.
        position = chance.randrange(len(data))
        used = [at for at in range(position, len(data)) if data[at]]
        if chance.random() < 0.7 and used:
            position = used[0]
        data[position] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        answers.append(look(tmp_path / "home", known))
    assert "error" in answers or place == "early"


@pytest.mark.parametrize("place", ["early", "late", "closed", "ended"])
def test_truncated_files_are_found(place, homes, tmp_path):
    """A file cut at any place: an error, or a state the run was in."""
    chance, known = random.Random(place), truths()
    for _ in range(25):
        copy(homes[place], tmp_path / "home")
        path = chance.choice(files_of(tmp_path / "home"))
        with path.open("r+b") as file:
            file.truncate(chance.choice([0, 1, 100, chance.randrange(path.stat().st_size)]))
        look(tmp_path / "home", known)


def test_a_page_of_another_time_is_found(homes, tmp_path):
    """A page that is whole but stale, as a lost write leaves it, is no answer."""
    copy(homes["closed"], tmp_path / "home")
    (path,) = [one for one in files_of(tmp_path / "home") if one.name == "run.db"]
    whole, known = path.read_bytes(), truths()
    pages = range(0, len(whole) + 1, 4096)
    for start, end in pairwise(pages):
        copy(homes["closed"], tmp_path / "home")
        path.write_bytes(whole[:start] + bytes(4096) + whole[end:])
        look(tmp_path / "home", known)


TABLES = ["run", "visits", "attempts", "operations", "store", "cursors", "compensations"]


@pytest.mark.parametrize("table", TABLES)
def test_a_missing_row_is_found(table, homes, tmp_path):
    """A row that was lost leaves no whole of the rest, whichever it was."""
    found = 0
    for place in ("early", "middle", "closed"):
        copy(homes[place], tmp_path / "home")
        path = tmp_path / "home" / "runs" / "r" / "run.db"
        lost = by_hand(path, f"DELETE FROM {table} WHERE digest = (SELECT digest FROM {table} LIMIT 1) RETURNING 1")
        if lost:
            found += 1
            journal = SqliteJournal(tmp_path / "home")
            for call in (lambda: take_over(journal), lambda: journal.run("r")):
                with pytest.raises(JournalError) as caught:
                    call()
                assert caught.value.reason == "corrupt"
    assert found


def test_a_row_of_another_time_is_found(homes, tmp_path):
    """A row that was once true, and whole, is no answer later."""
    (row,) = by_hand(homes["early"] / "runs" / "r" / "run.db", "SELECT * FROM store WHERE key = CAST('texts' AS BLOB)")
    copy(homes["closed"], tmp_path / "home")
    path = tmp_path / "home" / "runs" / "r" / "run.db"
    by_hand(path, "INSERT INTO store VALUES (?,?,?,?,?,?)", *row)
    with pytest.raises(JournalError, match="of another time"):
        take_over(SqliteJournal(tmp_path / "home"))


def by_hand(path, statement, *values):
    """Execute a statement on a database."""
    connection = sqlite3.connect(path)
    with connection:
        found = connection.execute(statement, values).fetchall()
    connection.close()
    return found


def test_a_value_s_file_is_checked(homes, tmp_path):
    """A large value that was changed, cut or lost is an error that names its file."""
    for damage in (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), lambda path: path.unlink()):
        copy(homes["closed"], tmp_path / "home")
        for path in (tmp_path / "home" / "runs" / "r" / "values").iterdir():
            damage(path)
        assert look(tmp_path / "home", truths()) == "error"


def test_damage_of_one_run_hides_no_other(homes, tmp_path):
    """A run that cannot be read is listed as damaged, beside the others."""
    copy(homes["closed"], tmp_path / "home")
    (tmp_path / "home" / "runs" / "r" / "run.db").write_bytes(b"not a database at all" * 1000)
    journal = SqliteJournal(tmp_path / "home")
    journal.begin(new_run("other")).close()
    assert [(run.run_id, run.status) for run in journal.runs()] == [
        ("other", RunStatus.INTERRUPTED),
        ("r", RunStatus.DAMAGED),
    ]
    with pytest.raises(JournalError) as caught:
        journal.begin(new_run())
    assert caught.value.reason == "corrupt"
    assert (tmp_path / "home" / "runs" / "r" / "run.db").read_bytes().startswith(b"not a database")


def test_an_emptied_database_is_not_overwritten(homes, tmp_path):
    """A run whose database lost everything cannot be begun anew over its values."""
    copy(homes["closed"], tmp_path / "home")
    (tmp_path / "home" / "runs" / "r" / "run.db").write_bytes(b"")
    with pytest.raises(JournalError, match="lost all that it held"):
        SqliteJournal(tmp_path / "home").begin(new_run())
    assert list((tmp_path / "home" / "runs" / "r" / "values").iterdir())


def test_what_a_crash_of_the_machine_leaves_of_a_log_is_a_truth(homes, tmp_path):
    """Pages of the log that never reached the disk cost what came after them, and nothing is damaged."""
    chance, known = random.Random(11), truths()
    for _ in range(40):
        copy(homes["late"], tmp_path / "home")
        (path,) = [one for one in files_of(tmp_path / "home") if one.name == "run.db-wal"]
        data = bytearray(path.read_bytes())
        # Whatever the order in which the kernel wrote them.
        for page in chance.sample(range(1, len(data) // 4096 + 1), chance.randint(1, 3)):
            data[page * 4096 : (page + 1) * 4096] = bytes(len(data[page * 4096 : (page + 1) * 4096]))
        path.write_bytes(data)
        journal = SqliteJournal(tmp_path / "home")
        try:
            history = journal.run("r")
        except RunNotFoundError:
            continue
        assert history.summary.status is RunStatus.INTERRUPTED
        if look(tmp_path / "home", known) == "error":
            # The file of a value that was replaced later may be gone already.
            with pytest.raises(JournalError, match="file is missing"):
                read_all(journal)
