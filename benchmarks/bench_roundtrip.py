"""Round trip: one call to a warm worker and back, one after the other.

Where the kernel puts the two processes decides more than any library does, so each repeat is made three times: as the
kernel likes, both on one core, and each on its own core.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum, auto

from benchmarks._peers import library
from benchmarks._placement import placed, placements
from benchmarks._row import OURS, Figure, How, Kind, Measure, Options, Row, Sample, Side, Target
from benchmarks._work import nothing_at_all

#: Calls in one repeat of each placement.
CALLS = 300
#: The bare round trip carries this much each way, about what a small call is.
BARE_BYTES = 64

#: Makes so many calls, one after the other.
Calls = Callable[[int], object]
#: Gives the calls and the worker's process, as long as its context is open.
Opened = Callable[[Options], AbstractContextManager[tuple[Calls, int]]]


class State(Enum):
    """The states of the workflow."""

    AGAIN = auto()
    DONE = auto()


#: In the worker. The count must not cross to the parent: that would be measured too.
_numbers = itertools.count(1)


def again() -> State:
    """Go to the same state again, and to the exit with every `CALLS`-th call of this worker."""
    return State.AGAIN if next(_numbers) % CALLS else State.DONE


@contextmanager
def canobatch_calls(_options: Options) -> Iterator[tuple[Calls, int]]:
    """A state that runs in the only worker and leads to itself: a call and a transition each time."""
    from canobatch import TaskConfig, WorkerPool, Workflow

    workflow: Workflow = (
        Workflow("round-trip", default_config=TaskConfig(where="worker"))
        .register(State.AGAIN, again)
        .add_exit_state(State.DONE)
    )
    with WorkerPool(1, spares=0) as pool:
        pool.warm_up()
        yield lambda _count: workflow.orchestrate(State.AGAIN, pool=pool), pool.workers[0].pid


@contextmanager
def socketpair_calls(_options: Options) -> Iterator[tuple[Calls, int]]:
    """Two processes that only read and write."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while data := theirs.recv(BARE_BYTES):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()
    data = b"x" * BARE_BYTES

    def calls(count: int) -> None:
        for _ in range(count):
            ours.sendall(data)
            ours.recv(BARE_BYTES)

    try:
        yield calls, pid
    finally:
        ours.close()
        os.waitpid(pid, 0)


@contextmanager
def pipe_calls(_options: Options) -> Iterator[tuple[Calls, int]]:
    """Two processes that pickle a small call and its outcome, as any pool must."""
    ours, theirs = library("multiprocessing").Pipe()
    pid = os.fork()
    if pid == 0:
        ours.close()
        with contextlib.suppress(EOFError):
            while call := theirs.recv():
                nothing_at_all()
                theirs.send((call[0], None))
        os._exit(0)
    theirs.close()

    def calls(count: int) -> None:
        for number in range(count):
            ours.send((number, "definition", 1))
            ours.recv()

    try:
        yield calls, pid
    finally:
        ours.close()
        os.waitpid(pid, 0)


def repeated(call: Callable[[], object]) -> Calls:
    """Return a function that makes a call so many times."""

    def calls(count: int) -> None:
        for _ in range(count):
            call()

    return calls


@contextmanager
def futures_calls(_options: Options) -> Iterator[tuple[Calls, int]]:
    """`concurrent.futures`: submit and wait."""
    with library("concurrent.futures").ProcessPoolExecutor(1) as executor:
        yield repeated(lambda: executor.submit(nothing_at_all).result()), executor.submit(os.getpid).result()


@contextmanager
def pool_calls(_options: Options) -> Iterator[tuple[Calls, int]]:
    """`multiprocessing.Pool.apply`."""
    with library("multiprocessing").Pool(1) as pool:
        yield repeated(lambda: pool.apply(nothing_at_all)), pool.apply(os.getpid)
        pool.close()
        pool.join()


@contextmanager
def loky_calls(_options: Options) -> Iterator[tuple[Calls, int]]:
    """The executor below joblib: submit and wait."""
    executor = library("loky").get_reusable_executor(max_workers=1)
    yield repeated(lambda: executor.submit(nothing_at_all).result()), executor.submit(os.getpid).result()
    executor.shutdown(kill_workers=True)


@contextmanager
def pebble_calls(_options: Options) -> Iterator[tuple[Calls, int]]:
    """`pebble.ProcessPool`: schedule and wait."""
    with library("pebble").ProcessPool(max_workers=1) as pool:
        yield repeated(lambda: pool.schedule(nothing_at_all).result()), pool.schedule(os.getpid).result()
        pool.close()
        pool.join()


@contextmanager
def mpire_calls(_options: Options) -> Iterator[tuple[Calls, int]]:
    """`mpire.WorkerPool.apply`."""
    with library("mpire").WorkerPool(n_jobs=1, keep_alive=True) as pool:
        yield repeated(lambda: pool.apply(nothing_at_all)), pool.apply(os.getpid)
        pool.stop_and_join()


def side(opened: Opened) -> Callable[[Options], AbstractContextManager[Measure]]:
    """Return a side that makes `CALLS` calls in each placement."""

    @contextmanager
    def prepare(options: Options) -> Iterator[Measure]:
        with opened(options) as (calls, worker):

            def timed() -> float:
                started = time.perf_counter()
                calls(CALLS)
                return (time.perf_counter() - started) / CALLS * 1e6

            def measure() -> Sample:
                sample: Sample = {}
                for placement in placements():
                    if placement == "free":
                        sample[placement] = timed()
                    else:
                        with placed(worker, together=placement == "together"):
                            sample[placement] = timed()
                return sample

            yield measure

    return prepare


_FOUR_TIMES = (Target(4.0, How.RATIO, "socketpair"),)

ROW = Row(
    name="roundtrip",
    title="one call to a warm worker and back",
    figures=(
        Figure("together", "parent and worker on one core", "µs", _FOUR_TIMES),
        Figure("apart", "parent and worker on a core each", "µs", _FOUR_TIMES),
        Figure("free", "where the kernel puts them", "µs"),
    ),
    sides=(
        Side(OURS, side(canobatch_calls), Kind.OURS),
        Side("socketpair", side(socketpair_calls), Kind.BOUND),
        Side("multiprocessing.Pipe, pickled", side(pipe_calls), Kind.BOUND),
        Side("concurrent.futures submit", side(futures_calls)),
        Side("mp.Pool.apply", side(pool_calls)),
        Side("loky submit", side(loky_calls), needs="loky"),
        Side("pebble schedule", side(pebble_calls), needs="pebble"),
        Side("mpire apply", side(mpire_calls), needs="mpire"),
    ),
    rounds=21,
    quick_rounds=3,
    warm_ups=2,
    remark=(
        "All pools have one worker. canobatch's figure is a whole state: the call, its outcome recorded and committed, "
        "and the transition to the next state. The socketpair carries 64 bytes each way and does nothing else; the "
        "Pipe pickles a small tuple each way."
    ),
)
