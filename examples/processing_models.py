"""A tour of the processing models: one small weather service, each state with the model that fits it.

WAIT polls until the readings are there, SETTLE lets them settle for a moment, PICK chooses what to do, PARSE
goes through the readings in worker processes (bad ones are data, not a failure), COMPARE is one computation,
PAGES goes page by page and could start again from any of them, FEED hands the values on in windows, and PUBLISH
could be undone.
"""

import random
import time
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any

from canobatch import Retry, TaskContext, Workflow
from canobatch.models import (
    BatchTask,
    CloseReason,
    CompensatableTask,
    Count,
    Done,
    Duration,
    ErrorPolicy,
    ItemResult,
    More,
    Node,
    Pending,
    PollTask,
    Ready,
    RouterTask,
    SteppedTask,
    StreamTask,
    TimerTask,
)


class S(Enum):
    """The states."""

    WAIT = auto()
    SETTLE = auto()
    PICK = auto()
    PARSE = auto()
    COMPARE = auto()
    PAGES = auto()
    FEED = auto()
    PUBLISH = auto()
    DONE = auto()
    NOTHING = auto()


class WaitForReadings(PollTask):
    """Asks until there are readings; a station that does not answer now and then is borne."""

    on_poll_error = ErrorPolicy.tolerate(2, pause=0.01)

    def poll(self, ctx: TaskContext) -> Ready | Pending:
        ctx.store.add("polls")
        if ctx.store.get("polls") < 3:
            return Pending(0.02)
        numbers = random.Random(7)
        ctx.store.put("readings", [f"{numbers.uniform(-5, 30):.1f}" for _ in range(40)] + ["broken", ""])
        return Ready(S.SETTLE)


class Settle(TimerTask):
    """Lets the readings settle."""

    def wait(self) -> float:
        return 0.05

    def after_wait(self) -> S:
        return S.PICK


class Pick(RouterTask):
    """Decides whether there is anything to do."""

    def route(self, ctx: TaskContext) -> S:
        return S.PARSE if ctx.store.get("readings") else S.NOTHING


class Parse(BatchTask):
    """Parses the readings, two at a time, each with a second try."""

    concurrency = 2
    item_retry = Retry.fixed(1, 0.0)

    def load(self, ctx: TaskContext) -> list[str]:
        return list(ctx.store.get("readings"))

    def process_item(self, ctx: TaskContext, item: str) -> float:
        return float(item)

    def finish(self, ctx: TaskContext, results: list[ItemResult]) -> S:
        ctx.store.put("values", [result.value for result in results if result.error is None])
        ctx.store.put("refused", [result.index for result in results if result.error is not None])
        return S.COMPARE


class Compare(Node):
    """Reads, computes, writes: three phases, the middle one without the store."""

    def prep(self, ctx: TaskContext) -> list[float]:
        return list(ctx.store.get("values"))

    def exec(self, value: list[float]) -> tuple[float, float]:
        return min(value), max(value)

    def post(self, ctx: TaskContext, result: tuple[float, float]) -> S:
        ctx.store.put("range", result)
        return S.PAGES


class Pages(SteppedTask):
    """Ten values a page; each page is committed before the next begins."""

    def step(self, ctx: TaskContext, cursor: int | None) -> More | Done:
        start = cursor or 0
        values = ctx.store.get("values")[start : start + 10]
        ctx.store.append("pages", round(sum(values) / len(values), 2))
        return More(start + 10) if start + 10 < len(ctx.store.get("values")) else Done(S.FEED)


class Feed(StreamTask):
    """Hands the values on in windows of sixteen, or every second if there are fewer."""

    window = Count(16) | Duration(1.0)
    on_item_error = ErrorPolicy.skip()

    def open(self, ctx: TaskContext, cursor: int | None) -> Iterator[tuple[int, float]]:
        values = ctx.store.get("values")
        return iter(list(enumerate(values))[cursor or 0 :])

    def process_item(self, ctx: TaskContext, item: tuple[int, float]) -> tuple[float, int]:
        index, value = item
        if value < 0:
            raise ValueError(f"frost: {value}")
        return value * 1.8 + 32, index + 1

    def flush_window(self, ctx: TaskContext, outputs: list[float]) -> None:
        ctx.store.append("windows", len(outputs))

    def on_close(self, ctx: TaskContext, reason: CloseReason) -> S:
        return S.PUBLISH


class Publish(CompensatableTask):
    """Would be taken back if the run failed later."""

    def run(self, ctx: TaskContext) -> tuple[S, str]:
        return S.DONE, f"bulletin-{ctx.run_id}"

    def compensate(self, ctx: TaskContext, output: Any) -> None:
        print(f"taking back {output}")


workflow = (
    Workflow("weather")
    .register(S.WAIT, WaitForReadings())
    .register(S.SETTLE, Settle())
    .register_router(S.PICK, Pick())
    .register(S.PARSE, Parse())
    .register(S.COMPARE, Compare())
    .register_stepped(S.PAGES, Pages())
    .register_stream(S.FEED, Feed())
    .register_with_compensation(S.PUBLISH, Publish())
    .add_exit_states([S.DONE, S.NOTHING])
)

began = time.monotonic()
run = workflow.start(S.WAIT)
final = run.wait()
store = run.store
print("path:", " ".join(state.name for state in run.report().path))
print("polls:", store.get("polls"), "- refused readings:", store.get("refused"), "- range:", store.get("range"))
print("pages:", store.get("pages"))
print("windows:", store.get("windows"), "- skipped:", len(store.get("dead_letters")), "with frost")
print(f"{final.name} after {len(run.report().states)} states")
