"""How the cost of a no-op branch grows with their number; a run of its own for each split."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from benchmarks import _peers
from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Side
from benchmarks._work import nothing
from benchmarks.bench_noop import State, nothing_branch

#: How many branches the splits have.
SIZES = (100, 1_000, 10_000, 100_000)
#: Splits are repeated until they come to so many branches.
AT_LEAST = 10_000

#: Goes through so many branches, and returns how many were done.
Branches = Callable[[int], int]


def side(
    opened: Callable[[Options], AbstractContextManager[Branches]],
) -> Callable[[Options], AbstractContextManager[Measure]]:
    """Return a side that goes through splits of all sizes."""

    @contextmanager
    def prepare(options: Options) -> Iterator[Measure]:
        with opened(options) as branches:

            def per_branch(size: int) -> float:
                times = max(1, (AT_LEAST // 10 if options.quick else AT_LEAST) // size)
                started = time.perf_counter()
                done = sum(branches(size) for _ in range(times))
                elapsed = time.perf_counter() - started
                assert done == size * times
                return elapsed / done * 1e6

            yield lambda: {f"branches_{size}": per_branch(size) for size in SIZES}

    return prepare


@contextmanager
def canobatch_branches(options: Options) -> Iterator[Branches]:
    """One split with a branch per item on a warm pool, every outcome recorded."""
    from canobatch import JoinConfig, JoinStrategy, WorkerPool, Workflow

    join = JoinConfig(JoinStrategy.all(), State.DONE)
    workflows: dict[int, Workflow] = {
        size: Workflow("growth")
        .register_map(State.NOTHING, nothing_branch, range(size), join)
        .add_exit_state(State.DONE)
        for size in SIZES
    }
    with WorkerPool(options.workers, spares=0) as pool:
        pool.warm_up()

        def branches(size: int) -> int:
            run = workflows[size].start(State.NOTHING, pool=pool)
            run.wait()
            return run.report().splits[State.NOTHING].counts["succeeded"]

        yield branches


@contextmanager
def imap_branches(options: Options) -> Iterator[Branches]:
    """`multiprocessing.Pool.imap`, which gives each result by itself."""
    with _peers.pool_imap_mapper(options.workers, 1) as run:
        yield lambda size: len(run(nothing, range(size)))


ROW = Row(
    name="growth",
    title="no-op branches in one split, per branch, by their number",
    figures=tuple(Figure(f"branches_{size}", f"{size} branches", "µs") for size in SIZES),
    sides=(
        Side(OURS, side(canobatch_branches), Kind.OURS),
        Side("mp.Pool.imap (chunk 1)", side(imap_branches)),
    ),
    rounds=7,
    quick_rounds=2,
    remark="Small splits have their run's beginning and end, about a millisecond, among fewer branches.",
)
