"""What many runs, one pool and its observers have to do with each other."""

from __future__ import annotations

import enum
import itertools
import logging
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, timedelta

import loky
import pytest

from canobatch import (
    CancelToken,
    JoinConfig,
    JoinStrategy,
    Task,
    TaskConfig,
    TaskError,
    WorkerLostError,
    WorkerPool,
    Workflow,
)
from canobatch.errors import (
    ConfigurationError,
    PoolClosedError,
)
from canobatch.pool import close_default_pool
from tests.support.branches import FOREVER, Act, RefusalError, await_marks, map_of, mark, ran
from tests.support.single import Recorder, cancelled, chain, single
from tests.support.tasks import assert_works, square
from tests.support.watch import Scene, Witness, await_that

all_, any_ = JoinStrategy.all(), JoinStrategy.any()
WORKER = TaskConfig(where="worker")
PARENT = TaskConfig(where="parent")
EITHER = pytest.mark.parametrize("where", ["parent", "worker"])


class S(enum.Enum):
    """States that workers import."""

    BEGIN = 1
    SPLIT = 2
    END = 3


# -- observers


def test_events_tell_the_story(shared_pool):
    """Every event has the run, a running number and a time; starts and ends balance."""
    recorder = Recorder()
    flow = map_of(square, [1, 2], all_).with_observer(recorder)
    run = flow.start("split", pool=shared_pool)
    run.wait(60)
    kinds = recorder.kinds()
    assert kinds[:3] == ["run_started", "state_entered", "split_started"]
    assert sorted(kinds[3:7]) == ["branch_finished"] * 2 + ["branch_started"] * 2
    assert kinds[7:] == ["split_finished", "state_entered", "run_finished"]
    assert [event.seq for event in recorder.events] == list(range(1, 11))
    assert {event.run_id for event in recorder.events} == {run.id}
    assert all(event.time.tzinfo is UTC for event in recorder.events)


@pytest.mark.parametrize(("task", "kind"), [(Act("fail"), "run_failed"), (Act("ok", value="end"), "run_finished")])
def test_an_end_is_told_once(task, kind):
    """Each run ends with exactly one event, of the kind of its end, as the last."""
    recorder = Recorder()
    run = single(task).with_observer(recorder).start("begin")
    if kind == "run_failed":
        with pytest.raises(TaskError):
            run.wait(30)
    else:
        run.wait(30)
    assert recorder.kinds()[-1] == kind
    assert len([k for k in recorder.kinds() if k in {"run_finished", "run_failed", "run_cancelled"}]) == 1


def test_a_cancel_is_told_once():
    """A cancelled run ends with one event that says so."""
    recorder, token = Recorder(), CancelToken()
    token.cancel("why not")
    cancelled(chain("a", "b").with_observer(recorder).start("a", cancel=token))
    assert recorder.kinds()[-1] == "run_cancelled"
    assert recorder.events[-1].detail.reason == "why not"


def test_an_observer_that_fails_disturbs_nobody(caplog):
    """What an observer raises is logged; the run and the other observers go on."""

    class Failing:
        def on_event(self, event):
            raise RefusalError("not today")

    recorder = Recorder()
    flow = chain("a", "b").with_observer(Failing()).with_observer(recorder)
    with caplog.at_level(logging.ERROR):
        assert flow.orchestrate("a") == "b"
    assert recorder.kinds() == ["run_started", "state_entered", "state_entered", "run_finished"]
    assert "an observer failed" in caplog.text


@EITHER
def test_progress_reaches_the_observers(where, shared_pool):
    """What a task reports arrives with its state; the last report, at its total, always does."""

    def work(ctx):
        for done in range(101):
            ctx.progress(done, 100, f"step {done}")
        return "end"

    recorder = Recorder()
    single(work, config=TaskConfig(where=where)).with_observer(recorder).orchestrate("begin", pool=shared_pool)
    told = [event for event in recorder.events if event.kind == "progress"]
    assert told[-1].detail == (100, 100, "step 100")
    assert {(event.state, event.branch, event.attempt) for event in told} == {("begin", None, 1)}
    assert [event.detail[0] for event in told] == sorted(event.detail[0] for event in told)


# -- many runs on one pool


