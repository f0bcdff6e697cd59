"""Models in one workflow, with resources, breakers, limits and large values, from __main__, and many at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from canobatch import CircuitBreaker, RateLimiter, Resource, Retry, RunCancelledError, TaskConfig, TaskError
from canobatch.errors import CircuitOpenError
from canobatch.models import (
    BatchTask,
    CompensatableTask,
    Count,
    Done,
    ErrorPolicy,
    More,
    Pending,
    PollTask,
    Ready,
    SteppedTask,
    StreamTask,
    TimerTask,
)
from canobatch.workflow import Workflow
from tests.support.branches import await_marks, mark, marks
from tests.support.models import WORKER, Recorder, began, state_of

EITHER = pytest.mark.parametrize("config", [None, WORKER], ids=["here", "worker"])


class Calls(BatchTask):
    """Items that fail from the third on."""

    def load(self):
        return range(8)

    def process_item(self, ctx, item):
        if item >= 2:
            raise ConnectionError("no route")
        return item

    def finish(self, ctx, results):
        ctx.store.put("errors", [type(result.error).__name__ for result in results if result.error])
        return "end"


@pytest.mark.parametrize("where", [None, "parent"])
def test_a_breaker_opens_on_items(where, shared_pool):
    """Items that fail open it; those after are refused without being made."""
    breaker = CircuitBreaker(failure_threshold=2, reset_timeout=1000)
    seen = Recorder()
    config = TaskConfig(circuit_breaker=breaker, where=where)

    class Finishes(Calls):
        def finish(self, ctx, results):
            raise AssertionError("finish is refused as well")

    with pytest.raises(CircuitOpenError):
        began(state_of(Finishes(), config=config, observer=seen), shared_pool).wait(30)
    failures = [type(event.detail).__name__ for event in seen.of("item_failed")]
    assert failures == ["TaskError"] * 2 + ["CircuitOpenError"] * 4


def test_a_limiter_paces_polls(shared_pool):
    """Each poll takes a token: three polls at one in a tenth of a second take at least two of them."""

    class Thrice(PollTask):
        def poll(self, ctx):
            ctx.store.add("polls")
            return Ready("end") if ctx.store.get("polls") == 3 else Pending(0)

    config = TaskConfig(rate_limiter=RateLimiter(1, per=0.1))
    began_at = time.monotonic()
    assert began(state_of(Thrice(), config=config), shared_pool).wait(30) == "end"
    assert time.monotonic() - began_at >= 0.19


def test_a_limiter_paces_items_in_workers(shared_pool):
    """Items of a stream wait at the gate in the parent."""

    class Four(StreamTask):
        concurrency = 2
        window = Count(4)

        def open(self, ctx, cursor):
            return range(4)

        def process_item(self, ctx, item):
            return item, item

        def flush_window(self, ctx, outputs):
            ctx.store.put("outputs", outputs)

        def on_close(self, ctx, reason):
            return "end"

    config = TaskConfig(rate_limiter=RateLimiter(1, per=0.05))
    began_at = time.monotonic()
    run = began(state_of(Four(), config=config), shared_pool)
    assert run.wait(30) == "end"
    assert run.store.get("outputs") == [0, 1, 2, 3]
    assert time.monotonic() - began_at >= 0.14


def test_a_roll_back_passes_an_open_breaker(shared_pool):
    """What was done is undone whatever the breaker says."""
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=1000)

    class Reserve(CompensatableTask):
        config = TaskConfig(circuit_breaker=breaker)

        def run(self, ctx):
            return "next", "seat"

        def compensate(self, ctx, output):
            ctx.store.put("undone", output)

    def fail():
        raise OSError("no")

    flow = Workflow("test").register_with_compensation("S", Reserve()).add_exit_state("end")
    flow.register("next", fail, config=TaskConfig(circuit_breaker=breaker))
    run = began(flow, shared_pool)
    with pytest.raises(TaskError, match="no"):
        run.wait(30)
    assert run.store.get("undone") == "seat"


class Till(Resource):
    """Says when it is open."""

    def __init__(self):
        self.log = []

    def setup(self):
        self.log.append("setup")

    def teardown(self):
        self.log.append("teardown")


def test_resources_live_until_the_roll_back_is_over(shared_pool):
    """A compensation finds the resources of its run still set up."""
    till = Till()

    class Charge(CompensatableTask):
        def run(self, ctx):
            ctx.resource("till").log.append("charge")
            return "next", 5

        def compensate(self, ctx, output):
            ctx.resource("till").log.append("refund")

    def fail():
        raise OSError("no")

    flow = Workflow("test", resources={"till": till}).register("next", fail).add_exit_state("end")
    flow.register_with_compensation("S", Charge())
    with pytest.raises(TaskError):
        began(flow, shared_pool).wait(30)
    assert till.log == ["setup", "charge", "refund", "teardown"]


class Arrays(BatchTask):
    """Items, results and writes of several megabytes."""

    concurrency = 2

    def load(self):
        return [np.full(500_000, n, dtype="f8") for n in range(4)]

    def process_item(self, ctx, item):
        ctx.store.put(f"doubled-{ctx.branch}", item * 2)
        return item + 1

    def finish(self, ctx, results):
        assert [float(result.value.sum()) for result in results] == [500_000 * (n + 1) for n in range(4)]
        assert float(ctx.store.get("doubled-3").sum()) == 500_000 * 6
        ctx.store.put("last", results[-1].value)
        return "end"


@EITHER
def test_large_values_pass_through_a_batch(config, shared_pool):
    """Arrays are items, results and writes, seen by finish before they are committed."""
    run = began(state_of(Arrays(), config=config), shared_pool)
    assert run.wait(60) == "end"
    assert float(run.store.get("last").sum()) == 500_000 * 4
    assert float(run.store.get("doubled-2").sum()) == 500_000 * 4


class ArraySteps(SteppedTask):
    """A cursor and writes of several megabytes."""

    def step(self, ctx, cursor):
        if cursor is None:
            ctx.store.put("state", np.zeros(300_000))
            return More(np.ones(300_000))
        ctx.store.update("state", lambda state: state + 1)
        ctx.store.put("seen", float(ctx.store.get("state").sum() + cursor.sum()))
        return Done("end")


@EITHER
def test_large_cursors_pass_through_steps(config, shared_pool):
    """A cursor may be an array."""
    run = began(state_of(ArraySteps(), config=config), shared_pool)
    assert run.wait(60) == "end"
    assert run.store.get("seen") == 600_000


class LargeOutput(CompensatableTask):
    def run(self, ctx):
        return "next", np.full(400_000, 3.0)

    def compensate(self, ctx, output):
        ctx.store.put("undone", float(output.sum()))


@EITHER
def test_a_large_output_is_given_back(config, shared_pool):
    """What was made is what is undone, also if it is an array."""

    def fail():
        raise OSError("no")

    flow = Workflow("test").register_with_compensation("S", LargeOutput(), config=config).add_exit_state("end")
    run = began(flow.register("next", fail), shared_pool)
    with pytest.raises(TaskError):
        run.wait(60)
    assert run.store.get("undone") == 1_200_000


class LargeWrites(PollTask):
    """Polls that replace and remove what the poll before wrote."""

    def poll(self, ctx):
        ctx.store.add("polls")
        polls = ctx.store.get("polls")
        if polls == 1:
            ctx.store.put("large", np.zeros(300_000))
            ctx.store.put("small", 1)
        elif polls == 2:
            assert len(ctx.store.get("large")) == 300_000
            ctx.store.clear()
            ctx.store.put("polls", 2)
            ctx.store.put("large", np.ones(300_000))
        elif polls == 3:
            assert ctx.store.keys() == ["large", "polls"]
            assert float(ctx.store.get("large").sum()) == 300_000
            return Ready("end")
        return Pending(0)


@EITHER
def test_polls_see_large_writes_replaced_and_cleared(config, shared_pool):
    """What is staged is seen as a commit would make it."""
    run = began(state_of(LargeWrites(), config=config), shared_pool)
    run.store.put("before", 1)
    assert run.wait(60) == "end"
    assert float(run.store.get("large").sum()) == 300_000


SCRIPT = """
import enum, sys
from dataclasses import dataclass
from canobatch import Retry, TaskConfig, Workflow, WorkerPool
from canobatch.models import *

