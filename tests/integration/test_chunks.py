"""Windows of quick calls that a death cuts, and maps over more items than fit anywhere."""

from __future__ import annotations

import itertools
import os
import signal
import time
from dataclasses import dataclass

import pytest

from canobatch import JoinConfig, JoinError, JoinStrategy, Retry, TaskConfig, WorkerPool, Workflow
from canobatch.errors import WorkerLostError
from tests.support.branches import map_of, ran
from tests.support.tasks import assert_works, square

ALL = JoinStrategy.all()
#: Joins when all have ended, failed ones too.
SOME = JoinStrategy.partial_timeout(1)

COUNT = 400


@dataclass
class Cut:
    """Notes each call that begins, as "branch.attempt.pid"; ends the worker at one of them, in one way."""

    place: str
    at: int
    how: str
    times: int = 1

    def __call__(self, ctx, item):
        fd = os.open(f"{self.place}/begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{ctx.branch}.{ctx.attempt}.{os.getpid()}\n".encode())
        os.close(fd)
        ctx.store.put(f"by-{ctx.branch}", ctx.attempt)
        if ctx.branch == self.at and ctx.attempt <= self.times:
            if self.how == "exit":
                os._exit(7)
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise SystemExit(3)
        return item * 2


def begun(place):
    """Return (branch, attempt, pid) of each call that began, in order."""
    return [tuple(map(int, line.split("."))) for line in (place / "begun").read_text().split()]


def slowly_started(pool):
    """Let a pool know its pace: only then it sends calls in chunks."""
    pool.warm_up()
    assert_works(pool)


#: The first call of all, the first of a chunk (there are few before), in the middle, near and at the end.
POSITIONS = [0, 1, 7, 40, 41, 42, 43, 44, 200, COUNT - 2, COUNT - 1]


@pytest.mark.parametrize("how", ["exit", "kill"])
@pytest.mark.parametrize("at", POSITIONS)
def test_a_death_in_a_chunk_loses_only_the_branch_that_ran(at, how, tmp_path):
    """Those that had ended keep their outcome, those behind it run elsewhere at their first attempt, once."""
    with WorkerPool(2) as pool:
        slowly_started(pool)
        run = map_of(Cut(str(tmp_path), at, how), range(COUNT), SOME, timeout=60.0).start("split", pool=pool)
        wait_for_all(run)
        result = run.report().splits["split"]
        assert [branch.index for branch in result if branch.status == "lost"] == [at]
        error = result[at].error
        assert isinstance(error, WorkerLostError)
        assert error.branch == at
        assert (error.exitcode == 7) if how == "exit" else (error.signal == signal.SIGKILL)
        ended = [branch for branch in result if branch.index != at]
        assert {(str(branch.status), branch.attempts) for branch in ended} == {("succeeded", 1)}
        assert all(branch.value == branch.index * 2 for branch in ended)
        assert result[at].attempts == 1
        # Each ran once, and what the lost one wrote is not in the store.
        assert sorted(branch for branch, _, _ in begun(tmp_path)) == list(range(COUNT))
        assert {attempt for _, attempt, _ in begun(tmp_path)} == {1}
        assert sorted(run.store.keys()) == sorted(f"by-{n}" for n in range(COUNT) if n != at)
        assert all(branch.started_at is not None and branch.duration is not None for branch in ended)
        assert_works(pool)


def wait_for_all(run):
    """Wait for the end of a run whose split may succeed with some."""
    assert run.wait(60) == "joined"


@pytest.mark.parametrize("at", [0, 41, COUNT - 1])
def test_a_lost_branch_of_a_chunk_is_tried_again(at, tmp_path):
    """With a retry it is only that branch that has a second attempt."""
    config = TaskConfig(retry=Retry.fixed(1, 0.0))
    with WorkerPool(2) as pool:
        slowly_started(pool)
        _, run = ran(map_of(Cut(str(tmp_path), at, "kill"), range(COUNT), ALL, into="all", config=config), pool)
        assert run.store.get("all") == [n * 2 for n in range(COUNT)]
        attempts = {branch.index: branch.attempts for branch in run.report().splits["split"]}
        assert attempts == {n: 2 if n == at else 1 for n in range(COUNT)}
        assert sorted(begun(tmp_path))[at][:2] == (at, 1)
        assert len(begun(tmp_path)) == COUNT + 1
        assert run.store.get(f"by-{at}") == 2


