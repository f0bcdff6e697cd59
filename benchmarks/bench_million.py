"""A million items: a generator, mapped and folded, and how far the parent's memory grows meanwhile."""

from __future__ import annotations

import itertools
import operator
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks._peers import library
from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side, Target

if TYPE_CHECKING:
    from canobatch import TaskContext

#: Items of the run that makes all things ready.
FEW = 2_000

#: Maps and sums items.
Total = Callable[[Iterator[int]], int]
#: Gives that, as long as its context is open.
Opened = Callable[[Options], AbstractContextManager[Total]]


class State(Enum):
    """The states of the workflow."""

    SUM = auto()
    DONE = auto()


def same(item: int) -> int:
    """Return the item."""
    return item


def same_branch(_ctx: TaskContext, item: int) -> int:
    """Return the item."""
    return item


def resident(what: str) -> float:
    """Return the MB of this process that are resident ("VmRSS"), or were at most ("VmHWM")."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else 0.0


def items(count: int, memory: list[float]) -> Iterator[int]:
    """Make the items, one by one, in the parent; note its memory after a tenth, half, and all of them."""
    for begin, end in itertools.pairwise((0, count // 10, count // 2, count)):
        yield from range(begin, end)
        memory.append(resident("VmRSS"))


def side(opened: Opened) -> Callable[[Options], AbstractContextManager[Measure]]:
    """Return how a side is measured that sums so many items."""

    @contextmanager
    def prepare(options: Options) -> Iterator[Measure]:
        count = 50_000 if options.quick else 1_000_000
        with opened(options) as total:
            total(items(FEW, []))
            # Not anew for each repeat: what the first one leaves to the next would hide how far that one grows.
            before = resident("VmRSS")

            def measure() -> Sample:
                memory: list[float] = []
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
                started = time.perf_counter()
                found = total(items(count, memory))
                elapsed = time.perf_counter() - started
                return {
                    "item": elapsed / count * 1e6,
                    "memory_tenth": memory[0] - before,
                    "memory_half": memory[1] - before,
                    "memory_all": memory[2] - before,
                    "memory_peak": resident("VmHWM") - before,
                    "sum": found,
                }

            yield measure

    return prepare


@contextmanager
def canobatch_total(options: Options) -> Iterator[Total]:
    """One split with a branch per item, folded in branch order."""
    from canobatch import JoinConfig, JoinStrategy, WorkerPool, Workflow

    join = JoinConfig(JoinStrategy.all(), State.DONE, into="total", reduce=(operator.add, 0))
    with WorkerPool(options.workers, spares=0) as pool:
        pool.warm_up()

        def total(numbers: Iterator[int]) -> int:
            workflow: Workflow = (
                Workflow("million").register_map(State.SUM, same_branch, numbers, join).add_exit_state(State.DONE)
            )
            run = workflow.start(State.SUM, pool=pool)
            run.wait()
            found: int = run.store.get("total")
            return found

        yield total


def imap_total(chunk: int) -> Opened:
    """Return what sums with `multiprocessing.Pool.imap`, which keeps no record of any item."""

    @contextmanager
    def opened(options: Options) -> Iterator[Total]:
        with library("multiprocessing").Pool(options.workers) as pool:
            yield lambda numbers: sum(pool.imap(same, numbers, chunk))
            pool.close()
            pool.join()

    return opened


ROW = Row(
    name="million",
    title="1 000 000 items of a generator, mapped and folded",
    figures=(
        Figure("item", "per item", "µs", (Target(15.0),)),
        Figure("memory_tenth", "growth of the parent's resident memory, a tenth of the items made", "MB"),
        Figure("memory_half", "the same, half of them", "MB"),
        Figure("memory_all", "the same, all of them", "MB"),
        Figure("memory_peak", "the same, at its peak", "MB"),
    ),
    sides=(
        Side(OURS, side(canobatch_total), Kind.OURS),
        Side("mp.Pool.imap (chunk 1)", side(imap_total(1))),
        Side("mp.Pool.imap (chunk 1000)", side(imap_total(1000))),
    ),
    rounds=3,
    quick_rounds=2,
    warm_ups=0,
    agree=("sum",),
    remark="1 000 000 items (--quick: 50 000). Before the first repeat each side has summed 2 000.",
)
