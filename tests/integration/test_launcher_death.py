"""Promise 4: nothing of a pool outlives its launcher, and a pool outlives its keeper."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from canobatch import JoinConfig, JoinStrategy, WorkerPool, Workflow, _procs
from canobatch.errors import WorkerLostError
from tests.support.losers import Loser, Winner
from tests.support.tasks import assert_works, square
from tests.support.watch import Witness, await_that, is_alive

#: The promise is 2 s. What more is given is for finding out, on a machine that is busy with other tests.
WITHIN = 2.0 + 1.0

#: What every launcher here begins with: a run in the background whose branches are losers of all the given kinds.
LAUNCHER = """
import ctypes, multiprocessing, os, signal, sys, tempfile, threading, time
from pathlib import Path
from canobatch import JoinConfig, JoinStrategy, Task, Workflow, WorkerPool
from tests.support.losers import Loser, Winner
from tests.support.watch import Scene, Witness

def say(*words):
    print(*words, flush=True)

def rest():
    say("ready")
    threading.Event().wait()

def lose(pool, *ways):
    place = tempfile.mkdtemp(dir=os.getcwd())
    witness = Witness(Path(place), *ways)
    workflow = Workflow("w").register_split(
        "s", [Loser(how, how, place) for how in ways], JoinConfig(JoinStrategy.all(), "end")
    )
    run = workflow.add_exit_state("end").start("s", pool=pool)
    witness.scene.await_runs(*ways)
    return run
"""


def killed(script, number: int = signal.SIGKILL) -> dict[int, str]:
    """Kill a launcher when it is ready, and return what lives of it after the time of the promise."""
    script.wait_for("ready")
    return killed_now(script, number)


def killed_now(script, number: int = signal.SIGKILL) -> dict[int, str]:
    script.process.send_signal(number)
    script.process.wait(30)
    return script.survivors(within=WITHIN)


def test_a_launcher_with_an_idle_pool_leaves_nothing(start_script):
    """After SIGKILL of a launcher whose pool is idle, keeper and workers end."""
    script = start_script(LAUNCHER + "pool = WorkerPool(3, spares=1)\npool.warm_up()\nrest()")
    script.wait_for("ready")
    assert len(script.survivors()) >= 5
    assert killed(script) == {}


@pytest.mark.parametrize(
    "ways",
    [
        ["ignores_sigterm"],
        ["loops_in_c", "sleeps_with_the_gil"],
        ["starts_a_session", "daemonises", "runs_a_command"],
        ["forks", "forks_all_the_time"],
        ["stops_itself"],
        ["sends_and_stops", "fills_and_stops"],
    ],
    ids=lambda ways: ways[0],
)
def test_a_launcher_with_a_busy_pool_leaves_nothing(ways, start_script):
    """After SIGKILL of a launcher no worker is left, whatever it does, and nothing that it had started."""
    script = start_script(f"{LAUNCHER}\npool = WorkerPool({len(ways)})\nlose(pool, *{ways})\nrest()")
    assert killed(script) == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV, signal.SIGQUIT])
def test_a_launcher_that_another_signal_ends_leaves_nothing(number, start_script):
    """A launcher that ends by any signal without handler leaves as little as one that is killed."""
    script = start_script(f"{LAUNCHER}\npool = WorkerPool(2)\nlose(pool, 'daemonises', 'loops_in_c')\nrest()")
    assert killed(script, number) == {}


FORKS = {
    "os.fork": """
def fork():
    child = os.fork()
    if child == 0:
        time.sleep(1000)
        os._exit(0)
    return child
""",
    "multiprocessing": """
def fork():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    child.start()
    return child.pid
""",
    # As a C extension may do it: no hook of Python runs, so the child holds every descriptor.
    "libc": """
def fork():
    libc = ctypes.PyDLL(None)
    child = libc.fork()
    if child == 0:
        libc.sleep(1000)
        libc._exit(0)
    return child
