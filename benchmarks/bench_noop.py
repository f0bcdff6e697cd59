"""No-op branches: what one branch of a split costs beside its work, outcome recorded.

Only ``chunk 1`` of the peers sends a result back per task, as canobatch does per branch; the larger chunks are shown
because that is how one would call them for tasks this small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from benchmarks import _peers
from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side, Target
from benchmarks._work import nothing

if TYPE_CHECKING:
    from canobatch import TaskContext


class State(Enum):
    """The states of the workflow."""

    NOTHING = auto()
    DONE = auto()


def nothing_branch(_ctx: TaskContext, _item: int) -> None:
    """Do nothing with an item."""


def branches(options: Options) -> int:
    """Return how many no-op branches a repeat has."""
    return 2_000 if options.quick else 10_000


@contextmanager
def canobatch_side(options: Options) -> Iterator[Measure]:
    """One split with a branch per item on a warm pool."""
    from canobatch import JoinConfig, JoinStrategy, WorkerPool, Workflow

    count = branches(options)
    workflow: Workflow = (
        Workflow("no-op")
        .register_map(State.NOTHING, nothing_branch, range(count), JoinConfig(JoinStrategy.all(), State.DONE))
        .add_exit_state(State.DONE)
    )
    with WorkerPool(options.workers, spares=0) as pool:
        pool.warm_up()

        def measure() -> Sample:
            started = time.perf_counter()
            run = workflow.start(State.NOTHING, pool=pool)
            run.wait()
            elapsed = time.perf_counter() - started
            return {"branch": elapsed / count * 1e6, "done": len(run.report().splits[State.NOTHING].successes)}

        yield measure


def peer_side(
    mapper: Callable[[int, int | None], AbstractContextManager[_peers.Mapper]], chunk: int | None
) -> Callable[[Options], AbstractContextManager[Measure]]:
    """Return a side that maps with a peer."""

    @contextmanager
    def prepare(options: Options) -> Iterator[Measure]:
        items = range(branches(options))
        with mapper(options.workers, chunk) as run:

            def measure() -> Sample:
                started = time.perf_counter()
                results: list[Any] = run(nothing, items)
                elapsed = time.perf_counter() - started
                return {"branch": elapsed / len(items) * 1e6, "done": len(results)}

            yield measure

    return prepare


ROW = Row(
    name="noop",
    title="no-op branches in one split, per branch",
    figures=(Figure("branch", "per branch", "µs", (Target(10.0),)),),
    sides=(
        Side(OURS, canobatch_side, Kind.OURS),
        Side("joblib (auto batch)", peer_side(_peers.joblib_mapper, None), needs="joblib"),
        Side("mp.Pool.map (auto chunk)", peer_side(_peers.pool_mapper, None)),
        Side("mp.Pool.map (chunk 1)", peer_side(_peers.pool_mapper, 1)),
        Side("mp.Pool.imap (auto chunk)", peer_side(_peers.pool_imap_mapper, None)),
        Side("mp.Pool.imap (chunk 1)", peer_side(_peers.pool_imap_mapper, 1)),
        Side("concurrent.futures map (auto chunk)", peer_side(_peers.futures_mapper, None)),
        Side("concurrent.futures map (chunk 1)", peer_side(_peers.futures_mapper, 1)),
        Side("pebble map (auto chunk)", peer_side(_peers.pebble_mapper, None), needs="pebble"),
        Side("pebble map (chunk 1)", peer_side(_peers.pebble_mapper, 1), needs="pebble", every=3),
        Side("mpire map (auto chunk)", peer_side(_peers.mpire_mapper, None), needs="mpire"),
        Side("mpire map (chunk 1)", peer_side(_peers.mpire_mapper, 1), needs="mpire", every=3),
    ),
    rounds=15,
    quick_rounds=3,
    warm_ups=2,
    agree=("done",),
    remark=(
        "10 000 branches (--quick: 2 000). With an auto chunk a peer sends one answer per chunk of hundreds of calls "
        "and keeps no record of any of them; chunk 1 is like for like."
    ),
)
