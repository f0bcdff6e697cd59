"""Resources around real runs and in real workers: who sets them up, who keeps them, and what a kill leaves."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from canobatch import (
    JoinConfig,
    JoinStrategy,
    Resource,
    Resources,
    Retry,
    TaskConfig,
    WorkerPool,
    Workflow,
)
from canobatch.errors import (
    ConfigurationError,
    JoinError,
    ResourceError,
    ResourceLookupError,
    RetryExhaustedError,
    RunCancelledError,
    TaskError,
    WorkflowError,
    WorkflowTimeoutError,
)
from canobatch.journal import SqliteJournal
from canobatch.models import BatchTask, CompensatableTask
from tests.support.branches import FOREVER, await_marks, mark, marks
from tests.support.tasks import assert_works
from tests.support.watch import Scene, await_that, is_alive, kill


class Noted(Resource):
    """Notes what is done with it into a list that it shares with the test."""

    def __init__(self, name, notes):
        super().__init__()
        self.name, self.notes = name, notes

    def setup(self):
        self.notes.append(f"up {self.name}")

    def teardown(self):
        self.notes.append(f"down {self.name}")


def two():
    notes = []
    return Resources({"a": Noted("a", notes), "b": Noted("b", notes)}), notes


ALL = ["up a", "up b", "down b", "down a"]


class Loaded(Resource):
    """A worker's resource: marks in a directory where it was set up and torn down, by pid and a running number."""

    scope = "worker"

    def __init__(self, place, name="loaded"):
        super().__init__()
        self.place, self.name, self.uses = str(place), name, 0

    def setup(self):
        self.lock = threading.Lock()  # does not pickle
        number = sum(each.startswith(f"up-{self.name}-{os.getpid()}-") for each in marks(self.place))
        mark(self.place, f"up-{self.name}-{os.getpid()}-{number}")

    def teardown(self):
        mark(self.place, f"down-{self.name}-{os.getpid()}")

    def use(self):
        with self.lock:
            self.uses += 1
            return os.getpid(), self.uses


def using(fn, items, resources, *, config=None, strategy=None, **join):
    flow = Workflow("w", resources=resources, default_config=config)
    flow.register_map("s", fn, items, JoinConfig(strategy or JoinStrategy.all(), "end", into="v", **join))
    return flow.add_exit_states(["end", "failed"])


def values(flow, pool):
    run = flow.start("s", pool=pool)
    assert run.wait(100) == "end"
    return run.store.get("v")


def use(ctx, item):
    return ctx.resource("loaded", Loaded).use()


def begins(place, what):
    return sorted(name for name in marks(place) if name.startswith(what))


# ---------------------------------------------------------------- around a run


def test_a_run_has_its_resources_from_the_first_state_to_the_last():
    """Set up before the first task, there for every task in the parent, torn down before the result is had."""
    resources, notes = two()

    def first(ctx):
        assert ctx.resource("a", Noted) is resources["a"]
        notes.append("first")
        return "second"

    flow = Workflow("w", resources=resources).register("s", first)
    flow.register("second", lambda ctx: notes.append(list(ctx.resources)) or "end").add_exit_state("end")
    assert flow.orchestrate("s") == "end"
    assert notes == ["up a", "up b", "first", ["a", "b"], "down b", "down a"]


def test_a_mapping_will_do():
    """Workflow(resources={...}) makes Resources of it; anything else is refused."""
    resources, notes = two()
    flow = Workflow("w", resources=dict(resources)).register("s", lambda: "end").add_exit_state("end")
    assert flow.orchestrate("s") == "end"
    assert notes == ALL
    with pytest.raises(ConfigurationError, match="resources must be"):
        Workflow("w", resources=[1])


def fails():
    raise OSError


def hangs_in(place):
    mark(place, "runs")
    time.sleep(FOREVER)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("failure", TaskError),
        ("unknown state", WorkflowError),
        ("cancel", RunCancelledError),
        ("timeout", WorkflowTimeoutError),
    ],
)
def test_they_are_torn_down_however_the_run_ends(kind, error, tmp_path):
    """After a failure, a state that is none, a cancel, a timeout."""
    resources, notes = two()
    place = str(tmp_path)
    tasks = {"failure": fails, "unknown state": lambda: "nowhere"}
    flow = Workflow("w", resources=resources, total_timeout=0.5 if kind == "timeout" else None)
    flow.register("s", tasks.get(kind, lambda: hangs_in(place)), config=TaskConfig(where="worker"))
    with WorkerPool(1) as pool:
        pool.warm_up()
        run = flow.add_exit_state("end").start("s", pool=pool)
        if kind == "cancel":
            await_marks(place, "runs")
            run.cancel()
        with pytest.raises(error):
            run.wait(60)
        assert notes == ALL


