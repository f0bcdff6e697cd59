"""Promises 3 and 4 for shared memory: whoever is killed, at whatever step of a segment, nothing of it is left."""

from __future__ import annotations

import time

import pytest

from tests.support import steps
from tests.support.branches import marks
from tests.support.memory import CANNOT, Directory, bytes_of
from tests.support.watch import await_that

#: The promise is 2 s. What more is given is for finding out, on a machine that is busy with other tests.
WITHIN = 2.0 + 1.0

#: Where large values lie: in memfds, in named blocks, or in files.
KINDS = ["memfd", "shm", "disk"]

#: What every script here begins with: a machine of its own, a store with a large value, and a look at what there is.
LAUNCHER = """
from tests.support.memory import confine
confine(shm=600_000_000, disk=600_000_000)

import gc, os, random, signal, sys, threading, time
import numpy as np
from canobatch import JoinStrategy, Retry, SharedStore, TaskConfig, WorkerPool
from canobatch.errors import JoinError, WorkerLostError
from tests.support import steps
from tests.support.branches import map_of, ran, split_of
from tests.support.memory import Directory, bytes_of, descriptors
from tests.support.watch import await_that, kill

ALL = JoinStrategy.all()
kind, *arguments = sys.argv[1:]
os.environ["CANOBATCH_SEGMENTS"] = "shm" if kind == "shm" else "memfd"
places = Directory(os.getpid(), "/dev/shm"), Directory(os.getpid(), os.environ["TMPDIR"])

def say(*words):
    print(*words, flush=True)

def new_store():
    store = SharedStore(max_bytes=1 if kind == "disk" else 500_000_000)
    store.put("read", np.ones(steps.SIZE))
    return store

def present(store, pool):
    "What is held now."
    gc.collect()
    return {
        "quota": store.segments.used,
        "memfds": bytes_of(os.getpid(), *(worker.pid for worker in pool.workers)),
        "files": [place.used() for place in places],
        "descriptors": descriptors(),
    }

def await_back(before, store, pool):
    pool.warm_up()
    deadline = time.monotonic() + 5.0
    while (now := present(store, pool)) != before:
        assert time.monotonic() < deadline, (before, now)
        time.sleep(0.01)

def check(store, run):
    assert (store.get("written") == 2).all()
    assert (store.get("read") == 1).all()
    (value,) = store.get("all")
    assert (value == 4).all()
    assert store.keys() == ["all", "read", "written"]
    store.remove("written")
    store.remove("all")

def keeper_of(pool):
    pool.warm_up()
    children = [int(pid) for name in os.listdir("/proc/self/task")
                for pid in open(f"/proc/self/task/{name}/children").read().split()]
    (keeper,) = [pid for pid in children if b"keeper.main" in open(f"/proc/{pid}/cmdline", "rb").read()]
    return keeper

def work(store, pool, step, act):
    workflow = split_of([steps.Write(step, act)], ALL, into="all", workflow={"store": store})
    return workflow.start("split", pool=pool)
"""


def ended(run_script, source, *args, **options):
    """Run a script to its end, or skip the test where it could not have a machine of its own."""
    done = run_script(LAUNCHER + source, *args, **options)
    if done.stdout.startswith(CANNOT):
        pytest.skip(CANNOT)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(autouse=True)
def close_places():
    """Let go, after each test, of the file systems that it looked at."""
    yield
    while _places:
        _places.pop().close()


_places: list[Directory] = []