""",
}


@pytest.mark.parametrize("when", ["before", "while idle", "while busy"])
@pytest.mark.parametrize("how", list(FORKS))
def test_a_forked_child_of_the_launcher_that_lives_on_keeps_nothing_alive(how, when, start_script):
    """A child that the launcher forked, with all its descriptors, does not delay the end of the pool's processes."""
    moments = {
        "before": "child = fork()\npool = WorkerPool(2)\nlose(pool, 'loops_in_c', 'daemonises')\n",
        "while idle": "pool = WorkerPool(2)\npool.warm_up()\nchild = fork()\n",
        "while busy": "pool = WorkerPool(2)\nlose(pool, 'loops_in_c', 'daemonises')\nchild = fork()\n",
    }
    script = start_script(LAUNCHER + FORKS[how] + moments[when] + "say('child', child)\nrest()")
    child = int(script.wait_for("ready").partition("child ")[2].split()[0])
    script.process.kill()
    script.process.wait(30)
    deadline = time.monotonic() + WITHIN
    while (left := script.survivors()).keys() != {child}:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def test_a_launcher_killed_in_the_middle_of_a_kill_leaves_nothing(start_script):
    """A launcher that ends while losers are being killed, at a random moment of that, leaves nothing."""
    source = (
        LAUNCHER
        + """
pool = WorkerPool(4)
pool.warm_up()
say("ready")
while True:
    place = Path(tempfile.mkdtemp(dir=Path.cwd()))
    ways = ["forks", "daemonises", "loops_in_c"]
    with Witness(place, *ways) as witness:
        tasks = [Loser(how, how, str(place)) for how in ways]
        tasks.append(Winner(1, ways, str(place)))
        workflow = Workflow("w").register_split("s", tasks, JoinConfig(JoinStrategy.any(), "end"))
        workflow.add_exit_state("end").orchestrate("s", pool=pool)
        say("round")
"""
    )
    for _ in range(6):
        script = start_script(source)
        script.wait_for("round")
        time.sleep(random.random() * 0.3)  # the moment, not a wait
        assert killed_now(script) == {}


def test_a_launcher_killed_while_its_pool_starts_leaves_nothing(start_script):
    """A launcher that ends at any moment of its pool's start leaves nothing."""
    source = LAUNCHER + "say('begin')\npool = WorkerPool(3)\npool.warm_up()\nrest()"
    for step in range(10):
        script = start_script(source)
        script.wait_for("begin")
        time.sleep(step * 0.04)  # the moment, not a wait
        assert killed_now(script) == {}


def test_a_launcher_killed_while_its_pool_closes_leaves_nothing(start_script):
    """A launcher that ends at any moment of its pool's close leaves nothing."""
    source = (
        LAUNCHER
        + "pool = WorkerPool(2)\nlose(pool, 'daemonises', 'forks_all_the_time')\nsay('busy')\npool.close()\nrest()"
    )
    for step in range(5):
        script = start_script(source)
        script.wait_for("busy")
        time.sleep(step * 0.01)  # the moment, not a wait
        assert killed_now(script) == {}


def test_a_launcher_of_nested_pools_leaves_nothing(start_script):
    """After SIGKILL of a launcher the pools that its tasks had made are gone too."""
    source = (
        LAUNCHER
        + """
def nest():
    run = lose(WorkerPool(2), "loops_in_c", "daemonises")
    Path("nested").touch()
    run.wait()

pool = WorkerPool(1)
workflow = Workflow("w").register_split("s", [nest], JoinConfig(JoinStrategy.all(), "end"))
run = workflow.add_exit_state("end").start("s", pool=pool)
while not Path("nested").exists():
    time.sleep(0.01)
rest()
"""
    )
    assert killed(start_script(source)) == {}


def test_two_pools_of_one_launcher_leave_nothing(start_script):
    """A launcher with several pools, the default one among them, leaves nothing of any."""
    source = (
        LAUNCHER
        + """
pools = [WorkerPool(1), WorkerPool(1)]
for pool in pools:
    pool.warm_up()
lose(None, "daemonises")
rest()
"""
    )
    assert killed(start_script(source)) == {}


def test_a_launcher_in_a_thread_leaves_nothing(start_script):
    """A pool that was made in a thread which has ended lives on, and dies with the launcher."""
    source = (
        LAUNCHER
        + """
def make():
    global pool
    pool = WorkerPool(2)
    pool.warm_up()

thread = threading.Thread(target=make)
thread.start()
thread.join()
lose(pool, "loops_in_c", "starts_a_session")
rest()
"""
    )
    assert killed(start_script(source)) == {}


# -- the death of the keeper