def test_many_runs_at_once_have_their_own_results(shared_pool):
    """Runs of several workflows on one pool do not mix."""
    flow = map_of(lambda ctx, item: (ctx.params["n"], item), range(8), all_, into="v")
    runs = [flow.start("split", pool=shared_pool, params={"n": n}) for n in range(12)]
    assert [run.wait(100) for run in runs] == ["joined"] * 12
    assert [run.store.get("v") for run in runs] == [[(n, item) for item in range(8)] for n in range(12)]


@pytest.mark.parametrize("long_task", [0.02, 0.0])
def test_a_large_run_does_not_starve_a_small_one(long_task, shared_pool):
    """A run with few tasks gets its share of workers while another would go on for ever."""
    small_has_ended = threading.Event()

    def items():
        for index in range(1_000_000):
            if small_has_ended.is_set():
                return
            yield index

    def work(ctx, item):
        time.sleep(long_task)
        ctx.store.put("k", 1) if item == 0 else None

    recorder = Recorder()
    large = map_of(work, items, all_, reduce=(lambda total, value: total + 1, 0), into="n").with_observer(recorder)
    large = large.start("split", pool=shared_pool)
    await_that(lambda: "branch_finished" in recorder.kinds()[-50:], "the large run should be under way")
    try:
        small = map_of(square, range(5), all_, into="v").start("split", pool=shared_pool)
        assert small.wait(60) == "joined"
        assert small.store.get("v") == [0, 1, 4, 9, 16]
        assert large.report().state == "split"
    finally:
        small_has_ended.set()
        assert large.wait(60) == "joined"


def test_runs_share_workers_evenly(shared_pool):
    """Of two runs that could each use all workers each gets about as much done, although one was first."""
    is_enough = threading.Event()

    def items():
        yield from itertools.takewhile(lambda _: not is_enough.is_set(), range(1_000_000))

    def work(ctx, item):
        time.sleep(0.005)

    def start():
        recorder = Recorder()
        flow = map_of(work, items, all_, reduce=(lambda total, value: total + 1, 0), into="n").with_observer(recorder)
        runs.append(flow.start("split", pool=shared_pool))
        return lambda: recorder.kinds().count("branch_finished")

    runs = []
    done_by_first = start()
    try:
        await_that(lambda: done_by_first() > 20, "the first run should be under way")
        done_by_second = start()
        await_that(lambda: done_by_second() > 20, "the second run should be under way")
        before = done_by_first(), done_by_second()
        await_that(lambda: done_by_second() - before[1] >= 200, "the second run should get on")
        done = done_by_first() - before[0]
    finally:
        is_enough.set()
        assert {run.wait(60) for run in runs} == {"joined"}
    assert 200 / 3 < done < 200 * 3


# -- pools


def pids_of(pool, count=1, **join):
    """Return the pids that served a map."""
    _, run = ran(map_of(lambda ctx, item: os.getpid(), range(count), all_, into="v", **join), pool)
    return run.store.get("v")


def in_worker(pool, fn):
    """Return what a function returns in a worker."""
    _, run = ran(map_of(lambda ctx, item: fn(), [0], all_, into="v"), pool)
    return run.store.get("v")[0]


def test_a_worker_is_replaced_after_so_many_calls():
    """With max_tasks_per_worker=n no worker serves more than n calls, and all calls are served."""
    with WorkerPool(2, max_tasks_per_worker=3) as pool:
        pids = pids_of(pool, 20)
    assert len(pids) == 20
    assert max(Counter(pids).values()) <= 3
    assert os.getpid() not in pids


def test_one_call_a_worker():
    """max_tasks_per_worker=1 gives each call a fresh process."""
    with WorkerPool(2, max_tasks_per_worker=1) as pool:
        pids = pids_of(pool, 6)
    assert len(set(pids)) == 6


def test_an_initializer_runs_first_in_every_worker():
    """The initializer has run before any task, once in each worker, those that replace others included."""

    def initialize():
        os.environ["INITIALIZED"] = f"{os.environ.get('INITIALIZED', '')}{os.getpid()};"

    with WorkerPool(2, initializer=initialize, max_tasks_per_worker=2) as pool:
        flow = map_of(lambda ctx, item: (os.getpid(), os.environ.get("INITIALIZED")), range(8), all_, into="v")
        _, run = ran(flow, pool)
    assert all(found == f"{pid};" for pid, found in run.store.get("v"))


