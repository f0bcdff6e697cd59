"""The launcher where nothing more can be written: a home on a full disk, a full standard output."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess

import pytest

from tests.support.launched import PROGRAM, Place
from tests.support.watch import await_that

WORK = """
import sys
from canobatch.scheduler import Scheduler

def quick():
    return "done"

def one(ctx, n):
    told(f"call{n}-{len(list(HERE.glob(f'call{n}-*')))}")
    return "x" * 50_000

def odd():
    if not (HERE / "cured.go").exists():
        raise ValueError("not cured")
    return "done"

def up(line):
    return line.upper()

quick_flow = Workflow("quick").register("a", quick).add_exit_state("done")
odd_flow = Workflow("odd").register("a", odd).add_exit_state("done")
big = Workflow("big").register_map("m", one, range(100), JoinConfig(JoinStrategy.all(), "done")).add_exit_state("done")
flows = Scheduler().manual("hand", quick_flow, "a").every("often", quick_flow, "a", 0.3)
"""

NO_SPACE = "no space left"


class Disk(Place):
    """A place with its home on a small disk that only its commands see."""

    def __init__(self, path, size: str) -> None:
        super().__init__(path)
        self.mount = path / "disk"
        self.mount.mkdir()
        self.home = self.mount / "home"
        command = f"mount -t tmpfs -o size={size} tmpfs '{self.mount}' && echo ready && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.is_there = self._holder.stdout.readline() == "ready\n"
        self.program = ("nsenter", "-t", str(self._holder.pid), "-m", f"--wd={path}", *PROGRAM)
        self._root = f"/proc/{self._holder.pid}/root{self.mount}"

    def fill(self) -> None:
        """Write until nothing more can be written."""
        with open(f"{self._root}/ballast", "ab", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

    def make_room(self) -> None:
        """Take away what `fill` wrote."""
        os.unlink(f"{self._root}/ballast")

    def mount_again(self, how: str) -> None:
        """Mount it "ro" or "rw"."""
        enter = self.program[: -len(PROGRAM)]
        subprocess.run([*enter, "mount", "-o", f"remount,{how}", self.mount], check=True, timeout=60)

    def files(self) -> set[str]:
        """Return what there is on the disk, but for locks, which stay, and another home."""
        found = {os.path.join(where, name) for where, _, names in os.walk(self._root) for name in names}
        found = {path.removeprefix(self._root) for path in found}
        return {path for path in found if not path.endswith(".lock") and not path.startswith("/new")}

    def close(self) -> None:
        """Kill what is left, and with it the disk."""
        super().close()
        self._holder.communicate()


@pytest.fixture
def disk(tmp_path):
    """A small disk, where one can be had."""
    if shutil.which("unshare") is None or shutil.which("nsenter") is None or os.geteuid() != 0:
        pytest.skip("mounts need unshare, nsenter and root")
    disk = Disk(tmp_path, "24m")
    try:
        if not disk.is_there:
            pytest.skip("a tmpfs cannot be mounted here")
        disk.write("work.py", WORK)
        yield disk
    finally:
        disk.close()


def told_in_a_line(done) -> str:
    """Return the error of a command, which is one line."""
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("Error: ")
    return last


def test_each_command_that_writes_says_that_the_disk_is_full(disk):
    """In one line, with exit code 1, and nothing is left half-written; with room each works, and a run is resumed."""
    (disk.path / "lines").write_text("a\nb\n")
    assert disk.run("run", "work.py:odd_flow").returncode == 1
    assert disk.run("run", "work.py:quick_flow").returncode == 0
    server = disk.start("serve", "work.py:flows")
    await_that(lambda: "run " in server.stderr.readline(), "it should serve")
    server.terminate()
    assert server.wait(60) == 143
    failed = next(run["run_id"] for run in json.loads(disk.run("runs", "--json").stdout) if run["workflow"] == "odd")
    disk.fill()
    before = disk.files()
    commands = [
        ("run", "work.py:quick_flow"),
        ("run", "work.py:quick_flow", "--name", "a name", "--json"),
        ("resume", failed),
        ("map", "work.py:up", "--from", "lines"),
        ("init", f"{disk.mount}/etl.py"),
        ("serve", "work.py:flows", "--home", f"{disk.mount}/new"),
    ]
    for command in commands:
        disk.fill()
        done = disk.run(*command)
        assert (done.returncode, done.stdout) == (1, ""), (command, done)
        assert NO_SPACE in told_in_a_line(done).lower(), command
        assert disk.files() == before, command
    # These change little: there may be room in the files that there are.
    for command in (("trigger", "hand", "--timeout", "0.1"), ("pause", "hand"), ("unpause", "hand"), ("reset", "hand")):
        done = disk.run(*command)
        assert done.returncode == 0 or told_in_a_line(done), command
        assert disk.files() == before, command
    # What only reads still does; what is to make room makes it.
    assert json.loads(disk.run("show", failed, "--json").stdout)["status"] == "failed"
    assert "are free at" in disk.run("doctor").stdout
    assert "quick" in disk.run("runs").stdout
    removed = disk.run("gc", "--older-than", "1ms", "--keep", "1")
    assert removed.returncode == 0, removed.stderr
    assert removed.stdout.split()
    disk.make_room()
    disk.release("cured")
    assert disk.run("run", "work.py:odd_flow").returncode == 0
    for command in (commands[0], commands[3], commands[4], ("pause", "hand")):
        done = disk.run(*command)
        assert done.returncode == 0, (command, done.stderr)


def test_a_run_for_which_the_disk_becomes_too_small_is_resumed(disk):
    """What was recorded is kept, the rest is done when there is room."""
    with open(f"{disk._root}/ballast", "wb") as file:
        file.write(bytes(21_000_000))
    done = disk.run("run", "work.py:big", "-j", "2")
    assert done.returncode == 1, done.stderr
    assert NO_SPACE in told_in_a_line(done)
    run_id = done.stdout.split()[1]
    assert f"go on with: canobatch resume {run_id}" in done.stderr
    disk.make_room()
    facts = json.loads(disk.run("show", run_id, "--json").stdout)
    kept = {each["branch"] for each in facts["attempts"] if each["status"] == "succeeded"}
    assert 0 < len(kept) < 100
    again = disk.run("resume", run_id)
    assert again.returncode == 0, again.stderr
    assert f"{len(kept)} branches kept" in again.stderr
    assert "100: 100 succeeded" in again.stdout
    calls = [path.name for path in disk.path.glob("call*")]
    assert {f"call{branch}-1.told" for branch in kept}.isdisjoint(calls)


def test_a_server_outlives_a_full_disk(disk):
    """While there is no room flows fail with a line each; with room they run again."""
    server = disk.start("serve", "work.py:flows", "--log-format", "json")

    def told(words):
        for line in server.stderr:
            # A worker that cannot keep what tasks print says so itself.
            facts = json.loads(line) if line.startswith("{") else {"message": line}
            if words in facts["message"]:
                return facts["message"]
        raise AssertionError("it ended")

    told("begins")
    disk.fill()
    assert "Traceback" not in told("no space left for")
    disk.make_room()
    known = {run["run_id"] for run in json.loads(disk.run("runs", "--json").stdout)}
    done = {}

    def runs_again():
        done.update({run["run_id"]: run["status"] for run in json.loads(disk.run("runs", "--json").stdout)})
        return any(status == "completed" for run_id, status in done.items() if run_id not in known)

    await_that(runs_again, "it should run again")
    server.terminate()
    server.stderr.read()
    assert server.wait(60) == 143


def test_a_home_that_is_read_only_is_read(disk):
    """What looks back works; what would write says why it cannot, in a line, and --no-journal needs no home."""
    assert disk.run("run", "work.py:odd_flow").returncode == 1
    run_id = json.loads(disk.run("runs", "--json").stdout)[0]["run_id"]
    disk.mount_again("ro")
    assert "odd" in disk.run("runs").stdout
    assert json.loads(disk.run("show", "last", "--json").stdout)["run_id"] == run_id
    assert disk.run("logs", "last").returncode == 0
    assert "cannot be written to" in disk.run("doctor").stdout
    commands = [
        ("run", "work.py:quick_flow"),
        ("run", "work.py:quick_flow", "--name", "a name"),
        ("resume", "last"),
        ("serve", "work.py:flows"),
        ("gc", "--older-than", "1ms"),
        ("init", f"{disk.mount}/etl.py"),
    ]
    for command in commands:
        done = disk.run(*command)
        assert (done.returncode, done.stdout) == (1, ""), (command, done)
        assert re.search("read-only|cannot be written|readonly", told_in_a_line(done).lower()), (command, done.stderr)
    assert disk.run("run", "work.py:quick_flow", "--no-journal").returncode == 0
    disk.mount_again("rw")
    disk.release("cured")
    again = disk.run("resume", "last")
    assert again.returncode == 0, again.stderr


# -- without a disk of its own


def limited() -> None:
    """Let no file grow beyond 256 kB in this process and its children."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (256_000, 256_000))


