"""What you have written with another tool, and the same with canobatch; each is small, whole, and run here.

The docstring of each function is the other tool's way. What replaces GNU parallel, cron and flock is in the README.
"""

import time
from collections.abc import Callable
from typing import Any

from canobatch import JoinConfig, JoinStrategy, Retry, TaskConfig, TaskContext, WorkerPool, Workflow
from canobatch.scheduler import Scheduler

ALL = JoinStrategy.all()


def square(n: int) -> int:
    """Any function you have."""
    return n * n


def joblib() -> list[int]:
    """Parallel(n_jobs=2)(delayed(square)(n) for n in range(5)); Pool(2).map(square, range(5)); executor.map."""
    join = JoinConfig(ALL, "done", into="squares")
    workflow = Workflow("squares").register_map("map", lambda _, n: square(n), range(5), join).add_exit_state("done")
    with WorkerPool(2) as pool:
        run = workflow.start("map", pool=pool)
        run.wait()
    squares: list[int] = run.store.get("squares")
    return squares


def imap_unordered() -> int:
    """Pool().imap_unordered(square, range(5)), to add the values up as they come."""

    def use(total: int, value: int) -> int:
        """In this process, as soon as there is a value; `ordered=True` waits for its turn."""
        return total + value

    join = JoinConfig(ALL, "done", into="total", reduce=(use, 0), ordered=False)
    workflow = Workflow("total").register_map("map", lambda _, n: square(n), range(5), join).add_exit_state("done")
    run = workflow.start("map")
    run.wait()
    total: int = run.store.get("total")
    return total


def pebble() -> list[str]:
    """pool.schedule(spin, args=[n], timeout=0.5) for each n; future.result() raises what went wrong."""

    def spin(_: TaskContext, n: int) -> int:
        while n == 1:
            pass
        return 6 // n

    # At most so long for the whole; what is done by then is kept, and one success is enough.
    join = JoinConfig(JoinStrategy.partial_timeout(), "done", timeout=60)
    config = TaskConfig(attempt_timeout=0.5)
    workflow = Workflow("spin").register_map("map", spin, range(4), join, config=config).add_exit_state("done")
    run = workflow.start("map")
    run.wait()
    return [f"{branch.error or branch.value}" for branch in run.report().splits["map"]]


def as_completed() -> str:
    """done, rest = concurrent.futures.wait(futures, return_when=FIRST_COMPLETED); the rest cannot be stopped."""

    def ask(_: TaskContext, server: str) -> str:
        while server == "hung":
            pass
        return server

    join = JoinConfig(JoinStrategy.any(), "done", into="answers")
    workflow = Workflow("ask").register_map("map", ask, ["hung", "well"], join).add_exit_state("done")
    with WorkerPool(2) as pool:
        run = workflow.start("map", pool=pool)
        run.wait()
    (answer,) = run.store.get("answers")
    return f"{answer}; the other was killed"


def orchestrators() -> list[str]:
    """Airflow: extract >> [clean, count] >> load, with xcom_pull and retries=2; so too Luigi, and Prefect's @flow."""
    workflow = Workflow("etl", default_config=TaskConfig(retry=Retry.fixed(2, delay=0.1)))

    @workflow.task("extract")
    def extract(ctx: TaskContext) -> str:
        if ctx.attempt == 1:
            raise OSError("the source is busy")
        ctx.store.put("rows", [" a ", "b"])
        return "transform"

    def clean(ctx: TaskContext) -> list[str]:
        return [row.strip() for row in ctx.store.get("rows")]

    def count(ctx: TaskContext) -> int:
        return len(ctx.store.get("rows"))

    workflow.register_split("transform", [clean, count], JoinConfig(ALL, "load", into="both"))

    @workflow.task("load")
    def load(ctx: TaskContext) -> str:
        rows, number = ctx.store.get("both")
        ctx.store.put("loaded", rows[:number])
        return "done"

    run = workflow.add_exit_state("done").start("extract")
    run.wait()
    loaded: list[str] = run.store.get("loaded")
    return loaded


def apscheduler() -> str:
    """scheduler.add_job(tick, "interval", seconds=0.1, max_instances=1, coalesce=True)."""

    def tick() -> str:
        return "done"  # a job returns the state that follows

    workflow = Workflow("tick").register("tick", tick).add_exit_state("done")
    scheduler = Scheduler().every("tick", workflow, "tick", 0.1).cron("nightly", workflow, "tick", "30 1 * * *")
    with scheduler.start() as running:
        while running.status("tick").run_count < 2:
            time.sleep(0.01)
        return f"{running.status('tick').last_state}, next at {running.status('nightly').next_run:%H:%M}"


TOOLS: list[Callable[[], Any]] = [joblib, imap_unordered, pebble, as_completed, orchestrators, apscheduler]

if __name__ == "__main__":
    for tool in TOOLS:
        print(f"{tool.__name__:15} {tool()}")
    print(f"{len(TOOLS)} ways over")
