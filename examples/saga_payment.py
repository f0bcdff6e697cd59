"""An order as a saga: reserve, charge, ship. What was done is undone, the last first, when a later step fails.

Three orders: one that goes through, one whose shipping fails, and one whose refund fails too. The shop's books are
in a SQLite file; every step writes under a key made of run and state, so that doing it twice does it once.
"""

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from canobatch import TaskContext, TaskError, Workflow
from canobatch.errors import CompensationError
from canobatch.models import CompensatableTask


class S(Enum):
    """The states."""

    RESERVE = auto()
    CHARGE = auto()
    SHIP = auto()
    DONE = auto()


@dataclass(frozen=True)
class Order:
    """What a run is about."""

    item: str
    cents: int
    books: str
    address: str = "1 Main Street"
    card: str = "valid"


def write(ctx: TaskContext, sql: str, *values: object) -> str:
    """Change the books; return the key of the entry."""
    key = f"{ctx.run_id}/{ctx.state.name}"
    with closing(sqlite3.connect(ctx.params.books)) as books, books:
        books.execute(sql, (*values, key))
    return key


class Reserve(CompensatableTask):
    """Puts an item aside."""

    def run(self, ctx: TaskContext) -> tuple[S, str]:
        return S.CHARGE, write(ctx, "INSERT OR IGNORE INTO entries VALUES ('reserved', ?, ?)", ctx.params.item)

    def compensate(self, ctx: TaskContext, output: str) -> None:
        write(ctx, "UPDATE entries SET what = 'released' WHERE detail = ? AND key = ?", ctx.params.item)


class Charge(CompensatableTask):
    """Takes the money."""

    def run(self, ctx: TaskContext) -> tuple[S, int]:
        write(ctx, "INSERT OR IGNORE INTO entries VALUES ('charged', ?, ?)", str(ctx.params.cents))
        return S.SHIP, ctx.params.cents

    def compensate(self, ctx: TaskContext, output: int) -> None:
        if ctx.params.card == "closed meanwhile":
            raise ConnectionError(f"the bank takes back no {output / 100:.2f}")
        write(ctx, "UPDATE entries SET what = 'refunded' WHERE detail = ? AND key = ?", str(output))


def ship(ctx: TaskContext) -> S:
    if not ctx.params.address:
        raise ValueError("there is no address to ship to")
    write(ctx, "INSERT OR IGNORE INTO entries VALUES ('shipped', ?, ?)", ctx.params.item)
    return S.DONE


workflow = (
    Workflow("order", params=Order, compensation_timeout=10.0)
    .register_with_compensation(S.RESERVE, Reserve())
    .register_with_compensation(S.CHARGE, Charge())
    .register(S.SHIP, ship)
    .add_exit_state(S.DONE)
)


def place(order: Order, number: int) -> str:
    """Run one order and say how it ended."""
    try:
        workflow.orchestrate(S.RESERVE, params=order, run_id=f"order-{number}")
    except CompensationError as error:
        return f"failed and not undone: {'; '.join(str(each.__cause__) for each in error.errors)}"
    except TaskError as error:
        return f"undone: {error.__cause__}"
    return "done"


with tempfile.TemporaryDirectory() as directory:
    path = str(Path(directory) / "books.db")
    with closing(sqlite3.connect(path)) as books, books:
        books.execute("CREATE TABLE entries (what TEXT, detail TEXT, key TEXT PRIMARY KEY)")
    orders = [
        Order("lamp", 4900, path),
        Order("chair", 8900, path, address=""),
        Order("table", 19900, path, address="", card="closed meanwhile"),
    ]
    ends = [place(order, number) for number, order in enumerate(orders, 1)]
    with closing(sqlite3.connect(path)) as books:
        entries = books.execute("SELECT key, what FROM entries ORDER BY key").fetchall()

for number, (order, end) in enumerate(zip(orders, ends, strict=True), 1):
    done = [what for key, what in entries if key.startswith(f"order-{number}/")]
    print(f"{order.item}: {end}; the books say: {', '.join(sorted(done))}")
shipped, undone = ends.count("done"), sum(end.startswith("undone") for end in ends)
print(f"{shipped} shipped, {undone} undone, {len(ends) - shipped - undone} to be seen to by hand")
