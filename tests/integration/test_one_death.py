"""Promise 3: whatever a task does to its process or its result, one attempt fails, and nobody else notices."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from canobatch import JoinConfig, JoinStrategy, Retry, TaskConfig, WorkerPool, Workflow
from canobatch.errors import (
    JoinError,
    MemoryLimitError,
    PayloadError,
    RemoteError,
    RetryExhaustedError,
    TaskError,
    WorkerLostError,
)
from tests.support import broken
from tests.support.tasks import assert_works
from tests.support.watch import Scene, Witness, await_that

#: Of how many branches the middle one dies.
BRANCHES = 5
DEADLY = 2


def run_with(deadly, pool, *, config=None):
    """Run a split in which one branch calls ``deadly``; return its result and the siblings', which must be right."""

    def branch(ctx, item):
        ctx.store.append("items", item)
        return deadly() if item == DEADLY else item * 10

    join = JoinConfig(JoinStrategy.partial_timeout(), "end", timeout=100.0, into="v")
    workflow = Workflow("w", default_config=config).register_map("s", branch, range(BRANCHES), join)
    run = workflow.add_exit_state("end").start("s", pool=pool)
    assert run.wait(100) == "end"
    split = run.report().splits["s"]
    others = [n for n in range(BRANCHES) if n != DEADLY]
    assert [split[n].status for n in others] == ["succeeded"] * len(others)
    assert [split[n].attempts for n in others] == [1] * len(others)
    assert run.store.get("v") == [n * 10 for n in others]
    # The failed attempt has written nothing.
    assert run.store.get("items") == others
    return split[DEADLY]


def segfault():
    ctypes.string_at(0)


def abort():
    os.abort()


@pytest.mark.parametrize(
    ("deadly", "number"),
    [
        (segfault, signal.SIGSEGV),
        (abort, signal.SIGABRT),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), signal.SIGKILL),
        (lambda: os.kill(os.getppid(), 0) or signal.raise_signal(signal.SIGUSR1), signal.SIGUSR1),
    ],
    ids=["segfault", "abort", "sigkill", "sigusr1"],
)
def test_a_worker_that_a_signal_ends_is_one_lost_branch(deadly, number):
    """A branch whose worker dies of a signal is lost; the error names worker, signal, state, branch and attempt."""
    with WorkerPool(2) as pool:
        lost = run_with(deadly, pool)
        assert lost.status == "lost"
        error = lost.error
        assert type(error) is WorkerLostError
        assert (error.signal, error.exitcode) == (number, None)
        assert (error.state, error.branch, error.attempt, error.path) == ("s", DEADLY, 1, ("s",))
        assert isinstance(error.pid, int)
        assert number.name in str(error)
        assert f"branch {DEADLY}" in str(error)
        assert lost.duration is not None
        assert_works(pool)


@pytest.mark.parametrize("code", [0, 1, 77])
def test_a_worker_that_exits_is_one_lost_branch(code):
    """``os._exit`` in a task, also with status 0, is a lost branch whose error has the exit status."""
    with WorkerPool(2) as pool:
        lost = run_with(lambda: os._exit(code), pool)
        assert lost.status == "lost"
        assert type(lost.error) is WorkerLostError
        assert (lost.error.exitcode, lost.error.signal) == (code, None)
        assert f"status {code}" in str(lost.error)
        assert_works(pool)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_an_exception_that_would_end_a_process_fails_the_branch(kind):
    """``sys.exit``, KeyboardInterrupt and the like are failed attempts, and the worker lives on."""

    def deadly():
        raise kind(5)

    with WorkerPool(1) as pool:
        pool.warm_up()
        before = pool.workers
        failed = run_with(deadly, pool)
        assert failed.status == "failed"
        assert type(failed.error) is TaskError
        assert type(failed.error.__cause__) is kind
        assert failed.error.__cause__.args == (5,)
        assert failed.error.branch == DEADLY
        assert "deadly" in failed.error.traceback
        assert_works(pool)
        assert pool.workers == before