def test_an_initializer_that_fails_fails_the_runs():
    """When the initializer raises, runs on the pool fail with an error that says so and has it as its cause."""

    def initialize():
        raise RefusalError("no licence")

    with WorkerPool(2, initializer=initialize) as pool:
        for _ in range(2):
            with pytest.raises(
                ConfigurationError, match="initializer failed in a worker: RefusalError: no licence"
            ) as caught:
                map_of(square, range(3), all_).orchestrate("split", pool=pool)
            assert isinstance(caught.value.__cause__, RefusalError)
        with pytest.raises(ConfigurationError, match="initializer failed"):
            pool.warm_up()


def test_an_initializer_that_kills_its_worker_fails_the_runs():
    """When workers die before they are ready the run fails; they are not started again for ever."""
    with (
        WorkerPool(1, initializer=lambda: os._exit(7)) as pool,
        pytest.raises(WorkerLostError, match=r"died before .* ready"),
    ):
        map_of(square, range(3), all_).orchestrate("split", pool=pool)


def test_workers_have_the_environment_they_are_given():
    """env is added to this process's environment in the workers, and nowhere else."""
    with WorkerPool(1, env={"CANOBATCH_TEST_ENV": "given"}) as pool:
        assert in_worker(pool, lambda: (os.environ.get("CANOBATCH_TEST_ENV"), os.environ.get("PATH"))) == (
            "given",
            os.environ["PATH"],
        )
    assert "CANOBATCH_TEST_ENV" not in os.environ


LIMITS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]


def limits(pool):
    """Return what numerical libraries in a worker are told."""
    names = list(LIMITS)
    return in_worker(pool, lambda: [os.environ.get(name) for name in names])