class Watched:
    """A launcher that will be killed, and its file systems, which are looked at afterwards."""

    def __init__(self, script, *, marker: str = "ready") -> None:
        self.script = script
        try:
            script.wait_for(marker)
        except AssertionError:
            if script.stdout.startswith(CANNOT):
                pytest.skip(CANNOT)
            raise
        tmpdir = next(line for line in script.stdout.splitlines() if line.startswith("disk ")).split()[1]
        self.places = [Directory(script.process.pid, path) for path in ("/dev/shm", tmpdir)]
        _places.extend(self.places)

    def held(self) -> int:
        """Return how many bytes there are of its segments."""
        pids = self.script.process.pid, *self.script.survivors()
        return bytes_of(*pids) + sum(place.used() for place in self.places)

    def left_when_killed(self) -> list[object]:
        """Kill it and return what is left of it after the time of the promise."""
        self.script.process.kill()
        deadline = time.monotonic() + WITHIN
        self.script.process.wait(30)
        left = self.script.survivors(within=deadline - time.monotonic())
        while (found := self._found(left)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    def _found(self, left) -> list[object]:
        files = [thing for place in self.places for thing in (*place.names(), place.used()) if thing]
        return [*left.values(), *files]


SAY_DISK = "say('disk', os.environ['TMPDIR'])\n"


# -- a worker


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_killed_at_any_step_leaves_nothing(kind, run_script):
    """At each step the attempt is lost, the next one works, and memory, descriptors and files are as before."""
    source = """
store = new_store()
with WorkerPool(1) as pool:
    # What is opened once stays.
    run = work(store, pool, "none", None)
    run.wait(60)
    check(store, run)
    del run
    pool.warm_up()
    before = present(store, pool)
    for step in steps.WORKER:
        run = work(store, pool, step, steps.die)
        assert run.wait(60) == "joined"
        attempts = run.report().splits["split"][0].attempts
        assert attempts == (1 if step == "outcome sent" else 2), (step, attempts)
        check(store, run)
        del run
        await_back(before, store, pool)
        say(step)
"""
    assert ended(run_script, source, kind).splitlines() == list(steps.WORKER)


@pytest.mark.parametrize("kind", KINDS)
def test_losers_killed_at_any_step_leave_nothing(kind, run_script, tmp_path):
    """The same when it is the pool that kills, for a winner, while losers stand still at these steps."""
    source = """
store = new_store()
# With so many workers at rest, whether or not a call had to wait for one.
with WorkerPool(3, spares=0) as pool:
    def race(*names):
        places = [f"{arguments[0]}/{name}" for name in names]
        for place in places:
            os.mkdir(place)
        losers = [steps.Write(name, steps.Hang(place)) for name, place in zip(names, places)]
        workflow = split_of([*losers, steps.Win(places)], JoinStrategy.any(), into="won", workflow={"store": store})
        assert workflow.orchestrate("split", pool=pool) == "joined"
        assert store.get("won") == ["won"]
        store.remove("won")
        assert store.keys() == ["read"]
        assert (store.get("read") == 1).all()

    work(store, pool, "none", None).wait(60)
    store.remove("all")
    store.remove("written")
    race("task is through")
    pool.warm_up()
    before = present(store, pool)
    race("asked for room", "may write")
    race("half written", "written")
    race("descriptors sent", "outcome half sent")
    await_back(before, store, pool)
"""
    ended(run_script, source, kind, tmp_path)


# -- the keeper


@pytest.mark.parametrize("kind", KINDS)
def test_a_keeper_killed_at_any_step_leaves_nothing(kind, run_script, tmp_path):
    """At each step the run fails, what was in the store is intact, and memory, descriptors and files are as before."""
    source = """
store = new_store()
pool = WorkerPool(1)
with pool:
    run = work(store, pool, "none", None)
    run.wait(60)
    check(store, run)
    del run
    before = present(store, pool)
    for step in ("asked for room", "may write", "half written", "written", "task is through", "outcome half sent"):
        run = work(store, pool, step, steps.Hang(arguments[0]))
        await_that(lambda: os.path.exists(arguments[0] + "/there"), step)
        os.unlink(arguments[0] + "/there")
        kill(keeper_of(pool))
        try:
            run.wait(60)
        except WorkerLostError:
            pass
        else:
            raise AssertionError("it should have failed")
        assert store.keys() == ["read"]
        assert (store.get("read") == 1).all()
        del run
        await_back(before, store, pool)
        say(step)
"""
    assert len(ended(run_script, source, kind, tmp_path).splitlines()) == 6


# -- the launcher


@pytest.mark.parametrize("names", [[*steps.WORKER][:4], [*steps.WORKER][4:]], ids=lambda names: names[0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_launcher_killed_while_workers_are_at_a_step_leaves_nothing(kind, names, start_script, tmp_path):
    """After its SIGKILL no process is left, no memory, no file, at whatever step of their results its workers were."""
    source = f"""
store, pool = new_store(), WorkerPool(4)
places = [f"{{arguments[0]}}/{{name}}" for name in {names}]
for place in places:
    os.mkdir(place)
tasks = [steps.Write(name, steps.Hang(place)) for name, place in zip({names}, places)]
run = split_of(tasks, ALL, into="all", workflow={{"store": store}}).start("split", pool=pool)
for place in places:
    await_that(lambda: os.path.exists(place + "/there"), "the step should come")
{SAY_DISK}
say("ready")
threading.Event().wait()
"""
    watched = Watched(start_script(LAUNCHER + source, kind, tmp_path))
    # One wrote half of it.
    assert watched.held() >= 2 * 1_600_000
    assert watched.left_when_killed() == []


#: What happens in the same way with all kinds need not be tried with all.
OWN_STEPS = [(kind, step) for step in ("put half written", "taken over", "after a drop") for kind in KINDS]
OWN_STEPS += [("memfd", step) for step in ("room granted", "before the commit", "after the commit", "before a drop")]


@pytest.mark.parametrize(("kind", "step"), OWN_STEPS)
def test_a_launcher_killed_at_a_step_of_its_own_leaves_nothing(kind, step, start_script, tmp_path):
    """The same for what the launcher does itself: put, grant, take over, commit, drop."""
    source = f"""
store, pool = new_store(), WorkerPool(1)
pool.warm_up()
{SAY_DISK}
steps.LAUNCHER[{step!r}](steps.Hang(arguments[0]))

def go():
    if {step!r} == "put half written":
        store.put("more", np.ones(10 * steps.SIZE))
    run = work(store, pool, "none", None)
    run.wait(60)
    del run
    store.clear()
    gc.collect()

threading.Thread(target=go, daemon=True).start()
await_that(lambda: os.path.exists(arguments[0] + "/there"), "the step should come")
say("ready")
threading.Event().wait()
"""
    watched = Watched(start_script(LAUNCHER + source, kind, tmp_path))
    assert marks(tmp_path) >= {"there"}
    assert watched.left_when_killed() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_launcher_killed_at_any_moment_leaves_nothing(kind, start_script):
    """The same at random moments of runs that write and drop all the time."""
    source = f"""
store, pool = new_store(), WorkerPool(2)
pool.warm_up()
{SAY_DISK}
say("ready")
while True:
    run = map_of(steps.write_at_random, range(6), ALL, workflow={{"store": store}}).start("split", pool=pool)
    run.wait(60)
    store.clear()
    say("round")
"""
    for moment in (0.0, 0.03, 0.1, 0.2):
        script = start_script(LAUNCHER + source, kind)
        watched = Watched(script, marker="round")
        time.sleep(moment)  # the moment, not a wait
        assert watched.left_when_killed() == []


@pytest.mark.parametrize("kind", ["memfd", "disk"])
def test_a_forked_child_that_lives_on_keeps_no_memory(kind, start_script):
    """A child that the launcher had forked, and that lives on after its SIGKILL, holds nothing that was not mapped."""
    source = f"""
store, pool = new_store(), WorkerPool(1)
run = work(store, pool, "none", None)
run.wait(60)
# What is mapped, as a result that was looked at, the child does share.
del run
gc.collect()
child = os.fork()
if child == 0:
    time.sleep(1000)
    os._exit(0)
{SAY_DISK}
say("child", child)
say("ready")
threading.Event().wait()
"""
    watched = Watched(start_script(LAUNCHER + source, kind))
    script = watched.script
    child = int(script.stdout.partition("child ")[2].split()[0])
    assert watched.held() >= 3 * 1_600_000
    script.process.kill()
    script.process.wait(30)
    await_that(lambda: script.survivors().keys() == {child}, "only the child should live", WITHIN)
    assert bytes_of(child) == 0
    assert [place.used() for place in watched.places] == [0, 0]


@pytest.mark.parametrize("kind", ["memfd", "shm"])
def test_blocks_are_gone_when_a_launcher_ends_by_itself(kind, run_script):
    """A launcher that ends with values still in its store, and views of them held, leaves no block behind."""
    source = """
import atexit
store = new_store()
held = store.get("read")
pool = WorkerPool(1)
run = work(store, pool, "none", None)
run.wait(60)
say("held", bytes_of(os.getpid()) + places[0].used())
"""
    assert int(ended(run_script, source, kind).split()[1]) >= 3 * 1_600_000


# -- at random

RANDOM_KILLS = """
random.seed(arguments[1])
store = new_store()
with WorkerPool(2) as pool:
    def start():
        config = TaskConfig(retry=Retry.fixed(2, 0.0))
        join = {"into": "doubled", "config": config, "workflow": {"store": store}}
        return map_of(steps.write_at_random, range(6), ALL, **join).start("split", pool=pool)

    def clear():
        for key in store.keys():
            if key != "read":
                store.remove(key)

    start().wait(60)
    clear()
    pool.warm_up()
    before = present(store, pool)
    kills = 0
    while kills < int(arguments[0]):
        run = start()
        for _ in range(random.randrange(1, 3)):
            time.sleep(random.random() * 0.03)  # the moment, not a wait
            workers = [worker.pid for worker in pool.workers]
            if workers:
                kill(random.choice(workers))
                kills += 1
        try:
            run.wait(60)
        except JoinError:
            # One branch was lost three times.
            assert store.keys() == ["read"]
        else:
            assert store.get("doubled") == [0, 2, 4, 6, 8, 10]
            assert [int(array[0]) for array in store.get("all")] == list(range(6))
            assert all((store.get(f"{branch}-{n}") == branch).all() for branch in range(6) for n in range(3))
        assert (store.get("read") == 1).all()
        del run
        clear()
    await_back(before, store, pool)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_random_kills_of_workers_leave_nothing(kind, run_script):
    """30 workers killed at random moments: each run is right or fails, and memory, descriptors, files are as before."""
    ended(run_script, RANDOM_KILLS, kind, 30, 7, timeout=100.0)


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_five_hundred_random_kills_of_workers_leave_nothing(kind, run_script):
    """The same, 500 times."""
    ended(run_script, RANDOM_KILLS, kind, 500, 8, timeout=800.0)