class S(enum.Enum):
    POLL = 1; BATCH = 2; STEP = 3; STREAM = 4; SAGA = 5; FAIL = 6; END = 7

@dataclass
class Item:
    n: int

class P(PollTask):
    def poll(self, ctx): return Ready(S.BATCH)

@dataclass
class B(BatchTask):
    size: int
    concurrency: int = 2
    def load(self, ctx): return [Item(n) for n in range(self.size)]
    def process_item(self, ctx, item): return Item(item.n * 2)
    def finish(self, ctx, results):
        assert all(type(r.value) is Item for r in results), results
        ctx.store.put("items", [r.value for r in results])
        return S.STEP

class St(SteppedTask):
    def step(self, ctx, cursor):
        if cursor is None: return More(Item(1))
        assert type(cursor) is Item
        return Done(S.STREAM)

class Str(StreamTask):
    concurrency = 2
    window = Count(2)
    def open(self, ctx, cursor): return [Item(n) for n in range(5)]
    def process_item(self, ctx, item): return Item(item.n + 1), Item(item.n)
    def flush_window(self, ctx, outputs): ctx.store.append("windows", outputs)
    def on_close(self, ctx, reason): return S.SAGA

class C(CompensatableTask):
    def run(self, ctx): return S.FAIL, Item(7)
    def compensate(self, ctx, output): ctx.store.put("undone", output)