def test_sys_exit_in_a_thread_or_with_text_ends_nobody():
    """``sys.exit`` with a text, or in a thread of the task, does not end the worker either."""

    def deadly():
        thread = threading.Thread(target=sys.exit)
        thread.start()
        thread.join()
        sys.exit("so long")

    with WorkerPool(2) as pool:
        failed = run_with(deadly, pool)
        assert failed.error.__cause__.args == ("so long",)
        assert_works(pool)


def test_an_exception_that_does_not_pickle_comes_as_its_text():
    """An exception whose class does not pickle is replaced by one that has its class's name, text and traceback."""

    def deadly():
        raise broken.PicklesNotError("the disk is full")

    with WorkerPool(2) as pool:
        error = run_with(deadly, pool).error
        assert type(error) is TaskError
        assert isinstance(error.__cause__, RemoteError)
        assert error.__cause__.type_name == "tests.support.broken.PicklesNotError"
        assert "the disk is full" in str(error)
        assert "in deadly" in error.traceback
        assert_works(pool)


@pytest.mark.parametrize(
    "make",
    [
        lambda: broken.UnpicklesNotError(404, "no such thing"),
        lambda: broken.ExitsWhenUnpickledError("404: no such thing"),
    ],
    ids=["constructor", "exits"],
)
def test_an_exception_that_does_not_unpickle_comes_as_its_text(make):
    """An exception that breaks or exits when it is rebuilt is replaced in the worker already."""

    def deadly():
        raise make()

    with WorkerPool(2) as pool:
        error = run_with(deadly, pool).error
        assert type(error) is TaskError
        assert isinstance(error.__cause__, RemoteError)
        assert "404: no such thing" in str(error)
        assert "in deadly" in error.traceback
        assert_works(pool)


def test_an_exception_without_a_text_is_an_error_all_the_same():
    """An exception whose ``str()`` raises fails its branch like any other."""

    def deadly():
        raise broken.HasNoTextError

    with WorkerPool(2) as pool:
        failed = run_with(deadly, pool)
        assert failed.status == "failed"
        assert isinstance(failed.error, TaskError)
        assert "HasNoTextError" in str(failed.error) or "HasNoTextError" in repr(failed.error.__cause__)
        assert_works(pool)


def test_causes_and_notes_survive_beside_a_broken_one():
    """Of a chain of exceptions each link comes whole, or as its text where it cannot."""

    def deadly():
        try:
            try:
                raise broken.PicklesNotError("innermost")
            except Exception as error:
                error.add_note("lost with its class")
                raise KeyError("middle") from error
        except KeyError as error:
            outer = ValueError("outer")
            outer.add_note("see the manual")
            raise outer from error

    with WorkerPool(2) as pool:
        own = run_with(deadly, pool).error.__cause__
        assert isinstance(own, ValueError)
        assert own.__notes__ == ["see the manual"]
        assert isinstance(own.__cause__, KeyError)
        assert isinstance(own.__cause__.__cause__, RemoteError)
        assert "innermost" in str(own.__cause__.__cause__)


@pytest.mark.parametrize(
    "make",
    [threading.Lock, lambda: (n for n in range(3)), sys._getframe, broken.PicklesForever],
    ids=["lock", "generator", "frame", "recursion"],
)
def test_a_result_that_does_not_pickle_fails_its_branch(make):
    """A result that cannot be pickled is a `PayloadError` that says so and what to do."""
    with WorkerPool(2) as pool:
        failed = run_with(make, pool)
        assert failed.status == "failed"
        assert type(failed.error) is PayloadError
        assert isinstance(failed.error, TypeError)
        assert failed.error.branch == DEADLY
        assert "result" in str(failed.error)
        assert "plain data" in str(failed.error) or "RecursionError" in str(failed.error)
        assert_works(pool)


