"""A small value of the store, read in a worker: the mean of many reads, by how many keys the store has."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from benchmarks._peers import library
from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side, Target

if TYPE_CHECKING:
    from canobatch import TaskContext

#: How many keys the stores have.
SIZES = (10, 100, 1_000, 10_000, 100_000)


class State(Enum):
    """The states of the workflow."""

    READ = auto()
    DONE = auto()


def contents(size: int) -> dict[str, Any]:
    """Return so many small values."""
    return {f"key-{number}": {"limit": number, "name": "a small value"} for number in range(size)}


def reads(options: Options) -> int:
    """Return how many reads a repeat makes at each size."""
    return 2_000 if options.quick else 20_000


def read(values: Any, size: int, count: int) -> tuple[float, float]:
    """Get values at random; return the µs of each, and the sum of what was found."""
    keys = [f"key-{number}" for number in random.Random(size).choices(range(size), k=count)]
    total = 0
    started = time.perf_counter()
    for key in keys:
        total += values.get(key)["limit"]
    return (time.perf_counter() - started) / count * 1e6, total


def sample(seen: Mapping[int, tuple[float, float]]) -> Sample:
    """Return a sample of what was seen at each size."""
    return {
        **{f"keys_{size}": each for size, (each, _) in seen.items()},
        **{f"sum_{size}": total for size, (_, total) in seen.items()},
    }


def read_branch(ctx: TaskContext, item: tuple[int, int]) -> tuple[float, float]:
    """Read the store of the run."""
    return read(ctx.store, *item)


@contextmanager
def canobatch_side(options: Options) -> Iterator[Measure]:
    """A store and a workflow for each size, and one worker, which gets each version once."""
    from canobatch import JoinConfig, JoinStrategy, SharedStore, WorkerPool, Workflow

    workflows: dict[int, Workflow] = {}
    for size in SIZES:
        store = SharedStore()
        for key, value in contents(size).items():
            store.put(key, value)
        item = (size, reads(options))
        workflows[size] = (
            Workflow("small-get", store=store)
            .register_map(State.READ, read_branch, [item], JoinConfig(JoinStrategy.all(), State.DONE))
            .add_exit_state(State.DONE)
        )
    with WorkerPool(1, spares=0) as pool:
        pool.warm_up()

        def measure() -> Sample:
            seen: dict[int, tuple[float, float]] = {}
            for size, workflow in workflows.items():
                run = workflow.start(State.READ, pool=pool)
                run.wait()
                seen[size] = run.report().splits[State.READ].successes[0].value
            return sample(seen)

        yield measure


@contextmanager
def manager_side(options: Options) -> Iterator[Measure]:
    """`multiprocessing.Manager().dict()`: a message to a server and back for each value."""
    processes = library("multiprocessing")
    with processes.Manager() as manager, processes.Pool(1) as pool:
        shared = {size: manager.dict(contents(size)) for size in SIZES}

        def measure() -> Sample:
            return sample({size: pool.apply(read, (shared[size], size, reads(options))) for size in SIZES})

        yield measure
        pool.close()
        pool.join()


@contextmanager
def pickle_side(options: Options) -> Iterator[Measure]:
    """A dictionary of pickles in the process's own memory: each reader gets a value of its own."""
    loads, dumps = library("pickle").loads, library("pickle").dumps

    class Pickles(dict[str, bytes]):
        """Loads what is read."""

        def get(self, key: str, default: Any = None) -> Any:
            """Return the value of a key."""
            return loads(self[key]) if key in self else default

    held = {size: Pickles({key: dumps(value) for key, value in contents(size).items()}) for size in SIZES}
    yield lambda: sample({size: read(held[size], size, reads(options)) for size in SIZES})


ROW = Row(
    name="small_get",
    title="get of a small value in a worker",
    figures=tuple(Figure(f"keys_{size}", f"of {size} keys", "µs", (Target(5.0),)) for size in SIZES),
    sides=(
        Side(OURS, canobatch_side, Kind.OURS),
        Side("dict of pickles", pickle_side, Kind.BOUND),
        Side("multiprocessing.Manager dict", manager_side),
    ),
    rounds=15,
    quick_rounds=3,
    warm_ups=1,
    agree=tuple(f"sum_{size}" for size in SIZES),
    remark="Keys at random, a dictionary of two entries each. The worker has the version already: that is warm-up.",
)