def test_deaths_in_many_chunks_are_each_one(tmp_path):
    """Every fiftieth call ends its worker: so many branches are lost, and no other."""
    with WorkerPool(2) as pool:
        slowly_started(pool)
        run = map_of(CutEvery(50), range(COUNT), SOME, timeout=60.0).start("split", pool=pool)
        wait_for_all(run)
        lost = [branch.index for branch in run.report().splits["split"] if branch.status == "lost"]
        assert lost == list(range(49, COUNT, 50))
        assert {branch.attempts for branch in run.report().splits["split"]} == {1}
        assert_works(pool)


@dataclass
class CutEvery:
    """Ends the worker at each so-manieth branch."""

    step: int

    def __call__(self, ctx, item):
        if ctx.branch % self.step == self.step - 1:
            os._exit(1)
        return item


def test_a_branch_that_raises_in_a_chunk_harms_no_other():
    """SystemExit in the middle of a chunk is one failure; the chunk goes on in the same worker."""
    with WorkerPool(1) as pool:
        slowly_started(pool)
        (before,) = [worker.pid for worker in pool.workers]
        run = map_of(refuse_some, range(COUNT), SOME, timeout=60.0).start("split", pool=pool)
        wait_for_all(run)
        result = run.report().splits["split"]
        assert [branch.index for branch in result.errors] == list(range(3, COUNT, 10))
        assert [worker.pid for worker in pool.workers] == [before]


def refuse_some(ctx, item):
    if item % 10 == 3:
        raise SystemExit(item)
    return item


@pytest.mark.parametrize("calls", [1, 30, 250])
def test_workers_killed_from_outside_lose_at_most_one_branch_each(calls, tmp_path):
    """A worker that is killed between or in its calls loses the one that it ran, or none."""
    with WorkerPool(2) as pool:
        slowly_started(pool)
        run = map_of(KillMySibling(str(tmp_path), calls), range(COUNT), SOME, timeout=60.0).start("split", pool=pool)
        wait_for_all(run)
        result = run.report().splits["split"]
        lost = [branch.index for branch in result if branch.status != "succeeded"]
        assert len(lost) <= 1
        assert all(branch.attempts == 1 for branch in result)
        counts = [branch for branch, _, _ in begun(tmp_path)]
        assert sorted(counts) == list(range(COUNT))
        assert_works(pool)


@dataclass
class KillMySibling:
    """Notes each call; at one of them kills a worker that has noted another."""

    place: str
    at: int

    def __call__(self, ctx, item):
        Cut(self.place, -1, "none")(ctx, item)
        if ctx.branch == self.at:
            with open(f"{self.place}/begun") as file:
                others = {int(line.split(".")[2]) for line in file} - {os.getpid()}
            for pid in others:
                os.kill(pid, signal.SIGKILL)
        return item


# -- maps over very many items


class Source:
    """A generator of numbers that notes how far it was read ahead of the fold."""

    def __init__(self, count):
        self.count = count
        self.read = 0
        self.folded = 0
        self.furthest = 0

    def items(self, ctx=None):
        for number in range(self.count):
            self.read += 1
            self.furthest = max(self.furthest, self.read - self.folded)
            yield number

    def fold(self, total, value):
        self.folded += 1
        # Not commutative: only the order of items gives this number.
        return (total * 31 + value) % 1_000_003


def serial(count):
    total = 7
    for number in range(count):
        total = (total * 31 + number * number) % 1_000_003
    return total


def folded(source, pool, **join):
    workflow = Workflow("w").register_map(
        "split", square, source.items, JoinConfig(ALL, "joined", into="sum", reduce=(source.fold, 7), **join)
    )
    run = workflow.add_exit_state("joined").start("split", pool=pool)
    assert run.wait(600) == "joined"
    return run