def test_a_written_value_that_does_not_pickle_fails_where_it_is_written():
    """``put`` of what cannot be pickled raises in the task, which may go on without it."""

    def deadly(ctx):
        try:
            ctx.store.put("lock", threading.Lock())
        except TypeError as error:
            return str(error)

    with WorkerPool(1) as pool:
        join = JoinConfig(JoinStrategy.all(), "end", into="v")
        run = Workflow("w").register_split("s", [deadly], join).add_exit_state("end").start("s", pool=pool)
        assert run.wait(60) == "end"
        assert "lock" in run.store.get("v")[0]
        assert "lock" not in run.store


@pytest.mark.parametrize("how", ["raise", "exit"])
def test_a_result_that_does_not_unpickle_here_fails_its_branch(how):
    """A result that breaks or exits when the launcher rebuilds it is a `PayloadError` of its branch."""
    here = os.getpid()
    with WorkerPool(2) as pool:
        failed = run_with(lambda: broken.UnpicklesNotInThisProcess(here, how), pool)
        assert failed.status == "failed"
        assert type(failed.error) is PayloadError
        assert failed.error.branch == DEADLY
        assert "unpacked" in str(failed.error)
        assert_works(pool)


def test_a_result_that_unpickles_nowhere_fails_its_branch():
    """A result that can be rebuilt in no process is a `PayloadError`, and is not tried again."""
    with WorkerPool(2) as pool:
        failed = run_with(broken.UnpicklesNot, pool, config=TaskConfig(retry=Retry.fixed(3, 0.0)))
        assert type(failed.error) is PayloadError
        assert failed.attempts == 1
        assert_works(pool)


def test_a_stored_value_that_does_not_unpickle_fails_its_reader_only():
    """A value that cannot be rebuilt by a reader is an error of that reader; the store and others are fine."""
    with WorkerPool(2) as pool:

        def write(ctx):
            ctx.store.put("bad", broken.UnpicklesNot())
            ctx.store.put("good", 1)
            return "read"

        def read(ctx, item):
            return ctx.store.get(item)

        join = JoinConfig(JoinStrategy.partial_timeout(), "end", timeout=100.0, into="v")
        workflow = Workflow("w").register("write", write, config=TaskConfig(where="worker"))
        workflow.register_map("read", read, ["good", "bad", "good"], join).add_exit_state("end")
        run = workflow.start("write", pool=pool)
        assert run.wait(60) == "end"
        assert run.store.get("v") == [1, 1]
        assert "'bad'" in str(run.report().splits["read"][1].error)


def test_an_item_that_does_not_unpickle_fails_its_branch():
    """An item that a worker cannot rebuild is a `PayloadError` of its branch; the others run."""
    with WorkerPool(2) as pool:
        join = JoinConfig(JoinStrategy.partial_timeout(), "end", timeout=100.0, into="v")
        items = [1, broken.UnpicklesNot(), 3]
        workflow = Workflow("w").register_map("s", lambda ctx, item: item, items, join).add_exit_state("end")
        run = workflow.start("s", pool=pool)
        assert run.wait(60) == "end"
        assert run.store.get("v") == [1, 3]
        error = run.report().splits["s"][1].error
        assert type(error) is PayloadError
        assert "item of branch 1" in str(error)
        assert_works(pool)


def test_a_task_that_does_not_unpickle_fails_its_split_clearly():
    """A task that a worker cannot rebuild fails with a `PayloadError` that says where to look."""

    class Task:
        def __call__(self, ctx):
            return 1

        def __reduce__(self):
            return broken._refuse, ("this task cannot be rebuilt",)

    with WorkerPool(2) as pool:
        workflow = Workflow("w").register_split("s", [Task()], JoinConfig(JoinStrategy.all(), "end"))
        with pytest.raises(JoinError) as caught:
            workflow.add_exit_state("end").orchestrate("s", pool=pool)
        assert type(caught.value.result[0].error) is PayloadError
        assert "this task cannot be rebuilt" in str(caught.value)
        assert_works(pool)


def test_the_recursion_limit_fails_the_branch():
    """Endless recursion is a RecursionError of its branch."""

    def deadly():
        return deadly() + 1

    with WorkerPool(2) as pool:
        failed = run_with(deadly, pool)
        assert failed.status == "failed"
        assert type(failed.error) is TaskError
        assert isinstance(failed.error.__cause__, RecursionError)
        assert_works(pool)