def test_threads_of_libraries_are_limited(monkeypatch):
    """threads_per_worker is what BLAS and OpenMP are told; what the user has set is left alone."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    with WorkerPool(1, threads_per_worker=3) as pool:
        assert limits(pool) == ["3", "3", "3"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with WorkerPool(1, threads_per_worker=3, env={"MKL_NUM_THREADS": "5"}) as pool:
        assert limits(pool) == ["7", "3", "5"]


def test_by_default_workers_share_the_cores(monkeypatch):
    """Without threads_per_worker each worker may use its part of the cores, at least one."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    cores = loky.cpu_count()
    for workers in (1, cores * 2):
        with WorkerPool(workers) as pool:
            assert limits(pool) == [str(max(1, cores // workers))] * 3


def test_by_default_there_are_as_many_workers_as_cores():
    """WorkerPool() has one worker for each core of this process."""
    with WorkerPool() as pool:
        pool.warm_up()
        assert len(pool.workers) == loky.cpu_count()


def test_warming_up_starts_all_workers():
    """Before it is needed a pool has no process; after warm_up all workers are ready and idle, each in its slot."""
    with WorkerPool(3) as pool:
        assert pool.workers == ()
        pool.warm_up()
        pool.warm_up()
        infos = pool.workers
        assert [info.slot for info in infos] == [0, 1, 2]
        assert len({info.pid for info in infos}) == 3
        assert not any(info.busy for info in infos)
        assert {(info.run_id, info.state, info.branch) for info in infos} == {(None, None, None)}
        assert set(pids_of(pool, 10)) <= {info.pid for info in infos}
        assert repr(pool) == "<WorkerPool 3 workers>"


@pytest.mark.parametrize("timeout", [0, timedelta(0)])
def test_warming_up_may_take_too_long(timeout):
    """warm_up raises TimeoutError when the workers are not ready in time; the pool is still good."""
    with WorkerPool(1) as pool:
        with pytest.raises(TimeoutError, match="not ready within 0 s"):
            pool.warm_up(timeout=timeout)
        assert_works(pool)


def test_workers_say_what_they_do(shared_pool, tmp_path):
    """While calls run, workers shows which worker has which run, state and branch."""
    place = str(tmp_path)
    tasks = [Act(place=place, after=("go",)) for _ in range(2)]
    flow = Workflow("test").register_split(S.SPLIT, tasks, JoinConfig(all_, S.END)).add_exit_state(S.END)
    run = flow.start(S.SPLIT, pool=shared_pool)
    await_marks(tmp_path, "0.1", "1.1")
    busy = [info for info in shared_pool.workers if info.busy]
    mark(tmp_path, "go")
    assert run.wait(60) is S.END
    assert {(info.run_id, info.state, info.branch) for info in busy} == {(run.id, S.SPLIT, 0), (run.id, S.SPLIT, 1)}


def test_closing_twice_is_fine():
    """close ends everything, and may be called again, also on a pool that never started."""
    unused = WorkerPool(1)
    unused.close()
    unused.close()
    pool = WorkerPool(1)
    pids_of(pool)
    pool.close()
    pool.close()
    assert pool.workers == ()
    assert repr(pool) == "<WorkerPool closed>"


def test_a_closed_pool_refuses_calls():
    """A run on a closed pool fails with an error that says so."""
    with WorkerPool(1) as pool:
        pids_of(pool)
    for task in (lambda: map_of(square, [1], all_).orchestrate("split", pool=pool), pool.warm_up):
        with pytest.raises(PoolClosedError, match="the pool is closed; make another"):
            task()


def test_closing_a_pool_ends_its_runs(tmp_path):
    """A run whose pool is closed under it fails with an error that says so; nothing of it lives on."""
    with Witness(tmp_path, "task") as witness:

        def hang(ctx, item):
            scene = Scene(str(tmp_path))
            scene.enter("task")
            scene.runs("task")
            time.sleep(FOREVER)

        with WorkerPool(2) as pool:
            run = map_of(hang, [1], all_).start("split", pool=pool)
            witness.scene.await_runs("task")
        with pytest.raises(PoolClosedError, match="closed while the run used it"):
            run.wait(60)
        assert witness.survivors() == []


def test_the_default_pool_is_shared_and_can_be_closed():
    """Runs without a pool use one that the process keeps; after it was closed the next run makes another."""
    first, second = set(pids_of(None, 10)), set(pids_of(None, 10))
    assert len(first | second) <= loky.cpu_count()
    close_default_pool()
    close_default_pool()
    third = set(pids_of(None, 10))
    assert not third & (first | second)


def test_the_working_directory_travels(shared_pool, tmp_path, monkeypatch):
    """A worker works where the launcher works when the run begins a state, also after that has moved."""
    for name in ("one", "two"):
        place = tmp_path / name
        place.mkdir()
        monkeypatch.chdir(place)
        assert in_worker(shared_pool, os.getcwd) == str(place)


def test_the_module_path_travels(shared_pool, tmp_path, monkeypatch):
    """A module that the launcher can import can be imported in workers that were started before."""
    (tmp_path / "brand_new_module.py").write_text("VALUE = 42\ndef task(ctx, item):\n    return VALUE + item\n")

    def load():
        import brand_new_module

        return brand_new_module.VALUE

    with pytest.raises(Exception, match="brand_new_module"):
        in_worker(shared_pool, load)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert in_worker(shared_pool, load) == 42
    import brand_new_module

    _, run = ran(map_of(brand_new_module.task, [1], all_, into="v"), shared_pool)
    assert run.store.get("v") == [43]
    del sys.modules["brand_new_module"]


def test_a_definition_is_sent_anew_when_it_differs(shared_pool):
    """Workflows whose tasks look alike but differ do not get each other's code or values."""
    for factor in range(5):
        _, run = ran(map_of(lambda ctx, item, factor=factor: item * factor, range(3), all_, into="v"), shared_pool)
        assert run.store.get("v") == [0, factor, 2 * factor]


def test_what_a_task_keeps_in_its_worker_stays_there(shared_pool):
    """A task may change its own object: the launcher's and the next attempt's are as they were sent."""

    @dataclass
    class Counting(Task):
        count: int = 0

        def run(self, ctx):
            self.count += 1
            return self.count

    task = Counting()
    flow = Workflow("test").register_split("split", [task] * 3, JoinConfig(all_, "end", into="v")).add_exit_state("end")
    ran(flow, shared_pool)
    assert task.count == 0
