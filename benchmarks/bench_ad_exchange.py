"""The ad exchange example: five splits whose sleeping branches add up to 300 ms on the longest path."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side, Target

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "ad_exchange.py"


@contextmanager
def canobatch_side(options: Options) -> Iterator[Measure]:
    """The example as a program of its own, several auctions on its warm pool."""
    repeat = 3 if options.quick else 10

    def measure() -> Sample:
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), "--json", "--repeat", str(repeat)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        auctions = json.loads(done.stdout)
        elapsed = [float(auction["elapsed_ms"]) for auction in auctions]
        return {"auction": statistics.median(elapsed), "slowest": max(elapsed)}

    yield measure


ROW = Row(
    name="ad_exchange",
    title="ad exchange example, sleeps of 300 ms on the longest path",
    figures=(
        Figure("auction", "elapsed, median of the program's auctions", "ms", (Target(310.0),)),
        Figure("slowest", "elapsed, slowest of the program's auctions", "ms"),
    ),
    sides=(Side(OURS, canobatch_side, Kind.OURS),),
    rounds=7,
    quick_rounds=1,
    warm_ups=0,
    remark="The original prints 307.7 ms for the same auction, with threads of one process.",
)