def test_an_exhausted_memory_limit_is_one_failed_branch():
    """An attempt over its memory limit is killed; the error has limit and use, and is a MemoryError."""
    limit = 100_000_000

    def deadly():
        held = []
        while True:
            held.append(os.urandom(1000) * 1000)

    with WorkerPool(2) as pool:
        failed = run_with(deadly, pool, config=TaskConfig(memory_limit=limit))
        assert failed.status == "failed"
        error = failed.error
        assert type(error) is MemoryLimitError
        assert isinstance(error, MemoryError)
        assert error.limit == limit
        assert error.used > limit
        assert "100 MB" in str(error)
        assert (error.state, error.branch, error.attempt) == ("s", DEADLY, 1)
        assert_works(pool)


def test_memory_that_the_kernel_refuses_fails_the_branch():
    """A MemoryError of the task itself, under a limit that the task has set, is a failed attempt."""

    def deadly():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
        try:
            return bytearray(1 << 31)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    with WorkerPool(2) as pool:
        failed = run_with(deadly, pool)
        assert isinstance(failed.error.__cause__, MemoryError)
        assert_works(pool)


def test_a_result_too_large_for_memory_fails_the_branch():
    """A result for whose pickle there is no memory is a failed attempt, not a hang."""

    def deadly():
        held = bytes(300_000_000)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, resource.RLIM_INFINITY))
        # Not the bytes themselves: those are written as they are.
        return [held]

    with WorkerPool(1) as pool:
        failed = run_with(deadly, pool)
        assert failed.status == "failed"
        assert isinstance(failed.error, PayloadError)
        assert "MemoryError" in str(failed.error) or "memory" in str(failed.error).lower()


def test_a_task_that_closes_all_descriptors_fails_alone():
    """A task that closes its worker's channel loses its branch, and no other."""
    with WorkerPool(2) as pool:
        lost = run_with(lambda: os.closerange(0, 1000), pool)
        assert lost.status == "lost"
        assert isinstance(lost.error, WorkerLostError)
        assert_works(pool)


def test_a_task_that_forks_and_returns_twice_counts_once():
    """When a task forks and both processes return, the parent's result counts and the child ends."""
    with WorkerPool(2) as pool:
        join = JoinConfig(JoinStrategy.all(), "end", into="v")
        workflow = Workflow("w").register_map("s", lambda ctx, item: (item, os.fork() > 0), range(4), join)
        run = workflow.add_exit_state("end").start("s", pool=pool)
        assert run.wait(60) == "end"
        assert run.store.get("v") == [(n, True) for n in range(4)]
        assert_works(pool)


def test_what_a_task_left_running_is_dead_before_its_result_is_accepted(tmp_path):
    """Children that a finished task left behind are killed before the run goes on, and the worker is kept."""

    def task():
        scene = Scene(tmp_path)
        descriptor = scene.enter("left")
        child = subprocess.Popen(["sleep", "100000"], start_new_session=True, pass_fds=(descriptor,))
        scene.runs("left", child.pid)
        os.close(descriptor)
        return os.getpid()

    with Witness(tmp_path, "left") as witness, WorkerPool(1) as pool:
        alive = []
        join = JoinConfig(JoinStrategy.all(), "look", into="v")
        workflow = Workflow("w").register_split("s", [task], join)

        def look(ctx):
            worker = witness.scene.pids("left")[0]
            alive.extend(line for line in witness.survivors() if str(worker) not in line)
            return "end"

        run = workflow.register("look", look).add_exit_state("end").start("s", pool=pool)
        assert run.wait(60) == "end"
        assert alive == []
        assert [worker.pid for worker in pool.workers] == run.store.get("v")


# -- retries of what was lost


def dies_once(ctx, item):
    ctx.store.append("attempts", (item, ctx.attempt))
    if item == DEADLY and ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return item, ctx.attempt


