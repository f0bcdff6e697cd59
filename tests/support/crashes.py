"""A script: kills itself with SIGKILL at every fault point of a journal, one child after the other.

For each point that is passed a child is forked that lives the story up to there; then this process looks at
what it left. Prints how many children were killed, and at which points.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import Counter

from canobatch import _faults
from canobatch.errors import RunNotFoundError
from canobatch.journal import Commit, RunStatus, SqliteJournal
from tests.support.runs import VISITS, Counted, essence, new_run, put, story, success, take_over, truths

passed = []


def kill_at(number):
    """Let this process be killed at a point, by its number in the order of passing."""

    def pass_by(name):
        passed.append(name)
        if len(passed) == number:
            os.write(1, f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    _faults.hook = pass_by


def in_child(number, live, acknowledged):
    """Call ``live`` in a child that is killed at a point; return whether it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            kill_at(number)
            live(acknowledged)
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in {0, -signal.SIGKILL}, status
    return status != 0


def live_story(home, fd):
    """Begin a run and go through the story; after each step write how many calls are durable by now."""
    run = SqliteJournal(home).begin(new_run())
    os.write(fd, b"0\n")
    counted = Counted(run, 1000)
    for _ in story(counted):
        os.write(fd, f"{1000 - counted._left}\n".encode())
    run.close()


def check_story(home, lines):
    """Look at what a killed child left: nothing less than it knew to be durable."""
    journal = SqliteJournal(home)
    listed = [run.run_id for run in journal.runs()]
    try:
        history = journal.run("r")
        assert history.summary.status is RunStatus.INTERRUPTED
        run, recovered = take_over(journal)
    except RunNotFoundError:
        assert not lines, "a run that had begun was lost"
        assert listed == []
        run = journal.begin(new_run())
        run.close()
        return
    assert listed == ["r"]
    found = essence(recovered), [list(run.attempts(visit)) for visit in VISITS]
    floor = int(lines[-1]) if lines else 0
    assert found in truths()[floor:], f"after {lines} calls the run is none that it was"
    # It goes on as if nothing had happened.
    visit = recovered.visits[-1].visit
    run.record(success(visit, 77, b"more", operations=(put("more", 1),)))
    run.commit(Commit(visit, "HERE", "THERE", entries={}))
    run.close()
    again, recovered = take_over(journal)
    assert recovered.visits[-1].state == "THERE"
    assert again.life == 3
    again.close()
    assert list(journal.directory.rglob("*.tmp")) == []


def live_end(home, fd):
    """Take the whole story over, end it, prune it."""
    journal = SqliteJournal(home)
    run, _ = take_over(journal)
    os.write(fd, b"taken\n")
    run.end(RunStatus.ROLLED_BACK, state="SHIP")
    os.write(fd, b"ended\n")
    assert journal.prune() == ["r"]
    os.write(fd, b"pruned\n")


def check_end(home, lines):
    """The run is whole and interrupted, or whole and ended, or gone."""
    journal = SqliteJournal(home)
    listed = {run.run_id: run.status for run in journal.runs()}
    last = lines[-1] if lines else ""
    if not listed:
        assert last in {"ended", "pruned"}
    else:
        assert listed["r"] in {RunStatus.INTERRUPTED, RunStatus.ROLLED_BACK}
        assert last != "pruned"
        if last == "ended":
            assert listed["r"] is RunStatus.ROLLED_BACK
        run, recovered = take_over(journal)
        wanted, attempts = truths()[-1]
        found = essence(recovered)
        for name in ("status", "state", "life", "is_resumable"):
            found.pop(name)
        assert found.items() <= wanted.items()
        assert [list(run.attempts(visit)) for visit in VISITS] == attempts
        if recovered.is_resumable:
            run.end(RunStatus.COMPLETED)
        assert journal.prune() == ["r"]
    journal.prune()
    left = sorted(path.name for path in journal.directory.rglob("*") if path.is_file())
    assert set(left) <= {"home.db", "home.db-journal", "r.lock"}, left
    journal.begin(new_run()).close()


def every_point(directory, name, prepare, live, check):
    """Kill a child at each point that ``live`` passes, and look at what each left."""
    for number in range(1, 1000):
        home, log = f"{directory}/{name}-{number}", f"{directory}/{name}-{number}.log"
        prepare(home)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
        is_killed = in_child(number, lambda fd: live(home, fd), fd)
        os.close(fd)
        with open(log) as file:
            check(home, file.read().split())
        shutil.rmtree(home)
        if not is_killed:
            return number - 1
    raise AssertionError("the child never came to its end")


def whole_story(home):
    """Make a home with the whole story, interrupted."""
    run = SqliteJournal(home).begin(new_run())
    for _ in story(run):
        pass
    run.close()


if __name__ == "__main__":
    place = sys.argv[1]
    kills = Counter(
        story=every_point(place, "story", lambda home: None, live_story, check_story),
        end=every_point(place, "end", whole_story, live_end, check_end),
    )
    print("killed", kills.total(), flush=True)
