"""Kill: from the end of an `any` split's winner to the next state, with every loser confirmed dead."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from benchmarks import _work
from benchmarks._peers import library
from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side, Target

if TYPE_CHECKING:
    from canobatch import TaskContext, WorkerPool

RACERS = 8
#: Resident MiB of each hung loser: the most that the target is meant for.
MEGABYTES = 64


@contextmanager
def fresh_directories() -> Iterator[tuple[str, str]]:
    """Give two empty directories, in memory where that is possible."""
    top = tempfile.mkdtemp(prefix="benchmark-kill-")
    first = tempfile.mkdtemp(dir=top)
    second = tempfile.mkdtemp(dir=top)
    try:
        yield first, second
    finally:
        shutil.rmtree(top)


@contextmanager
def canobatch_races(spares: int) -> Iterator[Callable[[int, bool], Sample]]:
    """Give a function that runs one race on a warm pool with losers of so many MiB, and musters if told to."""
    from canobatch import WorkerPool

    with WorkerPool(RACERS, spares=spares) as pool:

        def run(megabytes: int, muster_after: bool) -> Sample:
            # The spares that the last race used are up again, and idle.
            pool.warm_up()
            time.sleep(1.0)
            with fresh_directories() as (racing, mustering):
                return one_race(pool, racing, mustering if muster_after else None, megabytes)

        yield run


def canobatch_side(spares: int, megabytes: int) -> Callable[[Options], AbstractContextManager[Measure]]:
    """Return a side on a pool with ``spares``, whose losers grow to ``megabytes``."""

    @contextmanager
    def prepare(_options: Options) -> Iterator[Measure]:
        with canobatch_races(spares) as run:
            yield lambda: run(megabytes, True)

    return prepare


def one_race(pool: WorkerPool, racing: str, mustering: str | None, megabytes: int) -> Sample:
    """Run the race; the next state runs in the parent and looks at the losers' processes."""
    from canobatch import JoinConfig, JoinStrategy, Workflow

    noted: dict[str, float] = {}

    def note(ctx: TaskContext) -> _work.Race:
        noted["entered"] = time.monotonic()
        if running := _work.alive(_work.pids_in(racing)):
            raise AssertionError(f"the next state was entered while losers ran: {running}")
        noted["won"] = ctx.store.get("won")[0]
        return _work.Race.MUSTER if mustering else _work.Race.DONE

    workflow: Workflow = (
        Workflow("race")
        .register_split(
            _work.Race.RACE,
            [
                *[functools.partial(_work.lose, racing, megabytes)] * (RACERS - 1),
                functools.partial(_work.win, racing, RACERS - 1),
            ],
            JoinConfig(JoinStrategy.any(), _work.Race.NOTE, into="won"),
        )
        .register(_work.Race.NOTE, note)
        .add_exit_state(_work.Race.DONE)
    )
    if mustering:
        workflow.register_split(
            _work.Race.MUSTER,
            [functools.partial(_work.show_up, mustering, RACERS)] * RACERS,
            JoinConfig(JoinStrategy.all(), _work.Race.DONE, into="mustered"),
        )
    run = workflow.start(_work.Race.RACE, pool=pool)
    run.wait()
    sample = {"next": (noted["entered"] - noted["won"]) * 1e3}
    if mustering:
        sample["ready"] = (max(run.store.get("mustered")) - noted["won"]) * 1e3
    return sample


@contextmanager
def sigkill_side(_options: Options) -> Iterator[Measure]:
    """SIGKILL seven bare processes of that size, and wait for their ends: the kernel's part."""

    def measure() -> Sample:
        with fresh_directories() as (racing, _):
            pids = [_fork_loser(racing) for _ in range(RACERS - 1)]
            _work.wait_for_files(racing, len(pids))
            time.sleep(0.1)
            started = time.monotonic()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for pid in pids:
                os.waitpid(pid, 0)
            return {"next": (time.monotonic() - started) * 1e3}

    yield measure


def _fork_loser(directory: str) -> int:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            _work.lose(directory, MEGABYTES)
        os._exit(1)
    return pid


@contextmanager
def pebble_side(_options: Options) -> Iterator[Measure]:
    """Cancel seven running futures and wait until their processes are gone."""
    with library("pebble").ProcessPool(max_workers=RACERS) as pool:

        def measure() -> Sample:
            with fresh_directories() as (racing, mustering):
                losers = [pool.schedule(_work.lose, args=(racing, MEGABYTES)) for _ in range(RACERS - 1)]
                won = pool.schedule(_work.win, args=(racing, RACERS - 1)).result()
                for loser in losers:
                    loser.cancel()
                while _work.alive(_work.pids_in(racing)):
                    time.sleep(0.0005)
                gone = time.monotonic()
                calls = [pool.schedule(_work.show_up, args=(mustering, RACERS)) for _ in range(RACERS)]
                ready = max(call.result() for call in calls)
            return {"next": (gone - won) * 1e3, "ready": (ready - won) * 1e3}

        yield measure
        pool.close()
        pool.join()


ROW = Row(
    name="kill",
    title=f"any: 1 winner, {RACERS - 1} hung losers of {MEGABYTES} MB",
    figures=(
        Figure("next", "winner's end → next state, losers dead", "ms", (Target(10.0),)),
        Figure("ready", f"winner's end → {RACERS} calls run at a time again", "ms", (Target(10.0),)),
    ),
    sides=(
        Side(OURS, canobatch_side(RACERS, MEGABYTES), Kind.OURS),
        Side("bare SIGKILL", sigkill_side, Kind.BOUND),
        Side("canobatch, losers hold nothing", canobatch_side(RACERS, 0), Kind.VARIANT),
        Side("canobatch, no spares", canobatch_side(0, MEGABYTES), Kind.VARIANT, every=3),
        Side("pebble cancel", pebble_side, needs="pebble", every=3),
    ),
    rounds=21,
    quick_rounds=3,
    remark=(
        "bare SIGKILL is the kernel's part: it frees the memory of each killed process before that counts as dead. "
        "concurrent.futures, joblib, mp.Pool and mpire cannot kill one running task, or lose the pool with it. pebble "
        "sends SIGTERM; a loser that ignores it costs it 3 s more."
    ),
)