def test_a_lost_worker_is_retried_if_a_retry_is_left():
    """With ``retry_lost_worker`` (the default) another attempt follows a lost one; only the last has written."""
    with WorkerPool(2) as pool:
        config = TaskConfig(retry=Retry.fixed(1, 0.0))
        join = JoinConfig(JoinStrategy.all(), "end", into="v")
        workflow = Workflow("w", default_config=config).register_map("s", dies_once, range(5), join)
        run = workflow.add_exit_state("end").start("s", pool=pool)
        assert run.wait(60) == "end"
        expected = [(n, 2 if n == DEADLY else 1) for n in range(5)]
        assert run.store.get("v") == run.store.get("attempts") == expected
        assert [branch.attempts for branch in run.report().splits["s"]] == [attempt for _, attempt in expected]


def test_a_lost_worker_is_not_retried_if_that_is_not_wanted():
    """With ``retry_lost_worker=False`` a lost attempt is the last, whatever retries are left."""
    with WorkerPool(2) as pool:
        config = TaskConfig(retry=Retry.fixed(5, 0.0), retry_lost_worker=False)
        lost = run_with(lambda: os._exit(3), pool, config=config)
        assert (lost.status, lost.attempts) == ("lost", 1)
        assert type(lost.error) is WorkerLostError
        assert_works(pool)


def test_a_worker_that_is_lost_each_time_exhausts_the_retries():
    """After the last allowed attempt the error counts the attempts and has the last loss as its cause."""
    with WorkerPool(2) as pool:
        lost = run_with(lambda: os._exit(3), pool, config=TaskConfig(retry=Retry.fixed(2, 0.0)))
        assert lost.attempts == 3
        assert lost.status == "lost"
        error = lost.error
        assert type(error) is RetryExhaustedError
        assert error.attempts == 3
        assert isinstance(error.last_error, WorkerLostError)
        assert error.last_error.exitcode == 3
        assert error.last_error.attempt == 3
        assert_works(pool)


@pytest.mark.parametrize("retry_lost_worker", [True, False])
def test_without_retries_a_lost_worker_is_final(retry_lost_worker):
    """``retry_lost_worker`` says which errors may be retried; it allows no attempt that ``retry`` does not."""
    with WorkerPool(2) as pool:
        lost = run_with(lambda: os._exit(3), pool, config=TaskConfig(retry_lost_worker=retry_lost_worker))
        assert lost.attempts == 1
        assert type(lost.error) is WorkerLostError


def test_retry_on_says_which_errors_are_retried():
    """An error outside ``retry_on`` fails its branch at once; a SystemExit is outside the default."""

    def deadly():
        sys.exit(1)

    with WorkerPool(2) as pool:
        assert run_with(deadly, pool, config=TaskConfig(retry=Retry.fixed(3, 0.0))).attempts == 1
        config = TaskConfig(retry=Retry.fixed(3, 0.0), retry_on=(SystemExit,))
        assert run_with(deadly, pool, config=config).attempts == 4


def test_a_lost_single_task_is_an_error_of_its_state():
    """A single task whose worker dies fails its state: ``on_error`` is taken, or the error raised."""
    with WorkerPool(1) as pool:
        workflow = Workflow("w").register("s", lambda: os._exit(9), config=TaskConfig(where="worker"))
        with pytest.raises(WorkerLostError) as caught:
            workflow.add_exit_state("end").orchestrate("s", pool=pool)
        assert (caught.value.exitcode, caught.value.branch, caught.value.state) == (9, None, "s")
        workflow = Workflow("w").add_exit_state("bad")
        workflow.register("s", lambda: os._exit(9), config=TaskConfig(where="worker"), on_error="bad")
        assert workflow.orchestrate("s", pool=pool) == "bad"
        assert_works(pool)


# -- many at once


