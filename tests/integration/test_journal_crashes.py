"""A journal survives the end of its owner at any instant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from canobatch import _faults
from canobatch.errors import RunInUseError
from canobatch.journal import RunStatus, SqliteJournal
from tests.support.runs import new_run, success, take_over

ROOT = Path(__file__).resolve().parents[2]
CRASHES = ROOT / "tests" / "support" / "crashes.py"


def test_a_kill_at_any_point_loses_nothing(run_script, tmp_path):
    """SIGKILLed at every fault point, a run comes back with all that it knew to be durable, and can go on."""
    done = run_script(CRASHES, tmp_path, timeout=100)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    documented = [line.split()[0] for line in _faults.__doc__.splitlines() if line.startswith("journal.")]
    assert set(documented) <= set(lines)
    assert int(lines[-1]) >= 60


TAKER = """if True:
    import sys
    from canobatch.errors import RunInUseError
    from canobatch.journal import SqliteJournal
    from tests.support.runs import take_over

    journal = SqliteJournal(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        run = None
        try:
            run, _ = take_over(journal, line.strip())
            print("won", run.life, flush=True)
        except RunInUseError as error:
            print("lost", error.pid, flush=True)
        sys.stdin.readline()
        if run is not None:
            run.close()
        print("closed", flush=True)
"""


def start_taker(home, *prefix):
    """Start a process that takes runs over as it is told."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*prefix, sys.executable, "-c", TAKER, str(home)]
    return subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)


def tell(taker, text):
    """Say something to a taker."""
    taker.stdin.write(f"{text}\n")
    taker.stdin.flush()


#: A pid namespace of its own: two containers on one volume, where neither sees the other's process.
APART = ("unshare", "--pid", "--fork", "--kill-child")


def race(home, times, *prefix):
    """Let two processes take over the same runs at the same time: exactly one gets each, and the other is told."""
    journal = SqliteJournal(home)
    takers = [start_taker(home, *prefix), start_taker(home, *prefix)]
    try:
        for taker in takers:
            assert taker.stdout.readline() == "ready\n"
        for number in range(times):
            journal.begin(new_run(f"r{number}")).close()
            for taker in takers:
                tell(taker, f"r{number}")
            answers = [taker.stdout.readline().split() for taker in takers]
            assert sorted(answer[0] for answer in answers) == ["lost", "won"]
            winner = [answer[0] for answer in answers].index("won")
            assert answers[winner] == ["won", "2"]
            if not prefix:
                assert answers[1 - winner][1] in {str(takers[winner].pid), str(os.getpid())}
            assert journal.runs()[0].status is RunStatus.RUNNING
            for taker in takers:
                tell(taker, "close")
                assert taker.stdout.readline() == "closed\n"
    finally:
        for taker in takers:
            taker.stdin.close()
            taker.wait(30)
            taker.stdout.close()


@pytest.fixture
def apart():
    """What puts a process into a pid namespace of its own."""
    if shutil.which("unshare") is None or subprocess.run([*APART, "true"], check=False, capture_output=True).returncode:
        pytest.skip("pid namespaces need unshare and root")
    return APART


def test_of_two_processes_that_take_a_run_over_one_wins(tmp_path):
    """Ten races."""
    race(tmp_path, 10)


def test_an_owner_in_another_pid_namespace_keeps_its_run(tmp_path, apart):
    """Five races of two namespaces."""
    race(tmp_path, 5, *apart)


@pytest.mark.stress
def test_of_two_processes_one_wins_each_of_many_races(tmp_path):
    """Fifty races."""
    race(tmp_path, 50)


@pytest.mark.stress
def test_of_two_pid_namespaces_one_wins_each_of_many_races(tmp_path, apart):
    """Fifty races of two namespaces."""
    race(tmp_path, 50, *apart)


def test_of_two_threads_that_take_a_run_over_one_wins(tmp_path):
    """The same within a process: 30 races of two threads."""
    journal = SqliteJournal(tmp_path)
    for number in range(30):
        journal.begin(new_run(f"r{number}")).close()
        barrier, won, lost = threading.Barrier(2), [], []

        def take():
            barrier.wait()
            try:
                won.append(take_over(journal, f"r{number}")[0])
            except RunInUseError as error:
                lost.append(error)

        threads = [threading.Thread(target=take) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, 1)
        won[0].close()


def test_a_killed_owner_is_taken_over_at_once(start_script, tmp_path):
    """The lock dies with its owner, and the next one reads who that was."""
    script = start_script(
        """if True:
            import signal, sys
            from canobatch.journal import SqliteJournal
            from tests.support.runs import new_run, success

            run = SqliteJournal(sys.argv[1]).begin(new_run())
            run.own("f00d", "")
            run.record(success(1, 0)).wait()
            print("recorded", flush=True)
            signal.pause()
        """,
        tmp_path,
    )
    script.wait_for("recorded")
    journal = SqliteJournal(tmp_path)
    with pytest.raises(RunInUseError, match="in use by process") as caught:
        take_over(journal)
    assert caught.value.pid == script.process.pid
    assert [run.status for run in journal.runs()] == [RunStatus.RUNNING]
    script.process.kill()
    script.process.wait()
    assert [run.status for run in journal.runs()] == [RunStatus.INTERRUPTED]
    run, recovered = take_over(journal)
    assert (recovered.owner.pid, recovered.owner.token) == (script.process.pid, "f00d")
    assert [attempt.branch for attempt in run.attempts(1)] == [0]
    run.close()


WRITER = """if True:
    import sys
    from canobatch.journal import Commit, RunStatus, SqliteJournal
    from tests.support.runs import entries, new_run, success

    journal = SqliteJournal(sys.argv[1])
    for number in range(4):
        run = journal.begin(new_run(f"{sys.argv[2]}-{number}"))
        for index in range(50):
            run.record(success(1, index))
        run.commit(Commit(1, "LOAD", "DONE", entries=entries(n=number)))
        if number % 2:
            run.end(RunStatus.COMPLETED, state="DONE")
        else:
            run.close()
"""


def test_ten_processes_share_a_home_while_another_lists(tmp_path):
    """Runs of ten processes begin and end side by side; a list is never an error, and misses nothing at the end."""
    journal = SqliteJournal(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(number)], env=env, stderr=subprocess.PIPE, text=True
        )
        for number in range(10)
    ]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        runs = journal.runs()
        assert len(runs) >= seen
        assert RunStatus.DAMAGED not in {run.status for run in runs}, [run.error for run in runs]
        seen = len(runs)
        for run in runs[:3]:
            assert journal.run(run.run_id).visits[0].state == "LOAD"
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [("", 0)] * 10
    runs = journal.runs()
    assert sorted(run.run_id for run in runs) == sorted(f"{one}-{number}" for one in range(10) for number in range(4))
    for run in runs:
        wanted = RunStatus.COMPLETED if int(run.run_id[-1]) % 2 else RunStatus.INTERRUPTED
        assert run.status is wanted
    assert len(journal.prune()) == 20
    assert len(journal.runs()) == 20
    again, _ = take_over(journal, "3-2")
    assert len(list(again.attempts(1))) == 50
    again.record(success(2, 0)).wait()
    again.close()
