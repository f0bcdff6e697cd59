"""An ETL pipeline on a schedule: every second for a short demonstration, and every night by cron.

A run extracts the orders of one shop, transforms them in parallel, and loads them into one table. Two runs of a
flow never overlap; a run that fails rests its flow for a while; Ctrl-C or SIGTERM lets what runs come to its end.

    python examples/scheduled_etl.py                  # three runs, a second apart
    python examples/scheduled_etl.py --runs 10 --interval 0.5
    python examples/scheduled_etl.py --serve          # until it is stopped by a signal
"""

import argparse
import logging
import random
import sqlite3
import sys
import tempfile
import threading
from contextlib import closing
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import Any

from canobatch import JoinConfig, JoinStrategy, TaskContext, Workflow
from canobatch.observe import Event
from canobatch.scheduler import BackoffPolicy, Cron, Scheduler

ORDERS = 12  # of one extract
CURRENCIES = ("EUR", "USD", "GBP")
NIGHTLY = ("30 2 * * *", "Europe/Berlin")


class S(Enum):
    """The states of the pipeline."""

    EXTRACT = auto()
    TRANSFORM = auto()
    LOAD = auto()
    LOADED = auto()


def extract(ctx: TaskContext) -> S:
    """Put the shop's new orders into the store; a real pipeline would ask the shop."""
    draw = random.Random(ctx.run_id)
    orders = [
        {"order": n, "amount": draw.randrange(100, 10_000), "currency": draw.choice(CURRENCIES)} for n in range(ORDERS)
    ]
    ctx.store.put("orders", orders)
    ctx.store.put("rates", {"EUR": 1.0, "USD": 0.9, "GBP": 1.15})
    return S.TRANSFORM


def transform(ctx: TaskContext, order: dict[str, Any]) -> tuple[int, float]:
    """Convert one order to euros, in a worker."""
    rate = ctx.store.get("rates")[order["currency"]]
    return order["order"], round(order["amount"] * rate / 100, 2)


def load(ctx: TaskContext) -> S:
    """Write all orders of the run in one transaction; a second attempt replaces what the first one wrote."""
    rows = [(ctx.run_id, ctx.params.shop, order, euros) for order, euros in ctx.store.get("euros")]
    with closing(sqlite3.connect(ctx.params.table, timeout=30)) as table, table:
        table.executemany("REPLACE INTO orders VALUES (?, ?, ?, ?)", rows)
    return S.LOADED


workflow = (
    Workflow("etl")
    .register(S.EXTRACT, extract)
    .register_map(S.TRANSFORM, transform, "orders", JoinConfig(JoinStrategy.all(), S.LOAD, into="euros"))
    .register(S.LOAD, load)
    .add_exit_state(S.LOADED)
)


class Counter:
    """Counts the runs that have finished."""

    def __init__(self) -> None:
        self.finished = threading.Semaphore(0)

    def on_event(self, event: Event) -> None:
        if event.kind == "run_finished":
            self.finished.release()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="An ETL pipeline on a schedule.")
    parser.add_argument("--runs", type=int, default=3, help="how many to wait for; default 3")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between them; default 1")
    parser.add_argument("--serve", action="store_true", help="go on until SIGTERM or Ctrl-C")
    args = parser.parse_args()

    counter = Counter()
    workflow.with_observer(counter)
    with tempfile.TemporaryDirectory() as directory:
        table = str(Path(directory) / "orders.db")
        with closing(sqlite3.connect(table)) as connection:
            connection.execute("CREATE TABLE orders (run, shop, number, euros, PRIMARY KEY (run, number))")
        scheduler = (
            Scheduler()
            .every(
                "demo",
                workflow,
                S.EXTRACT,
                args.interval,
                params={"shop": "demo", "table": table},
                overlap="queue_one",
                backoff=BackoffPolicy(initial=args.interval),
            )
            .cron("nightly", workflow, S.EXTRACT, *NIGHTLY, params={"shop": "all", "table": table}, catchup="last")
        )
        coming = Cron(*NIGHTLY).preview(datetime.now(UTC), 2)
        print("nightly at", ", ".join(f"{tick:%Y-%m-%d %H:%M} UTC" for tick in coming))
        with scheduler.start() as running:
            if args.serve:
                logging.basicConfig(stream=sys.stdout, level=logging.INFO)
                running.serve()
            else:
                for _ in range(args.runs):
                    counter.finished.acquire()
                # What was begun meanwhile may come to its end.
                running.stop()
            for flow in running.list():
                print(f"{flow.id}: {flow.status}, {flow.run_count} runs")
        with closing(sqlite3.connect(table)) as connection:
            sums = connection.execute("SELECT count(DISTINCT run), count(*), total(euros) FROM orders")
            runs, orders, euros = sums.fetchone()
    print(f"{runs} runs loaded {orders} orders worth {euros:.2f} EUR")


if __name__ == "__main__":
    main()