def test_deaths_among_many_small_tasks_are_counted_exactly():
    """Of many small tasks that share windows exactly those that die are lost; all others run at their first attempt."""
    deadly = {13, 14, 200, 511, 512, 999}

    def branch(ctx, item):
        if item in deadly:
            os._exit(1)
        return item

    with WorkerPool(2) as pool:
        join = JoinConfig(JoinStrategy.partial_timeout(), "end", timeout=100.0, into="v")
        workflow = Workflow("w").register_map("s", branch, range(1000), join).add_exit_state("end")
        run = workflow.start("s", pool=pool)
        assert run.wait(100) == "end"
        split = run.report().splits["s"]
        assert {branch.index for branch in split if branch.status == "lost"} == deadly
        assert {branch.attempts for branch in split} == {1}
        assert run.store.get("v") == [n for n in range(1000) if n not in deadly]


@pytest.mark.parametrize("how", ["dies", "is killed"])
def test_a_chunk_may_be_cut_at_every_position(how, tmp_path):
    """Wherever in a worker's window the death is, that branch alone has failed; the others are made once, as they were.

    The items before it teach the pool that they are short, so that many are sent at a time.
    """
    taught, positions = 300, 16

    def branch(ctx, item):
        with Path(ctx.params.place, "made").open("a") as made:
            made.write(f"{item}\n")
        if item == ctx.params.deadly:
            if how == "dies":
                os._exit(1)
            Scene(ctx.params.place).runs("deadly")
            signal.pause()
        return item

    join = JoinConfig(JoinStrategy.partial_timeout(), "end", timeout=100.0, into="v")
    workflow = Workflow("w").register_map("s", branch, range(taught + 2 * positions), join).add_exit_state("end")
    with WorkerPool(1) as pool:
        for deadly in range(taught, taught + positions):
            place = tmp_path / str(deadly)
            place.mkdir()
            run = workflow.start("s", pool=pool, params={"place": str(place), "deadly": deadly})
            if how == "is killed":
                Scene(place).await_runs("deadly")
                os.kill(Scene(place).pids("deadly")[0], signal.SIGKILL)
            assert run.wait(100) == "end"
            split = run.report().splits["s"]
            assert [each.index for each in split if each.status != "succeeded"] == [deadly]
            assert split[deadly].status == "lost"
            assert {each.attempts for each in split} == {1}
            assert run.store.get("v") == [n for n in range(taught + 2 * positions) if n != deadly]
            assert (place / "made").read_text().split() == [str(n) for n in range(taught + 2 * positions)]


def test_all_workers_may_die_at_once(tmp_path):
    """When every worker dies at the same moment each branch is lost by itself, and the pool recovers."""

    def branch(ctx, item):
        scene = Scene(tmp_path)
        scene.runs(item)
        scene.await_runs(*range(4))
        os._exit(item + 1)

    with WorkerPool(4) as pool:
        join = JoinConfig(JoinStrategy.all(), "end")
        workflow = Workflow("w").register_map("s", branch, range(4), join).add_exit_state("end")
        with pytest.raises(JoinError) as caught:
            workflow.start("s", pool=pool).wait(60)
        assert [branch.error.exitcode for branch in caught.value.result] == [1, 2, 3, 4]
        await_that(lambda: len(pool.workers) == 4, "four workers should be there again")
        assert_works(pool)


def test_a_death_in_one_run_is_not_seen_by_another(tmp_path):
    """A run whose worker dies shares the pool with one that never hears of it."""
    with WorkerPool(2) as pool:
        join = JoinConfig(JoinStrategy.all(), "end", into="v")
        calm = Workflow("calm").register_map("s", lambda ctx, item: item, range(3000), join).add_exit_state("end")
        config = TaskConfig(retry=Retry.fixed(10, 0.0))
        wild = Workflow("wild", default_config=config)
        wild.register_map("s", lambda ctx, item: ctx.attempt < 3 and os._exit(1), range(3), join).add_exit_state("end")
        runs = [calm.start("s", pool=pool), wild.start("s", pool=pool)]
        assert [run.wait(100) for run in runs] == ["end", "end"]
        assert {branch.attempts for branch in runs[0].report().splits["s"]} == {1}
        assert [branch.attempts for branch in runs[1].report().splits["s"]] == [3, 3, 3]