@pytest.fixture
def place(tmp_path):
    """A directory with work."""
    place = Place(tmp_path)
    place.write("work.py", WORK)
    yield place
    place.close()


def test_a_run_whose_journal_may_not_grow_is_resumed(place):
    """The same where a limit, and not the disk, forbids it."""
    process = place.start("run", "work.py:big", "-j", "1", preexec_fn=limited)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("Error: ")
    again = place.run("resume", stdout.split()[1])
    assert again.returncode == 0, again.stderr
    assert "100: 100 succeeded" in again.stdout


@pytest.mark.parametrize("args", [("runs",), ("runs", "--json"), ("graph", "work.py:big"), ("doctor",), ("--help",)])
def test_a_full_standard_output_is_told(place, args):
    """A line instead of a traceback, and a failure: what was asked for is not there."""
    assert place.run("run", "work.py:quick_flow").returncode == 0
    with open("/dev/full", "w") as full:
        process = place.start(*args, stdout=full)
    assert "standard output cannot be written: No space left" in process.stderr.read()
    assert process.wait(60) == 1


def test_a_run_does_not_depend_on_who_reads_it(place):
    """With a full standard output it goes to its end all the same, and then says so."""
    with open("/dev/full", "w") as full:
        process = place.start("run", "work.py:quick_flow", stdout=full)
    assert process.wait(60) == 1
    told = process.stderr.read()
    assert "standard output cannot be written" in told
    assert "Traceback" not in told
    assert json.loads(place.run("runs", "--json").stdout)[0]["status"] == "completed"


def test_results_that_cannot_be_written_are_not_lost(place):
    """A map whose output is full ends, and writes everything when it is resumed."""
    (place.path / "lines").write_text("".join(f"line {n}\n" for n in range(5000)))
    with open("/dev/full", "w") as full:
        process = place.start("map", "work.py:up", "--from", "lines", stdout=full)
    told = process.stderr.read()
    assert process.wait(60) == 1
    assert "Traceback" not in told
    assert "the results cannot be written: No space left" in told.splitlines()[-1]
    assert "canobatch resume" in told
    again = place.run("resume", "last")
    assert again.returncode == 0, again.stderr
    assert again.stdout == "".join(f"LINE {n}\n" for n in range(5000))
