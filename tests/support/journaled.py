"""Workflows with a journal, whose every execution of a task leaves a mark."""

from __future__ import annotations

import os
from collections import Counter
from enum import Enum, auto

from canobatch import JoinConfig, JoinStrategy, Retry, Task, TaskConfig, Workflow
from canobatch.journal import SqliteJournal


class S(Enum):
    """States."""

    LOAD = auto()
    ROUTE = auto()
    COUNT = auto()
    BEST = auto()
    RISKY = auto()
    AGAIN = auto()
    SUM = auto()
    DONE = auto()


def mark(place, name):
    """Leave a mark: one line, whole, in a file that all processes append to."""
    fd = os.open(f"{place}/marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f"{name}\n".encode())
    finally:
        os.close(fd)


def marks(place):
    """Return how often each mark was left."""
    try:
        with open(f"{place}/marks") as file:
            return Counter(file.read().split("\n")[:-1])
    except FileNotFoundError:
        return Counter()


class Weigh(Task):
    """A branch that writes to the store and returns its weight."""

    def __init__(self, place, index):
        self.place = place
        self.index = index

    def run(self, ctx):
        """Append to a list that all branches append to."""
        mark(self.place, f"best {self.index}")
        ctx.store.append("weighed", self.index)
        ctx.store.add("weight", self.index)
        return self.index * 100


class Flaky(Task):
    """Fails at its first attempt."""

    config = TaskConfig(retry=Retry.fixed(2, 0.0), where="worker")

    def __init__(self, place):
        self.place = place

    def run(self, ctx):
        """Fail once."""
        mark(self.place, f"risky {ctx.attempt}")
        if ctx.attempt == 1:
            raise ValueError("the first time")
        raise OSError("for good")


def everything(place, journal=None):
    """Return a workflow with every kind of state there is, looped through twice."""

    def load(ctx):
        mark(place, "load")
        ctx.store.put("items", [f"item {index}" for index in range(4)])
        ctx.store.put("large", b"x" * (1 << 20))
        ctx.store.add("rounds")
        return S.ROUTE

    def route(ctx):
        return S.COUNT if ctx.store.get("rounds") < 3 else S.SUM

    def count(ctx, item):
        mark(place, f"count {item}")
        ctx.store.append("seen", item)
        return len(item) + ctx.store.get("rounds")

    def again(ctx):
        mark(place, "again")
        ctx.store.update("rounds", increased)
        ctx.store.append("sums", sum(ctx.split(S.BEST).values))
        return S.ROUTE

    def total(ctx):
        mark(place, "sum")
        ctx.store.put("total", ctx.store.get("folded") + sum(ctx.store.get("sums")))
        ctx.store.remove("items")
        return S.DONE

    all_of = JoinStrategy.all()
    return (
        Workflow("everything", journal=journal or SqliteJournal(f"{place}/home"), version=2)
        .register(S.LOAD, load)
        .register_router(S.ROUTE, route)
        .register_map(S.COUNT, count, "items", JoinConfig(all_of, S.BEST, into="folded", reduce=(added, 0)))
        .register_split(S.BEST, [Weigh(place, index) for index in range(2)], JoinConfig(all_of, S.RISKY, into="best"))
        .register(S.RISKY, Flaky(place), on_error=S.AGAIN)
        .register(S.AGAIN, again)
        .register(S.SUM, total)
        .add_exit_state(S.DONE)
    )


def increased(value):
    """Return one more."""
    return value + 1


def added(folded, value):
    """Return the sum, so that order matters."""
    return folded * 3 + value


def content(store):
    """Return all that a store holds."""
    return {key: store.get(key) for key in store.keys()}  # noqa: SIM118 - a store is not a dict


#: How often each task of `everything` runs when nothing disturbs it.
UNDISTURBED = Counter(
    {
        "load": 1,
        **{f"count item {index}": 2 for index in range(4)},
        **{f"best {index}": 2 for index in range(2)},
        "risky 1": 2,
        "risky 2": 2,
        "risky 3": 2,
        "again": 2,
        "sum": 1,
    }
)
