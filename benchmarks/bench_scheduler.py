"""Flows that are due every second, one hundred and one thousand of them at the same time; and triggers."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks._peers import library
from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side

COUNTS = (1, 100, 1000)
TRIGGERS = 50


def ticks(options: Options) -> int:
    """Return how many ticks of each flow are measured."""
    return 1 if options.quick else 3


def quantiles(lateness: list[float]) -> tuple[float, float]:
    """Return median and 99th percentile."""
    ordered = sorted(lateness)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


class Bodies:
    """Notes when each body begins, and knows when all have."""

    def __init__(self, expected: int) -> None:
        self.starts: list[float] = []
        self._expected = expected
        self._is_done = threading.Event()

    def __call__(self) -> str:
        self.starts.append(time.time())
        if len(self.starts) >= self._expected:
            self._is_done.set()
        return "done"

    def wait(self) -> list[float]:
        """Wait for all; return when they began."""
        assert self._is_done.wait(120)
        return self.starts[: self._expected]


def lateness_of(starts: list[float], first: datetime) -> list[float]:
    """Return by how many ms each start was later than the full second before it, counted from the first tick."""
    anchor = first.timestamp()
    return [(start - anchor) % 1.0 * 1e3 for start in starts]


def memory_of(make: Callable[[], object]) -> float:
    """Return the MB of what ``make`` returns."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del made
    return held / 1e6


@contextmanager
def canobatch_side(options: Options) -> Iterator[Measure]:
    """Flows by cron, whose tasks run in this process."""
    from canobatch import TaskConfig, Workflow
    from canobatch.scheduler import Scheduler

    def workflow(body: Any) -> Any:
        config = TaskConfig(where="parent")
        return Workflow("w").register("start", body, config=config).add_exit_state("done")

    def idle(flow: Any) -> Any:
        scheduler = Scheduler()
        for number in range(1000):
            scheduler.cron(f"f{number}", flow, "start", "0 0 1 1 *")
        running = scheduler.start()
        running.stop()
        return running

    def measure() -> Sample:
        sample: Sample = {}
        for count in COUNTS:
            bodies = Bodies(count * ticks(options))
            scheduler = Scheduler()
            flow = workflow(bodies)
            for number in range(count):
                scheduler.cron(f"f{number}", flow, "start", "* * * * * *")
            with scheduler.start() as running:
                first = datetime.fromtimestamp(int(time.time()), UTC)
                sample[f"p50 {count}"], sample[f"p99 {count}"] = quantiles(lateness_of(bodies.wait(), first))
                for info in running.list():
                    running.pause_flow(info.id)
        sample["memory"] = memory_of(lambda: idle(flow))
        took = []
        bodies = Bodies(TRIGGERS)
        with Scheduler().manual("f", workflow(bodies), "start").start() as running:
            for _ in range(TRIGGERS):
                asked = time.time()
                running.trigger("f").wait()
                took.append((bodies.starts[-1] - asked) * 1e3)
        sample["trigger"] = quantiles(took)[0]
        return sample

    yield measure


@contextmanager
def apscheduler_side(options: Options) -> Iterator[Measure]:
    """APScheduler 3 with its thread pool; a run that is late is not dropped, as it would be by default."""
    executors = library("apscheduler.executors.pool")
    background = library("apscheduler.schedulers.background")

    def started() -> Any:
        scheduler = background.BackgroundScheduler(
            executors={"default": executors.ThreadPoolExecutor(20)},
            job_defaults={"misfire_grace_time": None, "max_instances": 1},
            timezone=UTC,
        )
        scheduler.start()
        return scheduler

    def idle() -> Any:
        scheduler = started()
        for number in range(1000):
            scheduler.add_job(int, "cron", month=1, day=1, hour=0, minute=0, id=f"f{number}")
        return scheduler

    def measure() -> Sample:
        sample: Sample = {}
        for count in COUNTS:
            bodies = Bodies(count * ticks(options))
            scheduler = started()
            first = datetime.fromtimestamp(int(time.time()) + 1 + count // 1000, UTC)
            for number in range(count):
                # Added in the second before, so that all are due at once.
                scheduler.add_job(bodies, "cron", second="*", id=f"f{number}", start_date=first - timedelta(seconds=1))
            sample[f"p50 {count}"], sample[f"p99 {count}"] = quantiles(lateness_of(bodies.wait(), first))
            scheduler.shutdown()
        sample["memory"] = memory_of(idle)
        took = []
        bodies = Bodies(TRIGGERS)
        scheduler = started()
        for number in range(TRIGGERS):
            asked = time.time()
            scheduler.add_job(bodies)
            while len(bodies.starts) <= number:
                time.sleep(0)
            took.append((bodies.starts[-1] - asked) * 1e3)
        scheduler.shutdown()
        sample["trigger"] = quantiles(took)[0]
        return sample

    yield measure


ROW = Row(
    name="scheduler",
    title="flows due every second, all at the same instant; no home",
    figures=(
        *(
            Figure(f"{quantile} {count}", f"lateness of {count} flows, {quantile}", "ms")
            for count in COUNTS
            for quantile in ("p50", "p99")
        ),
        Figure("trigger", "from trigger to first task", "ms"),
        Figure("memory", "memory for 1000 flows", "MB"),
    ),
    sides=(
        Side(OURS, canobatch_side, Kind.OURS),
        Side("APScheduler", apscheduler_side, needs="apscheduler"),
    ),
    rounds=5,
    quick_rounds=1,
    remark="APScheduler runs functions, on twenty threads; canobatch runs workflows, in as many threads as it takes.",
)
