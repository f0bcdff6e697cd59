"""Book analysis: what a map over whole books costs beside the analysis itself."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from benchmarks import _peers
from benchmarks._books import analyse_file, evenly, library, words_in
from benchmarks._row import BEST_PEER, OURS, Figure, How, Kind, Measure, Options, Row, Sample, Side, Target

if TYPE_CHECKING:
    from canobatch import TaskContext

BARE = "bare processes"


class State(Enum):
    """The states of the workflow."""

    ANALYSE = auto()
    DONE = auto()


def analyse_branch(_ctx: TaskContext, path: str) -> dict[str, Any]:
    """Analyse one book."""
    return analyse_file(path)


def copies(options: Options) -> int:
    """Return how often each book is there: enough for 2 to 4 s, or 0.3 s."""
    return options.workers * (1 if options.quick else 10)


@contextmanager
def canobatch_side(options: Options) -> Iterator[Measure]:
    """One split with a branch per book on a warm pool."""
    from canobatch import JoinConfig, JoinStrategy, WorkerPool, Workflow

    with library(copies(options)) as paths, WorkerPool(options.workers, spares=0) as pool:
        workflow: Workflow = (
            Workflow("books")
            .register_map(
                State.ANALYSE,
                analyse_branch,
                paths,
                JoinConfig(JoinStrategy.all(), State.DONE, into="analyses"),
            )
            .add_exit_state(State.DONE)
        )
        pool.warm_up()

        def measure() -> Sample:
            started = time.perf_counter()
            run = workflow.start(State.ANALYSE, pool=pool)
            run.wait()
            analyses = run.store.get("analyses")
            return {"wall": time.perf_counter() - started, "words": words_in(analyses)}

        yield measure


@contextmanager
def bare_side(options: Options) -> Iterator[Measure]:
    """Processes that are up and warm, know their share of the books, and tell nothing but that they are done."""
    with library(copies(options)) as paths:
        pipes: list[tuple[int, int]] = []
        pids: list[int] = []
        gc.freeze()
        for share in evenly(paths, options.workers):
            go_read, go_write = os.pipe()
            done_read, done_write = os.pipe()
            pid = os.fork()
            if pid == 0:
                for go, done in [*pipes, (go_write, done_read)]:
                    os.close(go)
                    os.close(done)
                while os.read(go_read, 1):
                    for path in share:
                        analyse_file(path)
                    os.write(done_write, b".")
                os._exit(0)
            os.close(go_read)
            os.close(done_write)
            pipes.append((go_write, done_read))
            pids.append(pid)

        def measure() -> Sample:
            started = time.perf_counter()
            for go, _ in pipes:
                os.write(go, b".")
            for _, done in pipes:
                if not os.read(done, 1):
                    raise ChildProcessError("a bare process ended early")
            return {"wall": time.perf_counter() - started}

        try:
            yield measure
        finally:
            for go, _ in pipes:
                os.close(go)
            for pid in pids:
                os.waitpid(pid, 0)


def peer_side(
    mapper: Callable[[int, int | None], AbstractContextManager[_peers.Mapper]],
) -> Callable[[Options], AbstractContextManager[Measure]]:
    """Return a side that maps with a peer, one task per book."""

    @contextmanager
    def prepare(options: Options) -> Iterator[Measure]:
        with library(copies(options)) as paths, mapper(options.workers, 1) as run:

            def measure() -> Sample:
                started = time.perf_counter()
                analyses = run(analyse_file, paths)
                return {"wall": time.perf_counter() - started, "words": words_in(analyses)}

            yield measure

    return prepare


ROW = Row(
    name="book",
    title="book analysis, one task per book, as many workers as cores",
    figures=(Figure("wall", "all books", "s", (Target(1.05, How.RATIO, BARE), Target(1.0, How.RATIO, BEST_PEER))),),
    sides=(
        Side(OURS, canobatch_side, Kind.OURS),
        Side(BARE, bare_side, Kind.BOUND),
        Side("joblib", peer_side(_peers.joblib_mapper), needs="joblib"),
        Side("mp.Pool.map", peer_side(_peers.pool_mapper)),
        Side("concurrent.futures map", peer_side(_peers.futures_mapper)),
        Side("pebble map", peer_side(_peers.pebble_mapper), needs="pebble"),
        Side("mpire map", peer_side(_peers.mpire_mapper), needs="mpire"),
    ),
    rounds=11,
    quick_rounds=2,
    agree=("words",),
    remark=(
        "Twelve books, each ten times per worker, longest first; every task gets a path and returns the analysis. The "
        "bare processes have a fixed share of equal bytes each and return nothing."
    ),
)
