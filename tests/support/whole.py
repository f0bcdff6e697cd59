"""A workflow with every kind of state there is, whose every execution of a task leaves a mark.

It goes twice through what has cursors of its own. Every branch that succeeds does so whatever the order, and every
join is met by the same ones, so that the store at the end is always the same; those that fail may be cut before.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

from canobatch import JoinConfig, JoinStrategy, Resource, Resources, Retry, Task, TaskConfig, Workflow
from canobatch.journal import SqliteJournal
from canobatch.models import (
    BatchTask,
    CompensatableTask,
    Count,
    Done,
    ErrorPolicy,
    More,
    Node,
    Pending,
    PollTask,
    Ready,
    SteppedTask,
    StreamTask,
    TimerTask,
)
from tests.support.journaled import mark, marks


class W(Enum):
    """States, in the order of a run's way."""

    START = auto()
    NODE = auto()
    WORKER = auto()
    ALL = auto()
    MAP = auto()
    GENERATOR = auto()
    ANY = auto()
    QUORUM = auto()
    PERCENT = auto()
    PARTIAL = auto()
    TIMELY = auto()
    BROKEN = auto()
    FLAKY = auto()
    AGAIN = auto()
    STEP = auto()
    TIMER = auto()
    POLL = auto()
    BATCH = auto()
    STREAM = auto()
    RESERVE = auto()
    PAY = auto()
    ROUTE = auto()
    SHIP = auto()
    DONE = auto()


@dataclass(frozen=True)
class Inner:
    """What is inside the parameters."""

    factor: int = 1
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameters:
    """Parameters with parts."""

    place: str = ""
    inner: Inner = field(default_factory=Inner)
    fails: bool = False


PARTS = Inner(7, ("a", "ü"))


class Ledger(Resource):
    """A resource of the run: set up in each of its lives."""

    def __init__(self, place):
        self.place = place
        self.is_open = False

    def setup(self):
        """Open."""
        mark(self.place, "setup")
        self.is_open = True

    def teardown(self):
        """Close."""
        self.is_open = False


def note(ctx, what=""):
    """Leave a mark of who runs: state, round, and which branch or what."""
    mark(ctx.params.place, name_of(ctx.state, ctx.store.get("round", 0), what if ctx.branch is None else ctx.branch))


def name_of(state, number, what):
    """Return the mark of an execution."""
    return f"{state.name}/{number}/{what}"


def start(ctx):
    """Put what the others read; of the parameters, too."""
    note(ctx)
    assert ctx.resource("ledger").is_open
    ctx.store.put("factor", ctx.params.inner.factor)
    ctx.store.put("names", list(ctx.params.inner.names))
    ctx.store.put("items", [1, 2, 2, 3])
    ctx.store.put("large", b"x" * (1 << 20))
    ctx.store.put("gone", 1)
    return W.NODE


class Triple(Node):
    """Three phases."""

    def prep(self, ctx):
        """Read."""
        note(ctx)
        return ctx.store.get("factor")

    def exec(self, value):
        """Compute."""
        return value * 3

    def post(self, ctx, result):
        """Write."""
        ctx.store.put("tripled", result)
        ctx.store.remove("gone")
        return W.WORKER


class InWorker(Task):
    """A single task that runs in a worker."""

    config = TaskConfig(where="worker")

    def run(self, ctx):
        """Replace a large value by another."""
        note(ctx)
        ctx.store.put("large", ctx.store.get("large") + b"y")
        return W.ALL


class Branch(Task):
    """One branch of a split: writes and returns, or fails."""

    def __init__(self, index, fails=False):
        self.index = index
        self.fails = fails

    def run(self, ctx):
        """Write in every way there is."""
        note(ctx)
        if self.fails:
            raise ValueError(f"branch {self.index}")
        ctx.store.append(f"seen {ctx.state.name}", self.index)
        ctx.store.add("sum", self.index)
        ctx.store.update("product", doubled, 1)
        if ctx.state is W.ALL:
            # The same object twice, and one that the next branch replaces.
            large = bytes([self.index]) * 100_000
            ctx.store.put(f"large {self.index}", large)
            ctx.store.put(f"again {self.index}", large)
            ctx.store.put("replaced", large)
        return self.index * ctx.params.inner.factor


def doubled(value):
    """Return twice as much."""
    return value * 2


def mapped(ctx, item):
    """Return what is folded in order."""
    note(ctx)
    return item * ctx.params.inner.factor


