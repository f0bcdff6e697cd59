"""Import time: a fresh interpreter that imports the package, less one that imports nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from benchmarks._row import OURS, Figure, How, Kind, Measure, Options, Row, Sample, Side, Target

BARE = "bare Python"


def importing(code: str) -> Callable[[Options], AbstractContextManager[Measure]]:
    """Return a side that times ``python -c code``."""

    @contextmanager
    def prepare(_options: Options) -> Iterator[Measure]:
        def measure() -> Sample:
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
            return {"start": (time.perf_counter() - started) * 1e3}

        yield measure

    return prepare


ROW = Row(
    name="import",
    title="python -c 'import canobatch'",
    figures=(Figure("start", "start of the interpreter, import, exit", "ms", (Target(40.0, How.EXCESS, BARE),)),),
    sides=(
        Side(OURS, importing("import canobatch"), Kind.OURS),
        Side(BARE, importing("pass"), Kind.BOUND),
        Side(
            "canobatch, what the quickstart names",
            importing("from canobatch import Workflow, Task, TaskConfig, Retry, JoinConfig, JoinStrategy, SharedStore"),
            Kind.VARIANT,
        ),
        Side("joblib", importing("import joblib"), needs="joblib"),
        Side("loky", importing("import loky"), needs="loky"),
        Side("pebble", importing("import pebble"), needs="pebble"),
        Side("mpire", importing("import mpire"), needs="mpire"),
        Side("concurrent.futures", importing("from concurrent.futures import ProcessPoolExecutor")),
        Side("multiprocessing", importing("import multiprocessing.pool")),
    ),
    rounds=20,
    quick_rounds=3,
)
