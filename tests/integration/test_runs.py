"""Runs from start to end: the path they take, where tasks run, parameters, stores, and what is told of them."""

from __future__ import annotations

import asyncio
import enum
import json
import os
from dataclasses import dataclass
from datetime import UTC

import pytest

from canobatch import (
    JoinConfig,
    JoinStrategy,
    MemoryStore,
    Retry,
    SharedStore,
    Task,
    TaskConfig,
    TaskError,
    WorkerPool,
    Workflow,
    WorkflowError,
)
from canobatch.errors import (
    ConfigurationError,
)
from tests.support.branches import Act, RefusalError, contents, map_of, mark
from tests.support.single import chain, single
from tests.support.tasks import square

all_, any_ = JoinStrategy.all(), JoinStrategy.any()
WORKER = TaskConfig(where="worker")
PARENT = TaskConfig(where="parent")
EITHER = pytest.mark.parametrize("where", ["parent", "worker"])


class S(enum.Enum):
    """States that workers import."""

    BEGIN = 1
    SPLIT = 2
    END = 3


# -- the path


def test_one_hop():
    """A run goes from its initial state to the state that the task returns, and returns it."""
    assert chain("a", "b").orchestrate("a") == "b"


def test_many_steps_share_the_store():
    """What a task writes is there for the tasks after it."""
    run = chain("a", "b", "c", "d", "e").start("a")
    assert run.wait(30) == "e"
    assert run.store.get("seen") == ["a", "b", "c", "d"]
    assert run.report().path == ["a", "b", "c", "d", "e"]


def test_a_run_may_start_anywhere():
    """Any registered state can be the initial one."""
    run = chain("a", "b", "c", "d").start("c")
    assert run.wait(30) == "d"
    assert run.store.get("seen") == ["c"]


@EITHER
def test_a_state_may_lead_to_itself(where, shared_pool):
    """A state that returns itself is visited until it returns another, each visit with the writes of those before."""

    def count(ctx):
        ctx.store.add("visits")
        return "begin" if ctx.store.get("visits") < 5 else "end"

    run = single(count, config=TaskConfig(where=where)).start("begin", pool=shared_pool)
    assert run.wait(60) == "end"
    assert run.store.get("visits") == 5
    report = run.report()
    assert report.path == ["begin"] * 5 + ["end"]
    assert [(state.visit, state.attempts) for state in report.states] == [(n, 1) for n in range(1, 6)]


def test_an_exit_wins_over_a_handler():
    """A state that is an exit ends the run although it has a handler, which does not run."""
    called = []
    flow = Workflow("test").register("a", lambda: "b").register("b", lambda: called.append(1) or "c")
    assert flow.add_exit_states(["b", "c"]).orchestrate("a") == "b"
    assert called == []


def test_starting_at_an_exit_ends_at_once():
    """A run that starts at an exit state returns it, runs nothing, and starts no process."""
    called = []
    flow = Workflow("test").register("a", lambda: called.append(1) or "a").add_exit_state("a")
    run = flow.start("a")
    assert run.wait(30) == "a"
    assert called == []
    assert run.report().path == ["a"]
    assert run.report().states == []


def test_no_worker_is_started_for_tasks_in_the_parent(monkeypatch):
    """A workflow whose tasks all run in the parent needs no pool, not even an open one."""
    pool = WorkerPool(1)
    pool.close()
    assert chain("a", "b", "c").orchestrate("a", pool=pool) == "c"


def test_states_of_different_types_are_compared_by_value(shared_pool):
    """A task in a worker may return a state that equals one of the workflow's."""
    flow = (
        Workflow("test")
        .register(S.BEGIN, lambda: ("a", 1), config=WORKER)
        .register(("a", 1), lambda: S.SPLIT, config=WORKER)
        .register_map(S.SPLIT, square, [1, 2], JoinConfig(all_, S.END, into="v"))
        .add_exit_state(S.END)
    )
    run = flow.start(S.BEGIN, pool=shared_pool)
    assert run.wait(60) is S.END
    assert run.report().path == [S.BEGIN, ("a", 1), S.SPLIT, S.END]


# -- where tasks run


def pid_of(config=None, pool=None, **options):
    """Return the pid in which a single task runs."""

    def note(ctx):
        ctx.store.put("pid", os.getpid())
        return "end"

    run = single(note, config=config, **options).start("begin", pool=pool)
    assert run.wait(60) == "end"
    return run.store.get("pid")


def test_a_single_task_runs_in_the_parent():
    """Without a reason for a worker a single task runs in this process."""
    assert pid_of() == pid_of(PARENT) == os.getpid()


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (WORKER, {}),
        (TaskConfig(attempt_timeout=100.0), {}),
        (TaskConfig(memory_limit=1 << 34), {}),
        (None, {"total_timeout": 100.0}),
        (None, {"default_config": WORKER}),
    ],
)
def test_a_single_task_runs_in_a_worker_for_a_reason(config, options, shared_pool):
    """A single task runs in a worker when told to, and whenever it may have to be killed."""
    assert pid_of(config, shared_pool, **options) in {worker.pid for worker in shared_pool.workers}