def test_losers_are_dead_when_they_are_torn_down(tmp_path):
    """What a run's workers use by other means is not taken away under them."""
    scene = Scene(tmp_path)
    lived = []

    class Last(Resource):
        def teardown(self):
            lived.append(is_alive(scene.pids("branch")[0]))

    def branch(ctx, item):
        scene.runs("branch")
        time.sleep(FOREVER)

    with WorkerPool(1) as pool:
        run = using(branch, [0], {"last": Last()}).start("s", pool=pool)
        scene.await_runs("branch")
        run.cancel()
        with pytest.raises(RunCancelledError):
            run.wait(60)
    assert lived == [False]


def test_a_run_whose_setup_fails_has_entered_no_state():
    """The error names the key; what was set up before it is torn down."""
    resources, notes = two()

    class Fails(Resource):
        def setup(self):
            raise OSError("no such host")

    resources.insert("c", Fails())
    flow = Workflow("w", resources=resources).register("s", lambda: notes.append("ran")).add_exit_state("end")
    run = flow.start("s")
    with pytest.raises(ResourceError, match=r"resource 'c': setup\(\) failed: OSError: no such host"):
        run.wait(60)
    assert notes == ALL
    assert run.report().path == []


def test_w15_concurrent_runs_share_what_is_set_up():
    """Two runs at a time: set up once, torn down when the second has ended."""
    resources, notes = two()
    go_on = {"x": threading.Event(), "y": threading.Event()}
    inside = []

    def waits(ctx):
        inside.append(ctx.params["name"])
        go_on[ctx.params["name"]].wait(60)
        return "end"

    flow = Workflow("w", resources=resources).register("s", waits).add_exit_state("end")
    runs = {name: flow.start("s", params={"name": name}) for name in "xy"}
    await_that(lambda: len(inside) == 2, "both runs should be inside")
    assert notes == ["up a", "up b"]
    go_on["x"].set()
    assert runs["x"].wait(60) == "end"
    assert notes == ["up a", "up b"]
    go_on["y"].set()
    assert runs["y"].wait(60) == "end"
    assert notes == ALL


INTERRUPTED = """
import time
from canobatch import Resource, TaskConfig, Workflow

class Db(Resource):
    def setup(self): print("db up", flush=True)
    def teardown(self): print("db down", flush=True)

def branch():
    print("runs", flush=True)
    time.sleep(100000)

flow = Workflow("w", resources={"db": Db()}, default_config=TaskConfig(where="worker"))
flow.register("s", branch).add_exit_state("e")
flow.orchestrate("s")
"""


def test_an_interrupt_tears_them_down(start_script, monkeypatch):
    """Ctrl-C while a task runs: the script ends by KeyboardInterrupt, after teardown."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        script = start_script(INTERRUPTED)
        script.wait_for("runs")
        script.process.send_signal(signal.SIGINT)
        script.process.wait(30)
        assert script.stdout.split("\n")[:3] == ["db up", "runs", "db down"]
        assert "KeyboardInterrupt" in script.stderr
    finally:
        signal.signal(signal.SIGINT, before)


ABANDONED = """
import threading
from canobatch import Resource, Workflow

class Db(Resource):
    def teardown(self): print("db down", flush=True)

inside = threading.Event()
flow = Workflow("w", resources={"db": Db()})
flow.register("s", lambda: inside.set() or threading.Event().wait()).add_exit_state("e")
run = flow.start("s")
inside.wait()
"""


def test_w15_a_run_that_ends_with_the_process_is_torn_down(run_script):
    """A script that does not wait for its run in the background still gives back what it held."""
    done = run_script(ABANDONED)
    assert (done.returncode, done.stdout) == (0, "db down\n")


FORKED = """
import os, sys, threading
from canobatch import Resource, Workflow

class Db(Resource):
    def teardown(self): print("db down", flush=True)

inside, go_on = threading.Event(), threading.Event()
flow = Workflow("w", resources={"db": Db()})
flow.register("s", lambda: inside.set() or go_on.wait() and "end").add_exit_state("end")
run = flow.start("s")
inside.wait()
pid = os.fork()
if pid == 0:
    sys.exit(0)
