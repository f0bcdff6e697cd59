"""Extract, transform, load: orders from SQLite and exchange rates from CSV, a report by month into SQLite.

The data is made first, so the figures are known. EXTRACT reads both sources in two branches; TRANSFORM works on
one numpy block per worker at a time; LOAD goes month by month and could start again at any of them.
"""

import csv
import sqlite3
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np

from canobatch import JoinConfig, JoinStrategy, Retry, TaskConfig, TaskContext, WorkerPool, Workflow
from canobatch.models import Done, More, SteppedTask

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
BLOCK = 10_000
CURRENCIES = ("EUR", "USD", "GBP", "JPY")
RATES = (1.0, 0.9, 1.2, 0.006)
COLUMNS = np.dtype([("month", "i4"), ("currency", "i4"), ("amount", "f8")])


class S(Enum):
    """The states."""

    EXTRACT = auto()
    TRANSFORM = auto()
    LOAD = auto()
    DONE = auto()


@dataclass(frozen=True)
class Place:
    """Where the data is."""

    directory: str

    def path(self, name: str) -> str:
        return str(Path(self.directory) / name)


def make(place: Place) -> float:
    """Make both sources; return the sum in EUR that the report must come to."""
    numbers = np.random.default_rng(11)
    amounts = numbers.integers(100, 10_000, ROWS) / 100
    currencies = numbers.integers(0, len(CURRENCIES), ROWS)
    months = numbers.integers(1, 13, ROWS)
    with closing(sqlite3.connect(place.path("orders.db"))) as orders, orders:
        orders.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, month INT, currency TEXT, amount REAL)")
        rows = zip(months.tolist(), (CURRENCIES[c] for c in currencies), amounts.tolist(), strict=True)
        orders.executemany("INSERT INTO orders (month, currency, amount) VALUES (?, ?, ?)", rows)
    with Path(place.path("rates.csv")).open("w", newline="") as file:
        csv.writer(file).writerows([("currency", "rate"), *zip(CURRENCIES, RATES, strict=True)])
    return float((amounts * np.array(RATES)[currencies]).sum())


def read_orders(ctx: TaskContext) -> None:
    with closing(sqlite3.connect(ctx.params.path("orders.db"))) as orders:
        rows = orders.execute("SELECT month, currency, amount FROM orders ORDER BY id").fetchall()
    numbered = [(month, CURRENCIES.index(currency), amount) for month, currency, amount in rows]
    ctx.store.put("orders", np.array(numbered, dtype=COLUMNS))


def read_rates(ctx: TaskContext) -> None:
    with Path(ctx.params.path("rates.csv")).open(newline="") as file:
        rates = {row["currency"]: float(row["rate"]) for row in csv.DictReader(file)}
    ctx.store.put("rates", np.array([rates[currency] for currency in CURRENCIES]))


def blocks(ctx: TaskContext) -> list[tuple[int, int]]:
    size = len(ctx.store.get("orders"))
    return [(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]


def transform(ctx: TaskContext, block: tuple[int, int]) -> Any:
    """Return the block's sum in EUR by month."""
    orders = ctx.store.get("orders")[slice(*block)]
    euros = orders["amount"] * ctx.store.get("rates")[orders["currency"]]
    return np.bincount(orders["month"], weights=euros, minlength=13)


class Load(SteppedTask):
    """Writes one month at a time; writing it twice writes it once."""

    config = TaskConfig(retry=Retry.exponential(3))

    def step(self, ctx: TaskContext, cursor: int | None) -> More | Done:
        month = cursor or 1
        with closing(sqlite3.connect(ctx.params.path("report.db"))) as report, report:
            report.execute("CREATE TABLE IF NOT EXISTS report (month INTEGER PRIMARY KEY, euros REAL)")
            report.execute("INSERT OR REPLACE INTO report VALUES (?, ?)", (month, float(ctx.store.get("sums")[month])))
        return More(month + 1) if month < 12 else Done(S.DONE)


workflow = (
    Workflow("etl", params=Place)
    .register_split(S.EXTRACT, [read_orders, read_rates], JoinConfig(JoinStrategy.all(), S.TRANSFORM))
    .register_map(
        S.TRANSFORM,
        transform,
        blocks,
        JoinConfig(JoinStrategy.all(), S.LOAD, into="sums", reduce=(np.add, np.zeros(13))),
    )
    .register_stepped(S.LOAD, Load())
    .add_exit_state(S.DONE)
)

with tempfile.TemporaryDirectory() as directory, WorkerPool(2) as pool:
    place = Place(directory)
    expected = make(place)
    run = workflow.start(S.EXTRACT, params=place, pool=pool)
    run.wait()
    with closing(sqlite3.connect(place.path("report.db"))) as report:
        table = report.execute("SELECT month, euros FROM report ORDER BY month").fetchall()

for month, euros in table:
    print(f"{month:2} {euros:14,.2f}")
total = sum(euros for _, euros in table)
branches = len(run.report().splits[S.TRANSFORM])
verdict = "as expected" if abs(total - expected) < 0.01 else f"expected {expected:.2f}"
print(f"{ROWS} orders in {branches} blocks: {total:.2f} EUR, {verdict}")