def folded(value, item):
    """Fold, so that order matters."""
    return value * 10 + item


def generated(ctx):
    """Yield items that come one by one."""
    for index in range(ctx.store.get("tripled") - 18):
        yield index, "x" * index


def sized(ctx, item):
    """Return what is summed on arrival."""
    note(ctx)
    return item[0] + len(item[1])


def summed(value, item):
    """Fold, so that order does not matter."""
    return value + item


class Flaky(Task):
    """Fails at first, then for good."""

    config = TaskConfig(retry=Retry.fixed(1, 0.0))

    def run(self, ctx):
        """Fail."""
        note(ctx, ctx.attempt)
        raise OSError("for good")


def again(ctx):
    """Look at earlier splits, and begin a round."""
    note(ctx)
    results = {state: ctx.split(state) for state in (W.ALL, W.ANY, W.QUORUM, W.BROKEN)}
    ctx.store.put("values", {state.name: result.values for state, result in results.items()})
    ctx.store.put("broken", [str(branch.error.__cause__) for branch in results[W.BROKEN].errors])
    ctx.store.add("round")
    return W.STEP


class Steps(SteppedTask):
    """Three steps, in a worker."""

    config = TaskConfig(where="worker")

    def step(self, ctx, cursor):
        """Do one."""
        number = cursor or 0
        note(ctx, number)
        ctx.store.append("steps", number)
        return Done(W.TIMER) if number == 2 else More(number + 1)


class Wait(TimerTask):
    """Says once how long."""

    def wait(self, ctx):
        """Say."""
        note(ctx, "wait")
        ctx.store.add("waits")
        return 0.002

    def after_wait(self, ctx):
        """Go on."""
        note(ctx, "after")
        return W.POLL


class Ask(PollTask):
    """Ready at the third poll, the second of which fails."""

    on_poll_error = ErrorPolicy.tolerate(2, pause=0.0)

    def poll(self, ctx):
        """Ask."""
        note(ctx)
        ctx.store.add("polls")
        asked = ctx.store.get("polls")
        if asked < ctx.store.get("round") * 2:
            return Pending(0.0)
        if ctx.attempt == 1 and ctx.store.get("round") == 1 and asked == 2 and marks(ctx.params.place)["failed"] == 0:
            mark(ctx.params.place, "failed")
            raise OSError("not now")
        return Ready(W.BATCH)


class Batch(BatchTask):
    """Four items, one of which fails."""

    concurrency = 2
    item_retry = Retry.fixed(1, 0.0)

    def load(self, ctx):
        """Make the items."""
        note(ctx, "load")
        return range(4)

    def process_item(self, ctx, item):
        """Process one."""
        note(ctx)
        ctx.store.append("batched", item)
        ctx.store.put(f"batch {item}", bytes([item]) * 70_000)
        if item == 2:
            raise ValueError("two")
        return item * 10

    def finish(self, ctx, results):
        """Sum up."""
        note(ctx, "finish")
        ctx.store.append("batches", [(one.value, str(one.error) if one.error else None) for one in results])
        return W.STREAM


class Feed(StreamTask):
    """Five items in windows of two, two at a time in workers."""

    window = Count(2)
    concurrency = 2

    def open(self, ctx, cursor):
        """Go on from the cursor."""
        return range(cursor or 0, 5)

    def process_item(self, ctx, item):
        """Process one."""
        return item, item + 1

    def flush_window(self, ctx, outputs):
        """Hand a window on."""
        note(ctx, f"window {outputs}")
        ctx.store.append("windows", outputs)

    def on_close(self, ctx, reason):
        """Go on."""
        return W.RESERVE


class Deed(CompensatableTask):
    """Does something that can be undone."""

    compensates_in_doubt = True

    def __init__(self, following, where):
        self.following = following
        self.config = TaskConfig(where=where)

    def run(self, ctx):
        """Do it."""
        note(ctx, "do")
        ctx.store.append("deeds", ctx.state.name)
        return self.following, {"ticket": ctx.store.get("round")}

    def compensate(self, ctx, output):
        """Undo it; what is in doubt leaves nothing."""
        mark(ctx.params.place, f"undo/{ctx.state.name}/{output and output['ticket']}")
        if output is not None:
            ctx.store.append("undone", (ctx.state.name, output["ticket"]))