print("child", os.waitpid(pid, 0)[1], flush=True)
go_on.set()
run.wait()
"""


def test_a_forked_child_tears_down_nothing(run_script):
    """A child of the launcher that ends normally leaves alone what its parent's run holds."""
    done = run_script(FORKED)
    assert done.stdout == "child 0\ndb down\n"


# ---------------------------------------------------------------- in a worker


def test_a_worker_s_resource_is_set_up_once_and_kept(tmp_path):
    """Over the tasks of a split and over runs of the workflow: one setup per worker, with its state going on."""
    flow = using(use, range(8), {"loaded": Loaded(tmp_path)})
    with WorkerPool(2) as pool:
        pool.warm_up()
        used = values(flow, pool) + values(flow, pool)
        by_pid = {}
        for pid, uses in used:
            by_pid.setdefault(pid, []).append(uses)
        assert set(by_pid) <= {worker.pid for worker in pool.workers}
        assert all(sorted(uses) == list(range(1, len(uses) + 1)) for uses in by_pid.values())
        assert begins(tmp_path, "up") == sorted(f"up-loaded-{pid}-0" for pid in by_pid)


def test_a_worker_s_resource_is_set_up_by_the_first_that_asks(tmp_path):
    """A task that does not ask for it does not pay for it."""
    flow = using(lambda ctx, item: list(ctx.resources), [0], {"loaded": Loaded(tmp_path)})
    with WorkerPool(1) as pool:
        assert values(flow, pool) == [["loaded"]]
    assert marks(tmp_path) == set()


def test_each_workflow_has_its_own(tmp_path):
    """The same key in two workflows is two things, also in the same worker."""
    flows = [using(use, [0], {"loaded": Loaded(tmp_path)}) for _ in range(2)]
    with WorkerPool(1) as pool:
        assert [values(flow, pool)[0][1] for flow in (*flows, *flows)] == [1, 1, 2, 2]


def test_a_workflow_without_resources_sees_none_of_another(tmp_path):
    """What a worker was given for one workflow is not found by the next."""
    flow = using(use, [0], {"loaded": Loaded(tmp_path)})
    other = using(lambda ctx, item: len(ctx.resources), [0], None)
    with WorkerPool(1) as pool:
        values(flow, pool)
        assert values(other, pool) == [0]


def test_worker_resources_are_torn_down_when_the_pool_closes(tmp_path):
    """In each idle worker, the last set up first."""
    resources = {"loaded": Loaded(tmp_path), "other": Loaded(tmp_path, "other")}

    def both(ctx, item):
        return ctx.resource("loaded").use(), ctx.resource("other").use()

    with WorkerPool(1) as pool:
        ((pid, _), _) = values(using(both, [0], resources), pool)[0]
        assert begins(tmp_path, "down") == []
    assert begins(tmp_path, "down") == [f"down-loaded-{pid}", f"down-other-{pid}"]
    down = [Path(tmp_path, f"down-{name}-{pid}").stat().st_mtime_ns for name in ("other", "loaded")]
    assert down == sorted(down)


class Exiting(Loaded):
    """Calls ``sys.exit`` in a hook."""

    def __init__(self, place, hook):
        super().__init__(place, "exiting")
        self.hook = hook

    def setup(self):
        if self.hook == "setup":
            sys.exit(3)

    def teardown(self):
        sys.exit(3)


def test_a_hook_that_exits_has_failed_like_any_other(tmp_path):
    """In a worker too: a setup fails its attempt by the resource's name, a teardown keeps no other from its own."""
    resources = {"loaded": Loaded(tmp_path), "no": Exiting(tmp_path, "setup"), "late": Exiting(tmp_path, "teardown")}

    def ask(ctx, item):
        ctx.resource("loaded"), ctx.resource("late")
        return ctx.resource("no")

    with WorkerPool(1) as pool, pytest.raises(JoinError, match=r"resource 'no': setup\(\) failed: SystemExit: 3"):
        using(ask, [0], resources).orchestrate("s", pool=pool)
    assert len(begins(tmp_path, "down-loaded")) == 1


