"""Models in workflows with a journal, whose every phase leaves a mark."""

from __future__ import annotations

from canobatch import Retry, TaskConfig, Workflow
from canobatch.journal import SqliteJournal
from canobatch.models import BatchTask, CompensatableTask, Count, Done, More, SteppedTask, StreamTask, TimerTask
from tests.support.journaled import mark


class Steps(SteppedTask):
    """Four steps, each of which adds to the store."""

    def __init__(self, place):
        self.place = place

    def step(self, ctx, cursor):
        """Do one."""
        number = cursor or 0
        mark(self.place, f"step {number}")
        ctx.store.append("steps", number)
        return Done("WAIT") if number == 3 else More(number + 1)


class Wait(TimerTask):
    """Waits a little; what it says is said once."""

    def __init__(self, place, seconds=0.01):
        self.place = place
        self.seconds = seconds

    def wait(self, ctx):
        """Say how long."""
        mark(self.place, "wait")
        ctx.store.add("waits")
        return self.seconds

    def after_wait(self, ctx):
        """Go on."""
        mark(self.place, "after_wait")
        return "BATCH"


class Batch(BatchTask):
    """Five items, one of which fails at first."""

    concurrency = 2
    item_retry = Retry.fixed(1, 0.0)

    def __init__(self, place):
        self.place = place

    def load(self, ctx):
        """Make the items."""
        mark(self.place, "load")
        ctx.store.put("loaded", True)
        return range(5)

    def process_item(self, ctx, item):
        """Process one."""
        mark(self.place, f"item {item}")
        ctx.store.append("items", item)
        if item == 3:
            raise ValueError("three")
        return item * 10

    def finish(self, ctx, results):
        """Sum up."""
        mark(self.place, "finish")
        ctx.store.put("batch", [(one.index, one.value, str(one.error) if one.error else None) for one in results])
        return "STREAM"


class Feed(StreamTask):
    """Seven items in windows of two."""

    window = Count(2)

    def __init__(self, place):
        self.place = place

    def open(self, ctx, cursor):
        """Go on from the cursor."""
        mark(self.place, "open")
        return range(cursor or 0, 7)

    def process_item(self, ctx, item):
        """Process one."""
        ctx.store.append("fed", item)
        return item, item + 1

    def flush_window(self, ctx, outputs):
        """Hand a window on."""
        mark(self.place, f"window {outputs}")
        ctx.store.append("windows", outputs)

    def on_close(self, ctx, reason):
        """Go on."""
        return "RESERVE"


class Deed(CompensatableTask):
    """Does something that can be undone."""

    compensates_in_doubt = True

    def __init__(self, place, name, following, fails=0):
        self.place = place
        self.name = name
        self.following = following
        self.fails = fails
        self.config = TaskConfig(retry=Retry.fixed(fails, 0.0))

    def run(self, ctx):
        """Do it."""
        mark(self.place, f"do {self.name}")
        if ctx.attempt <= self.fails:
            raise ValueError("not yet")
        ctx.store.append("deeds", self.name)
        return self.following, {"ticket": self.name}

    def compensate(self, ctx, output):
        """Undo it."""
        mark(self.place, f"undo {self.name} {output and output['ticket']}")
        ctx.store.append("undone", self.name)


def models(place, *, fails=False, journal=None):
    """Return a workflow of one model after the other; its last state fails or not."""

    def ship(ctx):
        mark(place, "ship")
        if fails:
            raise RuntimeError("no ship")
        return "DONE"

    return (
        Workflow("models", journal=journal or SqliteJournal(f"{place}/home"))
        .register_stepped("STEPS", Steps(place))
        .register("WAIT", Wait(place))
        .register("BATCH", Batch(place))
        .register_stream("STREAM", Feed(place))
        .register_with_compensation("RESERVE", Deed(place, "reserve", "PAY"))
        .register_with_compensation("PAY", Deed(place, "pay", "SHIP", fails=1))
        .register("SHIP", ship)
        .add_exit_state("DONE")
    )