def keeper_of(pool: WorkerPool) -> int:
    """Return the pid of a pool's keeper: a child of this process, so that no stranger can be meant."""
    pool.warm_up()
    children = [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    (keeper,) = [pid for pid in children if b"keeper.main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return keeper


def end_of(run) -> object:
    """Return the state in which a run ended, or the keeper with which it was lost."""
    try:
        return run.wait(60)
    except WorkerLostError as error:
        return error.pid


@pytest.mark.parametrize(
    "ways",
    [["loops_in_c", "starts_a_session"], ["daemonises", "forks"], ["forks_all_the_time"], ["stops_itself"]],
    ids=lambda ways: ways[0],
)
def test_the_death_of_the_keeper_ends_the_run_and_its_processes(ways, tmp_path):
    """When the keeper is killed the run fails and says so, all processes are dead, and the next run works."""
    with Witness(tmp_path, *ways) as witness, WorkerPool(len(ways)) as pool:
        keeper = keeper_of(pool)
        join = JoinConfig(JoinStrategy.all(), "end")
        workflow = Workflow("w").register_split("s", [Loser(how, how, str(tmp_path)) for how in ways], join)
        run = workflow.add_exit_state("end").start("s", pool=pool)
        witness.scene.await_runs(*ways)
        workers = [worker.pid for worker in pool.workers]
        os.kill(keeper, signal.SIGKILL)
        with pytest.raises(WorkerLostError) as caught:
            run.wait(60)
        assert caught.value.pid == keeper
        assert "keeps the workers" in str(caught.value)
        assert [pid for pid in workers if is_alive(pid)] == []
        assert witness.survivors() == []
        assert_works(pool)
        assert keeper_of(pool) != keeper


#: Starts processes that carry no mark, with much memory, so that their death takes a while; prints their pids.
WITH_UNMARKED_CHILDREN = """
import signal, subprocess, sys
code = "held = bytearray(100_000_000); print(flush=True); import signal; signal.pause()"
below = [subprocess.Popen([sys.executable, "-c", code], env={}, stdout=subprocess.PIPE) for _ in range(3)]
for process in below:
    process.stdout.readline()
print(*(process.pid for process in below), flush=True)
signal.pause()
"""


def test_what_is_killed_by_its_mark_is_dead_with_all_that_is_below_it():
    """The sweep after a keeper's death waits for those too that do not carry the mark."""
    token = f"test-{os.getpid()}"
    command = [sys.executable, "-c", WITH_UNMARKED_CHILDREN]
    with subprocess.Popen(command, env={**os.environ, _procs.TOKEN: token}, stdout=subprocess.PIPE) as process:
        below = [int(pid) for pid in process.stdout.readline().split()]
        _procs.kill_marked(token)
        assert [pid for pid in below if is_alive(pid)] == []
    assert process.returncode == -signal.SIGKILL


def test_the_death_of_an_idle_pools_keeper_is_not_noticed():
    """When the keeper is killed between two runs, the next run starts another."""
    with WorkerPool(2) as pool:
        for _ in range(3):
            keeper = keeper_of(pool)
            workers = [worker.pid for worker in pool.workers]
            os.kill(keeper, signal.SIGKILL)
            await_that(lambda: not any(map(is_alive, workers)), "the workers should die with their keeper")
            await_that(lambda: not pool.workers, "the pool should notice")
            assert_works(pool)


def test_the_death_of_the_keeper_at_any_moment_of_a_run_is_survived():
    """A keeper killed at a random moment fails the run at hand or none, and the pool goes on."""
    with WorkerPool(2) as pool:
        for _ in range(8):
            keeper = keeper_of(pool)
            join = JoinConfig(JoinStrategy.all(), "end", into="v")
            run = Workflow("w").register_map("s", square, range(3000), join).add_exit_state("end").start("s", pool=pool)
            time.sleep(random.random() * 0.05)  # the moment, not a wait
            os.kill(keeper, signal.SIGKILL)
            assert end_of(run) in ("end", keeper)
            assert run.store.get("v", None) in (None, [n * n for n in range(3000)])
            await_that(lambda keeper=keeper: not is_alive(keeper), "the keeper should be dead")


def test_the_death_of_the_keeper_while_losers_are_killed_is_survived(tmp_path):
    """A keeper killed while it kills losers leaves none of them, and the pool goes on."""
    ways = ["daemonises", "forks"]
    with WorkerPool(3) as pool:
        for index in range(4):
            place = tmp_path / str(index)
            place.mkdir()
            with Witness(place, *ways) as witness:
                keeper = keeper_of(pool)

                tasks = [*(Loser(how, how, str(place)) for how in ways), Winner("won", ways, str(place))]
                workflow = Workflow("w").register_split("s", tasks, JoinConfig(JoinStrategy.any(), "end"))
                run = workflow.add_exit_state("end").start("s", pool=pool)
                witness.scene.await_runs(*ways)
                time.sleep(random.random() * 0.02)  # the moment, not a wait
                os.kill(keeper, signal.SIGKILL)
                assert end_of(run) in ("end", keeper)
                assert witness.survivors() == []
                # A run that begins while it is dying would rightly fail.
                await_that(lambda keeper=keeper: not is_alive(keeper), "the keeper should die")
        assert_works(pool)


def test_a_keeper_that_cannot_start_is_an_error_and_no_loop(tmp_path, capfd):
    """When the process that keeps the workers cannot start, warm_up and a run say so, with its exit status."""
    with WorkerPool(2, env={"PYTHONHOME": str(tmp_path)}) as pool:
        with pytest.raises(WorkerLostError, match="could not start, exit status 1"):
            pool.warm_up()
        workflow = Workflow("w").register_map("s", square, [1], JoinConfig(JoinStrategy.all(), "end"))
        with pytest.raises(WorkerLostError, match="could not start"):
            workflow.add_exit_state("end").orchestrate("s", pool=pool)
    assert "encodings" in capfd.readouterr().err
