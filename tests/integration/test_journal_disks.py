"""Full disks and read-only places: a clear error, and nothing half-written is read as whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: What each of these scripts begins with.
HEAD = """
import os, resource, sys
from canobatch.errors import JournalError
from canobatch.journal import Commit, RunStatus, SqliteJournal
from tests.support.runs import LARGE, entries, new_run, put, success, take_over

place = sys.argv[1]
journal = SqliteJournal(place)

def refused(reason, call):
    try:
        call()
    except JournalError as error:
        assert error.reason == reason, (error.reason, str(error))
        assert place in str(error)
        print(error)
        return
    raise AssertionError("nothing was raised")
"""

#: Records until it is full; then frees space and looks.
FILL = """
run = journal.begin(new_run())
run.commit(Commit(1, "LOAD", "COUNT", entries=entries(x=1)))
tickets = []

def fill():
    for index in range(100_000):
        tickets.append(run.record(success(2, index, b"x" * size)))
        if size > 10_000 or index % 10 == 9:
            tickets[-1].wait()

refused(reason, fill)
refused(reason, lambda: run.commit(Commit(2, "COUNT", "DONE")))
refused(reason, lambda: run.note(2, "step", b""))
refused(reason, lambda: run.end(RunStatus.FAILED))
run.close()
durable = sum(ticket.is_durable for ticket in tickets)
assert 0 < durable < len(tickets), (durable, len(tickets))
for run in journal.runs():
    assert run.status is RunStatus.INTERRUPTED
make_room()
again, recovered = take_over(journal)
found = list(again.attempts(2))
assert [one.branch for one in found] == list(range(len(found)))
assert len(found) == durable, (len(found), durable)
assert all(one.value == b"x" * size for one in found)
assert recovered.store == entries(x=1)
again.record(success(2, 100_000)).wait()
again.end(RunStatus.COMPLETED)
print("done")
"""


def run_in_namespace(tmp_path, mounts, source):
    """Run a script in a mount namespace of its own, or skip where that is not allowed."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("mounts need unshare and root")
    script = tmp_path / "script.py"
    script.write_text(source)
    command = f"{mounts} && exec {sys.executable} {script} {tmp_path}/mount/home"
    (tmp_path / "mount").mkdir()
    probe = ["unshare", "-m", "sh", "-c", mounts.format(place=tmp_path / "mount")]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", command.format(place=tmp_path / "mount")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("size", [3000, 1 << 20], ids=["rows", "files"])
def test_a_full_disk_is_a_clear_error(size, tmp_path):
    """What was durable before the disk was full is there; nothing else is; with room the run goes on."""
    disk = f"""
size, reason = {size}, "full"
ballast = os.path.dirname(place) + "/ballast"
with open(ballast, "wb") as file:
    file.write(bytes(1 << 21))
make_room = lambda: os.unlink(ballast)
"""
    source = HEAD + disk + FILL
    done = run_in_namespace(tmp_path, "mount -t tmpfs -o size=8m tmpfs {place}", source)
    assert done.returncode == 0, done.stderr
    assert "no space left" in done.stdout
    assert done.stdout.splitlines()[-1] == "done"


def test_a_limit_on_file_size_is_a_clear_error(run_script, tmp_path):
    """Where a file may not grow, the same holds, without a mount."""
    limit = """
size, reason = 3000, "io"  # SQLite has another word for it.
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
make_room = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
"""
    done = run_script(HEAD + limit + FILL, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"


def test_a_read_only_disk_can_be_read(tmp_path):
    """On a read-only disk runs are listed and looked at; who wants to write gets a clear error."""
    source = f"""{HEAD}
for index, name in enumerate(["ended", "interrupted"]):
    run = journal.begin(new_run(name))
    run.record(success(1, 0, LARGE)).wait()
    run.end(RunStatus.FAILED, is_resumable=True) if index == 0 else run.close()
mount = os.path.dirname(place)
assert os.system(f"mount -o remount,ro {{mount}}") == 0
found = [(run.run_id, str(run.status)) for run in journal.runs()]
assert found == [("interrupted", "interrupted"), ("ended", "failed")], found
assert len(journal.run("interrupted").attempts) == 1
refused("readonly", lambda: journal.begin(new_run("new")))
refused("readonly", lambda: take_over(journal, "ended"))
refused("readonly", journal.prune)
assert os.system(f"mount -o remount,rw {{mount}}") == 0
run, _ = take_over(journal, "ended")
run.close()
print("done")
"""
    done = run_in_namespace(tmp_path, "mount -t tmpfs -o size=20m tmpfs {place}", source)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"


def test_a_directory_of_others_is_a_clear_error(run_script, tmp_path):
    """A directory that may not be written is named in the error."""
    source = f"""{HEAD}
os.mkdir(place)
os.chmod(place, 0o555)
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
refused("readonly", lambda: journal.begin(new_run()))
assert journal.runs() == []
"""
    # Not in pytest's directory, which that user may not enter.
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        done = run_script(source, f"{place}/home")
    assert done.returncode == 0, done.stderr
    assert "cannot be" in done.stdout


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(tmp_path):
    """A run with every kind of state, on disks that fill up sooner or later: errors, and in the end the same store."""
    source = f"""{HEAD}
from pathlib import Path
from canobatch.journal import MemoryJournal
from canobatch.testing import InlineBackend
from tests.support.journaled import content
from tests.support.whole import W, executions, parameters, whole

mount = Path(place).parent
marks = Path({str(tmp_path)!r})
backend = InlineBackend()
(marks / "wanted").mkdir()
run = whole(marks / "wanted", MemoryJournal()).start(W.START, pool=backend, params=parameters(marks / "wanted"))
assert run.wait() is W.DONE
wanted, once = content(run.store), executions(marks / "wanted")
full = 0
for number, room in enumerate([1, 30, 60, 100, 150, 250, 500, 1000, 1100, 1200, 2100, 2200, 2300]):
    (marks / str(number)).mkdir()
    workflow = whole(marks / str(number), SqliteJournal(mount / str(number)))
    disk = os.statvfs(mount)
    ballast = mount / "ballast"
    ballast.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - room * 1024)))
    params = parameters(marks / str(number))
    try:
        workflow.orchestrate(W.START, pool=backend, run_id="r", params=params)
    except JournalError as error:
        assert error.reason == "full", error.reason
        full += 1
    ballast.unlink()
    try:
        run = workflow.start_resume("r", pool=backend)
    except JournalError as error:
        assert "begin it anew" in str(error) or "no run r" in str(error), str(error)
        run = workflow.start(W.START, pool=backend, run_id="r", params=params)
    assert run.wait() is W.DONE
    assert content(run.store) == wanted, room
    found = executions(marks / str(number))
    assert once - found == {{}}
    assert max((found - once).values(), default=0) <= 2, found - once
    assert workflow.journal.runs()[0].status == "completed"
    workflow.journal.prune()
assert full >= 8, full
print("done")
"""
    done = run_in_namespace(tmp_path, "mount -t tmpfs -o size=12m tmpfs {place}", source)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