def test_a_task_s_own_configuration_goes_before_the_default(shared_pool):
    """The workflow's default is for tasks that bring no configuration."""

    @dataclass
    class Here(Task):
        config = PARENT

        def run(self, ctx):
            ctx.store.put("pid", os.getpid())
            return "end"

    run = single(Here(), default_config=WORKER).start("begin", pool=shared_pool)
    run.wait(60)
    assert run.store.get("pid") == os.getpid()


@EITHER
def test_what_a_task_is_told(where, shared_pool):
    """A context has the run, the state, the attempt, parameters, a logger, and neither branch nor deadline."""

    def look(ctx):
        ctx.store.put(
            "facts", (ctx.run_id, ctx.state, ctx.branch, ctx.attempt, ctx.logger.name, ctx.deadline, ctx.cancelled)
        )
        ctx.store.put("size", ctx.params.size)
        return S.END

    flow = Workflow("flow").register(S.BEGIN, look, config=TaskConfig(where=where)).add_exit_state(S.END)
    run = flow.start(S.BEGIN, pool=shared_pool, run_id="my run", params={"size": 3})
    assert run.wait(60) is S.END
    assert run.id == "my run"
    assert run.store.get("facts") == ("my run", S.BEGIN, None, 1, "canobatch.flow", None, False)
    assert run.store.get("size") == 3


@EITHER
def test_async_tasks_run_to_their_end(where, shared_pool):
    """An async function or run method is run where a plain one would be, and its result counts."""

    async def wait(ctx):
        await asyncio.sleep(0)
        ctx.store.put("function", True)
        return "method"

    class Wait(Task):
        async def run(self, ctx):
            await asyncio.sleep(0)
            ctx.store.put("method", True)
            return "end"

    config = TaskConfig(where=where)
    flow = single(wait, config=config).register("method", Wait(), config=config)
    run = flow.start("begin", pool=shared_pool)
    assert run.wait(60) == "end"
    assert contents(run.store) == {"function": True, "method": True}


@EITHER
def test_a_task_needs_no_argument(where, shared_pool):
    """Functions, methods and callables may do without a context."""

    class Bare(Task):
        def run(self):
            return "end"

    for task in (lambda: "end", Bare(), Bare().run):
        assert single(task, config=TaskConfig(where=where)).orchestrate("begin", pool=shared_pool) == "end"


# -- parameters


@dataclass(frozen=True)
class Settings:
    """Parameters that a workflow declares."""

    size: int
    name: str = "default"


@EITHER
def test_declared_parameters_reach_the_tasks(where, shared_pool):
    """With a dataclass declared, tasks get an instance of it, be it given as one or as a mapping."""

    def look(ctx):
        ctx.store.put("params", ctx.params)
        return "end"

    flow = single(look, config=TaskConfig(where=where), params=Settings)
    for given in ({"size": 3}, Settings(3)):
        run = flow.start("begin", pool=shared_pool, params=given)
        assert run.wait(60) == "end"
        assert run.store.get("params") == Settings(3, "default")


def test_parameters_are_those_of_the_run(shared_pool):
    """Runs of one workflow at once each have their own parameters, in branches too."""
    flow = map_of(lambda ctx, item: ctx.params["base"] + item, range(3), all_, into="v")
    runs = [flow.start("split", pool=shared_pool, params={"base": base}) for base in (0, 10, 20)]
    assert [run.wait(60) for run in runs] == ["joined"] * 3
    assert [run.store.get("v") for run in runs] == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]


def test_parameters_that_do_not_fit_start_nothing():
    """A run with parameters that do not fit is refused before anything runs."""
    called = []
    with pytest.raises(ConfigurationError, match="size"):
        single(lambda: called.append(1) or "end", params=Settings).start("begin")
    assert called == []


# -- stores


def test_each_run_has_a_fresh_store():
    """Without an explicit store nothing is left for the next run."""
    flow = chain("a", "b", "c")
    assert [flow.start("a").wait(30) for _ in range(2)] == ["c", "c"]
    run = flow.start("a")
    run.wait(30)
    assert run.store.get("seen") == ["a", "b"]


@pytest.mark.parametrize("make", [SharedStore, MemoryStore])
def test_an_explicit_store_is_kept(make, shared_pool):
    """Runs of a workflow with a store find what is in it, and leave what they wrote."""
    store = make()
    store.put("seen", ["before"])
    flow = chain("a", "b", store=store, default_config=WORKER)
    for _ in range(2):
        run = flow.start("a", pool=shared_pool)
        assert run.wait(60) == "b"
        assert run.store is store
    assert store.get("seen") == ["before", "a", "a"]


def test_runs_that_share_a_store_lose_nothing(shared_pool):
    """Many runs at once on one store: every append and addition is there afterwards."""
    store = SharedStore()

    def write(ctx, item):
        ctx.store.append("items", (ctx.run_id, item))
        ctx.store.add("count")

    flow = map_of(write, range(10), all_, workflow={"store": store})
    runs = [flow.start("split", pool=shared_pool, run_id=str(number)) for number in range(6)]
    assert {run.wait(60) for run in runs} == {"joined"}
    assert store.get("count") == 60
    items = store.get("items")
    # Each run commits at once, in branch order.
    assert [[n for run_id, n in items if run_id == str(number)] for number in range(6)] == [list(range(10))] * 6
    assert [run_id for run_id, _ in items[::10] for _ in range(10)] == [run_id for run_id, _ in items]