def test_worker_resources_are_torn_down_when_a_worker_is_replaced(tmp_path):
    """A worker that has served its calls ends normally, and its successor sets up anew."""
    flow = using(use, range(3), {"loaded": Loaded(tmp_path)})
    with WorkerPool(1, max_tasks_per_worker=1) as pool:
        pids = [pid for pid, _ in values(flow, pool)]
        assert len(set(pids)) == 3
        await_that(lambda: len(begins(tmp_path, "down")) == 3, "all three should be torn down")


def test_worker_resources_go_with_their_workflow(tmp_path):
    """A workflow that nobody holds any more is forgotten by the workers, and what they kept for it is torn down."""
    flow = using(use, [0], {"loaded": Loaded(tmp_path)})
    with WorkerPool(1) as pool:
        values(flow, pool)
        del flow
        gc.collect()
        await_that(lambda: begins(tmp_path, "down"), "it should be torn down")
        assert_works(pool)


def test_the_resources_of_one_workflow_go_and_those_of_others_stay():
    """A worker that has served several workflows lives on when one of them is no more."""
    with WorkerPool(1, spares=0) as pool:
        flows = [using(lambda ctx, item: os.getpid(), [0], {"run": Noted("run", [])}) for _ in range(3)]
        pids = {values(flow, pool)[0] for flow in flows}
        del flows[1]
        gc.collect()
        assert {values(flow, pool)[0] for flow in flows} == pids
    assert len(pids) == 1


def test_a_killed_worker_tears_down_nothing_and_its_successor_sets_up(tmp_path):
    """SIGKILL while a task uses it: the attempt is lost, the next one has a fresh resource."""
    scene = Scene(tmp_path)

    def branch(ctx, item):
        used = ctx.resource("loaded").use()
        if ctx.attempt == 1:
            scene.runs("victim")
            time.sleep(FOREVER)
        return used

    config = TaskConfig(retry=Retry.fixed(1, 0.0))
    flow = using(branch, [0], {"loaded": Loaded(tmp_path)}, config=config)
    with WorkerPool(1) as pool:
        run = flow.start("s", pool=pool)
        scene.await_runs("victim")
        victim = scene.pids("victim")[0]
        kill(victim)
        assert run.wait(60) == "end"
        ((pid, uses),) = run.store.get("v")
        assert uses == 1
        assert pid != victim
        assert begins(tmp_path, "up") == sorted(f"up-loaded-{each}-0" for each in (pid, victim))
        assert begins(tmp_path, "down") == []
        assert_works(pool)
    assert begins(tmp_path, "down") == [f"down-loaded-{pid}"]


def test_a_killed_loser_takes_its_resource_along(tmp_path):
    """After an any() whose loser held the resource, the next split works, with resources of its own."""
    scene = Scene(tmp_path)

    def branch(ctx, item):
        ctx.resource("loaded").use()
        if item == 0:
            scene.runs("loser")
            time.sleep(FOREVER)
        scene.await_runs("loser")
        return item

    resources = Resources({"loaded": Loaded(tmp_path)})
    with WorkerPool(2) as pool:
        assert values(using(branch, range(2), resources, strategy=JoinStrategy.any()), pool) == [1]
        assert not is_alive(scene.pids("loser")[0])
        assert len(values(using(use, range(4), resources), pool)) == 4


class Moody(Resource):
    """Fails to set up as often as there are no marks yet."""

    scope = "worker"

    def __init__(self, place, failures):
        super().__init__()
        self.place, self.failures = str(place), failures

    def setup(self):
        count = len(marks(self.place))
        mark(self.place, f"try-{count}")
        if count < self.failures:
            raise ConnectionError("the database is starting up")


def test_a_setup_that_fails_in_a_worker_fails_that_attempt(tmp_path):
    """With a ResourceError that names key and cause; the next attempt may succeed, in the same worker."""
    ask = lambda ctx, item: ctx.resource("db") and ctx.attempt  # noqa: E731
    with WorkerPool(1) as pool:
        pool.warm_up()
        workers = pool.workers
        flow = using(ask, [0], {"db": Moody(tmp_path, 1)})
        with pytest.raises(JoinError) as caught:
            flow.orchestrate("s", pool=pool)
        error = caught.value.result[0].error
        assert isinstance(error.__cause__, ResourceError)
        assert error.__cause__.key == "db"
        assert "resource 'db': setup() failed: ConnectionError: the database is starting up" in str(error)
        assert isinstance(error.__cause__.__cause__, ConnectionError)
        for name in marks(tmp_path):
            Path(tmp_path, name).unlink()
        flow = using(ask, [0], {"db": Moody(tmp_path, 2)}, config=TaskConfig(retry=Retry.fixed(2, 0.0)))
        assert values(flow, pool) == [3]
        assert pool.workers == workers