@pytest.mark.parametrize("count", [0, 1, 1000, 30_000])
def test_a_fold_over_a_generator_equals_a_serial_one(count, shared_pool):
    """The result is what a loop over the items would give, in their order, and look-ahead is bounded."""
    source = Source(count)
    run = folded(source, shared_pool)
    assert run.store.get("sum", 7) == serial(count)
    assert (source.read, source.folded) == (count, count)
    assert source.furthest <= 40_000


def test_look_ahead_does_not_grow_with_the_number_of_items(shared_pool):
    """A slow first branch holds the fold up, and with it the generator, however many items there are."""
    source = Source(120_000)
    workflow = Workflow("w").register_map(
        "split", slow_first, source.items, JoinConfig(ALL, "joined", into="sum", reduce=(source.fold, 7))
    )
    run = workflow.add_exit_state("joined").start("split", pool=shared_pool)
    assert run.wait(100) == "joined"
    assert run.store.get("sum") == serial(120_000)
    # What four workers hold at the most, a few times over.
    assert source.furthest < 40_000


def slow_first(ctx, item):
    if item == 0:
        time.sleep(0.7)  # what the task takes, not a wait
    return item * item


def test_an_endless_generator_is_read_only_as_far_as_needed(shared_pool):
    """`any` over an endless generator ends, and has read a bounded number of items."""
    read = itertools.count()
    items = (next(read) for _ in iter(int, 1))
    state, run = ran(map_of(square, items, JoinStrategy.quorum(50), into="some"), shared_pool)
    assert state == "joined"
    assert len(run.store.get("some")) == 50
    assert next(read) < 10_000


def test_a_fold_survives_deaths_in_its_chunks(shared_pool):
    """Workers that die in the midst of a long fold are replaced; with a retry nothing is missing or twice."""
    source = Source(3000)
    workflow = Workflow("w").register_map(
        "split",
        die_sometimes,
        source.items,
        JoinConfig(ALL, "joined", into="sum", reduce=(source.fold, 7)),
        config=TaskConfig(retry=Retry.fixed(1, 0.0)),
    )
    run = workflow.add_exit_state("joined").start("split", pool=shared_pool)
    assert run.wait(60) == "joined"
    assert run.store.get("sum") == serial(3000)


def die_sometimes(ctx, item):
    if item % 700 == 699 and ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def test_a_fold_whose_branch_fails_for_good_fails_the_split(shared_pool):
    """A fold of `all` with a failed branch is a failure, and writes nothing."""
    source = Source(500)
    workflow = Workflow("w").register_map(
        "split", refuse_some, source.items, JoinConfig(ALL, "joined", into="sum", reduce=(source.fold, 7))
    )
    run = workflow.add_exit_state("joined").start("split", pool=shared_pool)
    with pytest.raises(JoinError):
        run.wait(60)
    assert "sum" not in run.store


MILLION = """
import os, sys
from canobatch import JoinConfig, JoinStrategy, WorkerPool, Workflow
from tests.integration.test_chunks import Source, serial, square

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

count = int(sys.argv[1])
peaks = []

class Watched(Source):
    def fold(self, total, value):
        if self.folded % 10_000 == 0:
            peaks.append(resident())
        return super().fold(total, value)

source = Watched(count)
with WorkerPool(2) as pool:
    join = JoinConfig(JoinStrategy.all(), "joined", into="sum", reduce=(source.fold, 7))
    workflow = Workflow("w").register_map("split", square, source.items, join).add_exit_state("joined")
    run = workflow.start("split", pool=pool)
    assert run.wait(800) == "joined"
    result = run.report().splits["split"]
assert run.store.get("sum") == serial(count)
assert result.counts["succeeded"] == count
assert source.furthest < 40_000, source.furthest
# Records are kept of the first 100 000; from there on nothing grows.
kept = min(len(peaks) - 1, 15)
print(max(peaks[kept:]) - peaks[kept])
"""


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_a_million_items_take_no_more_memory_than_a_few(run_script):
    """The launcher's memory does not grow from 150 000 items to 1 000 000, and the result is a serial fold's."""
    ended = run_script(MILLION, 1_000_000, timeout=800.0)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 20_000_000