@EITHER
def test_a_failed_attempt_writes_nothing(where, shared_pool):
    """What an attempt wrote before it failed is not there, neither for the next attempt nor at the end."""

    def write(ctx):
        ctx.store.append("attempts", ctx.attempt)
        ctx.store.put(f"by {ctx.attempt}", len(ctx.store.get("attempts")))
        if ctx.attempt < 3:
            raise RefusalError("no")
        return "end"

    run = single(write, config=TaskConfig(where=where, retry=Retry.fixed(5, 0.0))).start("begin", pool=shared_pool)
    assert run.wait(60) == "end"
    assert contents(run.store) == {"attempts": [3], "by 3": 1}


def test_a_router_reads_and_decides(shared_pool):
    """A router sees the store and is in the path; if it writes, the run fails, and nothing is written."""
    store = SharedStore()
    store.put("way", "left")
    flow = (
        Workflow("test", store=store)
        .register_router("fork", lambda ctx: ctx.store.get("way"))
        .register("left", lambda: "end")
        .register_router("writes", lambda ctx: ctx.store.put("k", 1) or "end")
        .add_exit_state("end")
    )
    run = flow.start("fork")
    assert run.wait(30) == "end"
    assert run.report().path == ["fork", "left", "end"]
    with pytest.raises(WorkflowError, match="state 'writes' is a router and must not write"):
        flow.orchestrate("writes")
    assert contents(store) == {"way": "left"}


# -- the handle and the report


def test_waiting_may_be_limited(shared_pool, tmp_path):
    """wait(timeout) raises TimeoutError while the run goes on, and the run is not disturbed by it."""
    run = single(Act(value="end", place=str(tmp_path), after=("go",)), config=WORKER).start("begin", pool=shared_pool)
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.05 s"):
        run.wait(0.05)
    assert "running" in repr(run)
    report = run.report()
    assert (report.state, report.path, report.error) == ("begin", ["begin"], None)
    assert report.states[0].duration is None
    mark(tmp_path, "go")
    assert run.wait(60) == "end"
    assert "finished" in repr(run)
    assert run.id in repr(run)


def test_every_run_has_an_id_of_its_own():
    """Runs without a given id get different ones."""
    flow = chain("a", "b")
    runs = [flow.start("a") for _ in range(5)]
    assert [run.wait(30) for run in runs] == ["b"] * 5
    assert len({run.id for run in runs}) == 5


def test_a_report_is_the_story_of_the_run(shared_pool):
    """Path, visits, attempts and durations of each state, and of each branch, are on the report."""
    flow = (
        Workflow("story")
        .register("begin", lambda: "split")
        .register_map("split", square, [1, 2, 3], JoinConfig(all_, "end"))
        .add_exit_state("end")
    )
    run = flow.start("begin", pool=shared_pool, run_id="r1")
    assert run.wait(60) == "end"
    report = run.report()
    assert (report.run_id, report.workflow, report.state, report.error) == ("r1", "story", "end", None)
    assert report.path == ["begin", "split", "end"]
    assert [(state.state, state.visit, state.attempts, state.error) for state in report.states] == [
        ("begin", 1, 1, None),
        ("split", 2, 3, None),
    ]
    assert report.started_at.tzinfo is UTC
    assert all(state.started_at.tzinfo is UTC and 0 <= state.duration <= report.duration for state in report.states)
    assert report.states[0].started_at <= report.states[1].started_at
    assert list(report.splits) == ["split"]
    assert report.splits["split"].values == [1, 4, 9]
    # It is over: the duration stands still.
    assert run.report().duration == report.duration


def test_a_report_is_plain_data(shared_pool):
    """to_dict of a run that had everything, errors and odd states included, is what JSON can say."""
    flow = (
        Workflow("plain")
        .register(S.BEGIN, lambda: S.SPLIT)
        .register_split(
            S.SPLIT, [Act(value=S.END), Act("fail"), Act("die")], JoinConfig(all_, S.END, on_failure=("odd", 1))
        )
        .register(("odd", 1), Act("fail"))
        .add_exit_state(S.END)
    )
    run = flow.start(S.BEGIN, pool=shared_pool)
    with pytest.raises(TaskError):
        run.wait(60)
    plain = json.loads(json.dumps(run.report().to_dict()))
    assert plain["path"] == ["BEGIN", "SPLIT", "('odd', 1)"]
    assert plain["state"] == "('odd', 1)"
    assert [state["state"] for state in plain["states"]] == plain["path"]
    assert plain["states"][1]["error"].startswith("JoinError: ")
    assert plain["error"].startswith("TaskError: state ('odd', 1)")
    assert [branch["status"] for branch in plain["splits"]["SPLIT"]["branches"]] == ["succeeded", "failed", "lost"]
    assert plain["splits"]["SPLIT"]["failed"] == 2