def fail(): raise ValueError("as planned")

where = sys.argv[1]
w = (Workflow("main", default_config=TaskConfig(where=None if where == "none" else where))
     .register(S.POLL, P()).register(S.BATCH, B(3)).register_stepped(S.STEP, St()).register_stream(S.STREAM, Str())
     .register_with_compensation(S.SAGA, C()).register(S.FAIL, fail).add_exit_state(S.END))
with WorkerPool(2) as pool:
    run = w.start(S.POLL, pool=pool)
    try:
        run.wait()
    except Exception as error:
        print(error)
    print(run.store.get("items") == [Item(0), Item(2), Item(4)])
    print(run.store.get("windows") == [[Item(1), Item(2)], [Item(3), Item(4)], [Item(5)]])
    print(run.store.get("undone") == Item(7))
"""


@pytest.mark.parametrize("where", ["none", "worker"])
def test_models_of_a_script(where, run_script):
    """Models, items, cursors and outputs may be classes of ``__main__``, without a guard."""
    done = run_script(SCRIPT, where)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["state FAIL, attempt 1: ValueError: as planned", "True", "True", "True"]


class Brief(TimerTask):
    def wait(self):
        return 0.01

    def after_wait(self):
        return "C"


class Fetch(PollTask):
    on_poll_error = ErrorPolicy.tolerate(1, pause=0.01)

    def poll(self, ctx):
        ctx.store.append("trail", "poll")
        return Ready("B")


class Sum(BatchTask):
    concurrency = 2

    def load(self, ctx):
        return range(ctx.params.n)

    def process_item(self, ctx, item):
        return item + 1

    def finish(self, ctx, results):
        ctx.store.put("sum", sum(result.value for result in results))
        return "D"


class Walk(SteppedTask):
    def step(self, ctx, cursor):
        ctx.store.append("trail", cursor)
        return Done("E") if cursor == 2 else More((cursor or 0) + 1)


def test_runs_of_all_models_side_by_side(shared_pool):
    """A dozen runs of one workflow share its instances, and nothing else."""
    flow = Workflow("mixed", default_config=WORKER)
    flow.register("S", Fetch()).register("B", Brief()).register("C", Sum()).register_stepped("D", Walk())
    flow.register_router("E", lambda ctx: "end" if ctx.store.get("sum") else "other").add_exit_states(["end", "other"])
    runs = [began(flow, shared_pool, params={"n": n}) for n in range(12)]
    for n, run in enumerate(runs):
        assert run.wait(60) == ("end" if n else "other")
        assert run.store.get("sum") == n * (n + 1) // 2
        assert run.store.get("trail") == ["poll", None, 1, 2]
        assert run.report().path == ["S", "B", "C", "D", "E", "end" if n else "other"]


def test_a_task_in_the_parent_that_gives_up_on_a_cancel_has_not_failed(shared_pool, tmp_path):
    """A phase that raises because the run was cancelled ends it as cancelled."""

    class Gives(PollTask):
        def poll(self, ctx):
            mark(str(tmp_path), "polls")
            while not ctx.cancelled:
                time.sleep(0.001)
            raise InterruptedError("cancelled")

    run = began(state_of(Gives(), config=TaskConfig(retry=Retry.fixed(3, 0))), shared_pool)
    await_marks(tmp_path, "polls")
    run.cancel("enough")
    with pytest.raises(RunCancelledError, match="enough"):
        run.wait(30)


def test_phases_have_the_worker_s_facts(shared_pool, tmp_path):
    """A phase in a worker knows run, state and attempt, and may report progress."""

    class Reports(SteppedTask):
        def step(self, ctx, cursor):
            mark(str(tmp_path), f"{ctx.run_id}-{ctx.state}-{ctx.attempt}-{ctx.branch}")
            Path(f"{tmp_path}/pid").write_text(str(os.getpid()))
            ctx.progress(1, 1, "half")
            return Done("end")

    seen = Recorder()
    run = began(state_of(Reports(), config=WORKER, observer=seen), shared_pool, run_id="mine")
    assert run.wait(30) == "end"
    assert "mine-S-1-None" in marks(tmp_path)
    assert int((tmp_path / "pid").read_text()) != os.getpid()
    assert [event.detail for event in seen.of("progress")] == [(1.0, 1.0, "half")]
