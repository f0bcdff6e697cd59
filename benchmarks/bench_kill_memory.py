"""Kill, by memory: what each gigabyte that losers hold adds to the way from the winner's end to the next state.

The kernel frees the memory of a killed process before the process counts as dead, and no library can go on earlier
without leaving a loser alive.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side
from benchmarks.bench_kill import RACERS, canobatch_races

#: Resident MiB of each loser.
SIZES = (64, 256, 1024)


@contextmanager
def canobatch_side(_options: Options) -> Iterator[Measure]:
    """One race per size, and the slope through them; sizes that do not fit into half the free memory are left out."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    sizes = [size for size in SIZES if size * (RACERS - 1) <= free // 2]
    with canobatch_races(RACERS) as run:

        def measure() -> Sample:
            took = [run(size, False)["next"] for size in sizes]
            gigabytes = [size * (RACERS - 1) / 1024 for size in sizes]
            sample = {f"mb{size}": milliseconds for size, milliseconds in zip(sizes, took, strict=True)}
            return sample | {"slope": statistics.linear_regression(gigabytes, took).slope}

        yield measure


ROW = Row(
    name="kill_memory",
    title=f"any: 1 winner, {RACERS - 1} hung losers, by what each holds",
    figures=(
        *(Figure(f"mb{size}", f"winner's end → next state, losers of {size} MiB", "ms") for size in SIZES),
        Figure("slope", "for each GiB that the losers hold together", "ms"),
    ),
    sides=(Side(OURS, canobatch_side, Kind.OURS),),
    rounds=7,
    quick_rounds=1,
    remark="No target: the slope is the kernel's, which frees a process's memory before it is dead.",
)