def route(ctx):
    """Go round once more, or on."""
    return W.AGAIN if ctx.store.get("round") < 2 else W.SHIP


def ship(ctx):
    """Do the last thing, or fail."""
    note(ctx)
    if ctx.params.fails:
        raise RuntimeError("no ship")
    ctx.store.put("shipped", sorted(ctx.store.keys()))
    return W.DONE


def split(workflow, state, strategy, following, fails=(), count=3, **join):
    """Register a split, some of whose branches fail."""
    tasks = [Branch(index, index in fails) for index in range(count)]
    workflow.register_split(state, tasks, JoinConfig(strategy, following, into=f"into {state.name}", **join))


def whole(place, journal=None):
    """Return the workflow; its runs are in ``place``, too."""
    workflow = Workflow(
        "whole",
        journal=SqliteJournal(f"{place}/home") if journal is None else journal,
        params=Parameters,
        resources=Resources({"ledger": Ledger(str(place))}),
        version=5,
    )
    one = JoinStrategy.any()
    workflow.register(W.START, start).register(W.NODE, Triple()).register(W.WORKER, InWorker())
    split(workflow, W.ALL, JoinStrategy.all(), W.MAP, store_partial_results=True)
    fold = JoinConfig(JoinStrategy.all(), W.GENERATOR, into="folded", reduce=(folded, 0))
    workflow.register_map(W.MAP, mapped, "items", fold)
    fold = JoinConfig(JoinStrategy.all(), W.ANY, into="summed", reduce=(summed, 0), ordered=False)
    workflow.register_map(W.GENERATOR, sized, generated, fold)
    split(workflow, W.ANY, one, W.QUORUM, fails=(0, 1))
    split(workflow, W.QUORUM, JoinStrategy.quorum(2), W.PERCENT, fails=(1,))
    split(workflow, W.PERCENT, JoinStrategy.percentage(0.5), W.PARTIAL, fails=(0, 3), count=4)
    split(workflow, W.PARTIAL, JoinStrategy.partial_results(2), W.TIMELY, fails=(2,))
    split(workflow, W.TIMELY, JoinStrategy.partial_timeout(1), W.BROKEN, fails=(0,), timeout=600.0)
    split(workflow, W.BROKEN, JoinStrategy.all(), W.SHIP, fails=(1,), on_failure=W.FLAKY)
    workflow.register(W.FLAKY, Flaky(), on_error=W.AGAIN).register(W.AGAIN, again)
    workflow.register_stepped(W.STEP, Steps()).register(W.TIMER, Wait()).register(W.POLL, Ask())
    workflow.register(W.BATCH, Batch()).register_stream(W.STREAM, Feed())
    workflow.register_with_compensation(W.RESERVE, Deed(W.PAY, "parent"))
    workflow.register_with_compensation(W.PAY, Deed(W.ROUTE, "worker"))
    workflow.register_router(W.ROUTE, route).register(W.SHIP, ship)
    return workflow.add_exit_state(W.DONE)


def parameters(place, *, fails=False):
    """Return the parameters of a run."""
    return Parameters(str(place), PARTS, fails)


#: What need not run as often as undisturbed: it may be cut, or asked more than once.
LOOSE = ("ANY/0/0", "ANY/0/1", "QUORUM/0/1", "PERCENT/0/0", "PERCENT/0/3", "PARTIAL/0/2", "POLL/", "failed", "setup")


def executions(place):
    """Return how often what each time runs as often was executed."""
    return Counter({name: count for name, count in marks(place).items() if not name.startswith((*LOOSE, "undo/"))})


def settled(history):
    """Return what must not be executed again: prefixes of marks, from a run's history."""
    visits = Counter()
    kept = set()
    number = {}
    for visit in history.visits:
        number[visit.visit] = visit.state, visits[visit.state] + ROUND_AT_FIRST.get(visit.state, 0)
        visits[visit.state] += 1
        if visit.next_state is not None:
            kept.add("{}/{}/".format(*number[visit.visit]))
    for attempt in history.attempts:
        if attempt.status == "succeeded" and attempt.branch is not None:
            kept.add("{}/{}/{}".format(*number[attempt.visit], attempt.branch))
    return tuple(kept)


#: The number of the round in which a state is visited first, where that is not 0; AGAIN begins one.
ROUND_AT_FIRST = {state.name: 1 for state in W if state.value > W.AGAIN.value} | {W.SHIP.name: 2}