class Hangs(Resource):
    """Never ready."""

    scope = "worker"
    hook_timeout = 0.2

    def setup(self):
        time.sleep(FOREVER)


def test_w15_a_setup_that_hangs_in_a_worker_ends_that_worker_alone():
    """When its time is over the attempt has failed with a ResourceError, and the pool works on."""
    with WorkerPool(2) as pool:
        flow = using(lambda ctx, item: ctx.resource("hangs") and 1, [0], {"hangs": Hangs()})
        with pytest.raises(JoinError) as caught:
            flow.orchestrate("s", pool=pool)
        error = caught.value.result[0].error
        assert isinstance(error.__cause__, ResourceError)
        assert "resource 'hangs': setup() has not ended within 0.2 s in a worker" in str(error)
        assert caught.value.result[0].status == "failed"
        assert_works(pool)


class HangsAtTheEnd(Resource):
    """Does not end."""

    scope = "worker"
    hook_timeout = 0.2

    def teardown(self):
        time.sleep(FOREVER)


def test_w15_a_teardown_that_hangs_in_a_worker_holds_nobody_up(tmp_path):
    """A worker that should end does end, with its pool and without."""
    flow = using(lambda ctx, item: ctx.resource("hangs") and os.getpid(), range(2), {"hangs": HangsAtTheEnd()})
    with WorkerPool(1, max_tasks_per_worker=1) as pool:
        first, _ = values(flow, pool)
        await_that(lambda: not is_alive(first), "the replaced worker should end", timeout=30.0)


def test_a_run_scoped_resource_cannot_be_had_in_a_worker():
    """The error says where it lives and what to do, and is not retried."""
    resources, notes = two()
    config = TaskConfig(retry=Retry.fixed(3, 0.0))
    with WorkerPool(1) as pool:
        flow = using(lambda ctx, item: ctx.resource("a"), [0], resources, config=config)
        with pytest.raises(JoinError, match="resource 'a' has scope=\"run\"") as caught:
            flow.orchestrate("s", pool=pool)
        branch = caught.value.result[0]
        assert branch.attempts == 1
        assert not isinstance(branch.error, RetryExhaustedError)
        assert isinstance(branch.error.__cause__, ResourceLookupError)
        assert 'use scope="worker"' in str(branch.error)
    assert notes == ALL


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda ctx, item: ctx.resource("laoded"), "no resource 'laoded'; keys: 'loaded'"),
        (lambda ctx, item: ctx.resources["laoded"], "no resource 'laoded'"),
        (lambda ctx, item: ctx.resource("loaded", Hangs), "resource 'loaded' is a Loaded, not a Hangs"),
    ],
)
def test_w27_a_lookup_that_fails_in_a_worker_names_the_key(ask, words, tmp_path):
    """As in the parent."""
    with WorkerPool(1) as pool, pytest.raises(JoinError, match=words):
        using(ask, [0], {"loaded": Loaded(tmp_path)}).orchestrate("s", pool=pool)


def test_a_single_task_in_a_worker_and_one_in_the_parent_have_each_their_own(tmp_path):
    """The launcher sets up a copy of its own, torn down at the end of the run."""
    flow = Workflow("w", resources={"loaded": Loaded(tmp_path)})
    flow.register("s", lambda ctx: ctx.resource("loaded").use() and "t", config=TaskConfig(where="worker"))
    flow.register("t", lambda ctx: ctx.store.put("parent", ctx.resource("loaded").use()) or "end")
    with WorkerPool(1) as pool:
        run = flow.add_exit_state("end").start("s", pool=pool)
        assert run.wait(60) == "end"
        assert run.store.get("parent") == (os.getpid(), 1)
        assert f"down-loaded-{os.getpid()}" in marks(tmp_path)
        assert len(begins(tmp_path, "up")) == 2
        assert len(begins(tmp_path, "down")) == 1


class Busy(Resource):
    """Has a thread and a process of its own."""

    scope = "worker"

    def setup(self):
        self.thread = threading.Thread(target=threading.Event().wait, daemon=True)
        self.thread.start()
        self.process = subprocess.Popen(["sleep", str(FOREVER)])

    def teardown(self):
        self.process.kill()
        self.process.wait()


