"""A 100 MB array: into shared memory, and read in a worker.

What a worker measures it measures itself, within the task: the way there is another row.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._peers import library
from benchmarks._row import OURS, Figure, How, Kind, Measure, Options, Row, Sample, Side, Target

if TYPE_CHECKING:
    from canobatch import TaskContext

#: Doubles in the array: 100 MB.
COUNT = 12_500_000
#: Where joblib, too, keeps what it shares.
MEMORY = Path("/dev/shm")

#: What a worker found: seconds until it had the array, seconds until it had read it, and the sum.
Seen = tuple[float, float, float]


class State(Enum):
    """The states of the workflow."""

    READ = auto()
    DONE = auto()


def numbers() -> Any:
    """Return the array; its sum is exact, whatever the order."""
    return library("numpy").arange(COUNT, dtype="float64")


def read(get: Callable[[], Any]) -> Seen:
    """Get an array and read all of it."""
    started = time.perf_counter()
    array = get()
    got = time.perf_counter() - started
    total = float(array.sum())
    return got, time.perf_counter() - started, total


def put(do: Callable[[], object]) -> float:
    """Return the seconds that putting takes."""
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def sample(seconds: float, seen: Seen) -> Sample:
    """Return a sample, in ms."""
    got, done, total = seen
    return {"put": seconds * 1e3, "get": got * 1e3, "read": done * 1e3, "sum": total}


def read_branch(ctx: TaskContext, key: str) -> Seen:
    """Read the array of the store."""
    return read(partial(ctx.store.get, key))


@contextmanager
def canobatch_side(_options: Options) -> Iterator[Measure]:
    """A store that outlives the runs; a fresh segment for each repeat, so a worker has never seen it."""
    from canobatch import JoinConfig, JoinStrategy, SharedStore, WorkerPool, Workflow

    array = numbers()
    store = SharedStore()
    workflow: Workflow = (
        Workflow("arrays", store=store)
        .register_map(State.READ, read_branch, ["array"], JoinConfig(JoinStrategy.all(), State.DONE))
        .add_exit_state(State.DONE)
    )
    with WorkerPool(1, spares=0) as pool:
        pool.warm_up()

        def measure() -> Sample:
            store.clear()
            seconds = put(lambda: store.put("array", array))
            run = workflow.start(State.READ, pool=pool)
            run.wait()
            return sample(seconds, run.report().splits[State.READ].successes[0].value)

        yield measure


@contextmanager
def write_side(_options: Options) -> Iterator[Measure]:
    """The same bytes, once through the kernel."""
    array = numbers()

    def measure() -> Sample:
        fds: list[int] = []

        def write() -> None:
            fds.append(os.memfd_create("bare", os.MFD_CLOEXEC))
            rest = memoryview(array).cast("B")
            while rest:
                rest = rest[os.write(fds[0], rest) :]

        seconds = put(write)
        os.close(fds[0])
        return {"put": seconds * 1e3}

    yield measure


@contextmanager
def local_side(_options: Options) -> Iterator[Measure]:
    """An array that was in this process's own memory all the time."""
    array = numbers()

    def measure() -> Sample:
        _, done, total = read(lambda: array)
        return {"read": done * 1e3, "sum": total}

    yield measure


def read_dict(shared: Any) -> Seen:
    """Read the array of a manager's dictionary."""
    return read(lambda: shared["array"])


@contextmanager
def manager_side(_options: Options) -> Iterator[Measure]:
    """`multiprocessing.Manager().dict()`: a server that gets and gives pickles."""
    array = numbers()
    processes = library("multiprocessing")
    with processes.Manager() as manager, processes.Pool(1) as pool:
        shared = manager.dict()

        def measure() -> Sample:
            shared.clear()
            seconds = put(lambda: shared.update(array=array))
            return sample(seconds, pool.apply(read_dict, (shared,)))

        yield measure
        pool.close()
        pool.join()


def read_file(path: str) -> Seen:
    """Map the array of a file."""
    load = library("joblib").load
    return read(lambda: load(path, mmap_mode="r"))


@contextmanager
def joblib_side(_options: Options) -> Iterator[Measure]:
    """`joblib.dump` to a file in memory, and `joblib.load` of it as a map; a fresh file for each repeat."""
    array = numbers()
    joblib, loky = library("joblib"), library("joblib.externals.loky")
    executor = loky.get_reusable_executor(max_workers=1)
    has_room = MEMORY.is_dir() and os.statvfs(MEMORY).f_bavail * os.statvfs(MEMORY).f_frsize > 2 * array.nbytes
    with tempfile.TemporaryDirectory(dir=MEMORY if has_room else None) as directory:
        path = Path(directory, "array.pkl")

        def measure() -> Sample:
            path.unlink(missing_ok=True)
            seconds = put(lambda: joblib.dump(array, path))
            return sample(seconds, executor.submit(read_file, str(path)).result())

        yield measure
    executor.shutdown(kill_workers=True)


def read_object(references: list[Any]) -> Seen:
    """Read the array of an object store; a reference in a list is not resolved before the task."""
    get = library("ray").get
    return read(lambda: get(references[0]))


@contextmanager
def ray_side(_options: Options) -> Iterator[Measure]:
    """`ray.put` and `ray.get` in a task."""
    array = numbers()
    ray = library("ray")
    references: list[Any] = []
    # The server leaves its logs behind.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=directory)
        task = ray.remote(read_object)

        def measure() -> Sample:
            references.clear()
            seconds = put(lambda: references.append(ray.put(array)))
            return sample(seconds, ray.get(task.remote(references)))

        try:
            yield measure
        finally:
            references.clear()
            ray.shutdown()


ROW = Row(
    name="arrays",
    title="a float64 array of 100 MB",
    figures=(
        Figure("put", "put", "ms", (Target(1.2, How.RATIO, "os.write to a memfd"),)),
        Figure("get", "get in a worker", "ms", (Target(1.0),)),
        Figure("read", "get in a worker, and its first full read", "ms", (Target(3.0, How.RATIO, "local read"),)),
    ),
    sides=(
        Side(OURS, canobatch_side, Kind.OURS, needs="numpy"),
        Side("os.write to a memfd", write_side, Kind.BOUND, needs="numpy"),
        Side("local read", local_side, Kind.BOUND, needs="numpy"),
        Side("multiprocessing.Manager dict", manager_side, needs="numpy"),
        Side("joblib dump, load as memmap", joblib_side, needs="joblib"),
        Side("Ray put, get", ray_side, needs="ray"),
    ),
    rounds=15,
    quick_rounds=3,
    warm_ups=1,
    agree=("sum",),
    remark=(
        "Each repeat puts the array anew, so its pages are mapped for the first time when the worker sums it; the "
        "local read sums an array whose pages are mapped already. Taking the old one away is not in the figures."
    ),
)