def test_what_a_resource_has_started_is_no_left_over_of_a_task():
    """Its threads do not retire the worker, its processes are not killed after the first task; both end with it."""

    def look(ctx, item):
        busy = ctx.resource("busy")
        return os.getpid(), busy.process.pid, busy.process.poll() is None and busy.thread.is_alive()

    flow = using(look, range(3), {"busy": Busy()})
    with WorkerPool(1) as pool:
        seen = {look for _ in range(2) for look in values(flow, pool)}
        assert len(seen) == 1
        ((_, child, is_well),) = seen
        assert is_well
    assert not is_alive(child)


class Unpicklable(Resource):
    """Made wrongly: opens in its constructor."""

    scope = "worker"

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_a_worker_s_resource_that_does_not_pickle_fails_the_run():
    """By name, before anything is sent, and not as an error of the task."""
    with WorkerPool(1) as pool:
        with pytest.raises(ResourceError, match="resource 'db' cannot be sent to a worker"):
            using(use, [0], {"db": Unpicklable()}).orchestrate("s", pool=pool)
        assert_works(pool)


# ---------------------------------------------------------------- models


class Charge(CompensatableTask):
    """Uses a resource forwards and backwards."""

    def run(self, ctx):
        ctx.resource("a").notes.append("charged")
        return "next", 5

    def compensate(self, ctx, output):
        ctx.resource("a").notes.append(f"refunded {output}")


def test_a_roll_back_has_the_run_s_resources():
    """They are torn down after the last compensation, not before the first."""
    resources, notes = two()
    flow = Workflow("w", resources=resources).register("s", Charge()).register("next", fails).add_exit_state("end")
    with pytest.raises(TaskError, match="OSError"):
        flow.orchestrate("s")
    assert notes == ["up a", "up b", "charged", "refunded 5", "down b", "down a"]


class LookUp(BatchTask):
    """Its items use what their worker has."""

    concurrency = 2

    def load(self, ctx):
        return range(8)

    def process_item(self, ctx, item):
        return ctx.resource("loaded", Loaded).use()

    def finish(self, ctx, results):
        ctx.store.put("used", [result.value for result in results])
        return "end"


def test_w14_the_items_of_a_batch_have_their_worker_s_resources(tmp_path):
    """Set up once per worker, as for branches."""
    flow = Workflow("w", resources={"loaded": Loaded(tmp_path)}).register("s", LookUp()).add_exit_state("end")
    with WorkerPool(2) as pool:
        run = flow.start("s", pool=pool)
        assert run.wait(60) == "end"
        used = run.store.get("used")
        assert len(used) == 8
        assert begins(tmp_path, "up") == sorted(f"up-loaded-{pid}-0" for pid in {pid for pid, _ in used})


# ---------------------------------------------------------------- resume


def test_a_resumed_run_sets_its_resources_up_anew(tmp_path):
    """Set up and torn down by the run that failed, and again by the one that goes on."""
    resources, notes = two()
    broken = [OSError]

    def task(ctx):
        notes.append(ctx.resource("a").name)
        if broken:
            raise broken.pop()
        return "end"

    flow = Workflow("w", resources=resources, journal=SqliteJournal(tmp_path)).register("s", task)
    run = flow.add_exit_state("end").start("s")
    with pytest.raises(TaskError):
        run.wait(60)
    assert flow.resume(run.id) == "end"
    assert notes == ["up a", "up b", "a", "down b", "down a"] * 2


def test_a_setup_that_fails_on_resume_leaves_a_run_that_can_be_resumed(tmp_path):
    """What was recorded stays; when the resource can be had again, the run goes on."""
    fate = {"task": OSError, "setup": None}
    entered = []

    class Db(Resource):
        def setup(self):
            if fate["setup"]:
                raise fate["setup"]

    def first():
        entered.append("first")
        return "second"

    def second():
        entered.append("second")
        if fate["task"]:
            raise fate["task"]
        return "end"

    flow = Workflow("w", resources={"db": Db()}, journal=SqliteJournal(tmp_path))
    flow.register("first", first).register("second", second).add_exit_state("end")
    run = flow.start("first")
    with pytest.raises(TaskError):
        run.wait(60)
    fate.update(task=None, setup=OSError("no such host"))
    with pytest.raises(ResourceError, match="no such host"):
        flow.resume(run.id)
    fate["setup"] = None
    assert flow.resume(run.id) == "end"
    assert entered == ["first", "second", "second"]
