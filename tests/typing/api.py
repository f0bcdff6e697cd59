"""The public names as a type checker sees them. Never run: mypy reads it, and an unneeded ignore is an error there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from typing import Any, assert_type

import canobatch
from canobatch import (
    BranchResult,
    BranchStatus,
    CancelToken,
    CircuitBreaker,
    Counter,
    JoinConfig,
    JoinError,
    JoinStrategy,
    MemoryStore,
    MultiRateLimiter,
    RateLimiter,
    Resource,
    Resources,
    Retry,
    Run,
    RunReport,
    Semaphore,
    SharedStore,
    SplitResult,
    Task,
    TaskConfig,
    TaskContext,
    TaskError,
    WindowedRateLimiter,
    WorkerInfo,
    WorkerPool,
    Workflow,
)
from canobatch.errors import CompensationError, RetryExhaustedError, WorkerLostError
from canobatch.models import (
    BatchTask,
    CloseReason,
    CompensatableTask,
    Done,
    Duration,
    ErrorPolicy,
    ItemResult,
    More,
    Pending,
    PollTask,
    Ready,
    SteppedTask,
    StreamTask,
    Window,
)


class State(Enum):
    """The states of a small workflow."""

    LOAD = auto()
    COUNT = auto()
    DONE = auto()


def load(ctx: TaskContext) -> State:
    """Take part as a single task."""
    ctx.store.put("texts", ["a b", "c"])
    ctx.store["more"] = 1
    ctx.store.append("log", "loaded")
    ctx.store.add("loads")
    ctx.store.update("best", lambda best: max(best, 3), default=0)
    assert_type(ctx.store.keys(), list[str])
    assert_type(ctx.store.contains("texts"), bool)
    assert_type("texts" in ctx.store, bool)
    assert_type(ctx.run_id, str)
    assert_type(ctx.branch, int | None)
    assert_type(ctx.attempt, int)
    assert_type(ctx.deadline, float | None)
    assert_type(ctx.cancelled, bool)
    ctx.progress(1, 2, "half")
    ctx.logger.info("loaded")
    return State.COUNT


@dataclass
class Count(Task):
    """Take part as a branch."""

    index: int
    config = TaskConfig(retry=Retry.exponential(3), attempt_timeout=30.0, retry_on=(OSError,))

    def run(self, ctx: TaskContext) -> int:
        """Count the words of one text."""
        return len(ctx.store.get("texts", expect=list)[self.index].split())


def take(ctx: TaskContext, item: str) -> int:
    """Take part as the function of a map."""
    return len(item)


class Model(Resource):
    """A worker's resource."""

    scope = "worker"

    def setup(self) -> None:
        """Load it."""
        self.weights = [1.0]


def limit(ctx: TaskContext) -> State:
    """Use resources and limits by hand."""
    assert_type(ctx.resource("model", Model), Model)
    assert_type(ctx.resource("model").anything, Any)
    assert_type(ctx.resources.find("hits", Counter).add(), float)
    with ctx.resource("places", Semaphore).acquire(timeout=timedelta(seconds=1)) as permit:
        permit.release()
    with ctx.resource("guard", CircuitBreaker).acquire():
        ctx.resource("calls", MultiRateLimiter).acquire({"bytes": 100}, timeout=5.0)
    assert_type(ctx.resource("rate", RateLimiter).try_acquire(2), bool)
    assert_type(ctx.resource("rate", RateLimiter).time_until(), float)
    return State.DONE


def equip() -> Workflow:
    """Give a workflow resources, and its tasks limits."""
    tiers = MultiRateLimiter({"calls": RateLimiter(10, per=1.0, burst=5), "bytes": WindowedRateLimiter(1e6, 60.0)})
    config = TaskConfig(circuit_breaker=CircuitBreaker(3, timedelta(minutes=1)), rate_limiter=tiers)
    resources = Resources({"model": Model()}).insert("hits", Counter())
    JoinConfig(JoinStrategy.all(), State.DONE, bulkhead=Semaphore(2))
    TaskConfig(rate_limiter=Semaphore(1))  # type: ignore[arg-type]
    return Workflow("limits", resources=resources).register(State.LOAD, limit, config=config)


def define() -> Workflow:
    """Define by chaining, by statements and by decorators."""
    join = JoinConfig(JoinStrategy.percentage(0.75), State.DONE, timeout=60.0, into="counts", on_failure=State.DONE)
    workflow = (
        Workflow("words", store=SharedStore(), total_timeout=timedelta(minutes=5))
        .register(State.LOAD, load, on_error=State.DONE)
        .register_split(State.COUNT, [Count(0), Count(1)], join)
        .add_exit_state(State.DONE)
    )
    assert_type(workflow, Workflow)
    assert_type(workflow.register_map("map", take, "texts", join, replace=True), Workflow)

    @workflow.task("decorated")
    def decorated(ctx: TaskContext) -> State:
        return State.DONE

    assert_type(decorated(TaskContext.__new__(TaskContext)), State)
    assert_type(workflow.graph(), str)
    workflow.validate()
    workflow.validate_initial_state(State.LOAD)
    workflow.regsiter(State.LOAD, load)  # type: ignore[attr-defined]
    return workflow


def run(workflow: Workflow) -> None:
    """Run at once, in the background, and on a pool of one's own."""
    token = CancelToken()
    with WorkerPool(2, spares="auto") as pool:
        assert_type(pool, WorkerPool)
        assert_type(pool.workers, tuple[WorkerInfo, ...])
        workflow.orchestrate(State.LOAD, pool=pool, cancel=token, params={"n": 1})
        run = workflow.start(State.LOAD, pool=pool, run_id="mine")
    assert_type(run, Run)
    assert_type(run.id, str)
    run.wait(timeout=1.0)
    run.cancel("enough")
    report = run.report()
    assert_type(report, RunReport)
    assert_type(report.splits, dict[Any, SplitResult])
    assert_type(report.to_dict(), dict[str, Any])
    workflow.orchestrate(State.LOAD, pol=pool)  # type: ignore[call-arg]


def read(result: SplitResult) -> None:
    """Read what a split came to."""
    branches: Sequence[BranchResult] = result
    assert_type(result[0], BranchResult)
    assert_type(result[0].status, BranchStatus)
    assert_type(result.successes, tuple[BranchResult, ...])
    assert_type(len(branches), int)


class Poll(PollTask):
    """Asks twice."""

    on_poll_error = ErrorPolicy.tolerate(3, pause=0.5)

    def poll(self, ctx: TaskContext) -> Ready | Pending:
        """Take part as a poll."""
        return Ready(State.DONE) if ctx.attempt > 1 else Pending(timedelta(seconds=1))


@dataclass
class Squares(BatchTask):
    """Squares numbers."""

    size: int
    concurrency: int = 4
    item_retry: Retry = field(default_factory=Retry.none)

    def load(self) -> range:
        """Give the items."""
        return range(self.size)

    def process_item(self, ctx: TaskContext, item: int) -> int:
        """Take one."""
        return item * item

    def finish(self, ctx: TaskContext, results: list[ItemResult]) -> State:
        """Look at all."""
        assert_type(results[0].index, int)
        assert_type(results[0].error, BaseException | None)
        return State.DONE


class Steps(SteppedTask):
    """Two steps."""

    def step(self, ctx: TaskContext, cursor: int | None) -> More | Done:
        """Take one."""
        return More(1) if cursor is None else Done(State.DONE)


class Feed(StreamTask):
    """A short stream."""

    window: Window = Duration(timedelta(seconds=1))
    on_item_error = ErrorPolicy.skip()

    def open(self, ctx: TaskContext, cursor: int | None) -> Iterator[int]:
        """Give the items."""
        return iter(range(cursor or 0, 100))

    def process_item(self, ctx: TaskContext, item: int) -> tuple[str, int]:
        """Take one."""
        return str(item), item

    def flush_window(self, ctx: TaskContext, outputs: list[str]) -> State | None:
        """Hand on."""
        return State.DONE if len(outputs) > 5 else None

    def on_close(self, ctx: TaskContext, reason: CloseReason) -> State:
        """End."""
        assert_type(reason == "exhausted", bool)
        return State.DONE


class Reserve(CompensatableTask):
    """Can be undone."""

    compensates_in_doubt = True

    def run(self, ctx: TaskContext) -> tuple[State, str]:
        """Do."""
        return State.DONE, ctx.run_id

    def compensate(self, ctx: TaskContext, output: str | None) -> None:
        """Undo."""


def define_models() -> Workflow:
    """Register each by the method made for it."""
    workflow = (
        Workflow("models", compensation_timeout=timedelta(seconds=30))
        .register("poll", Poll(), on_error=State.DONE)
        .register("batch", Squares(3))
        .register_stepped("steps", Steps())
        .register_stream("feed", Feed())
        .register_with_compensation("reserve", Reserve())
    )
    workflow.register_stepped("feed", Feed())  # type: ignore[arg-type]
    workflow.register_stream("poll", Poll())  # type: ignore[arg-type]
    return workflow


def catch(error: Exception) -> None:
    """Read the facts of errors, and catch them as builtins."""
    if isinstance(error, WorkerLostError):
        assert_type(error.signal, int | None)
    if isinstance(error, RetryExhaustedError):
        assert_type(error.attempts, int)
        task_error: TaskError = error
        assert_type(task_error.branch, int | None)
    if isinstance(error, CompensationError):
        assert_type(error.errors, tuple[BaseException, ...])
        assert_type(error.original, BaseException | None)
    if isinstance(error, JoinError):
        assert_type(str(error), str)
    lookup: KeyError = canobatch.errors.StoreKeyError("no such key")
    assert_type(lookup, KeyError)


MemoryStore().put("key", 1)
print(canobatch.Tsak)  # type: ignore[attr-defined]
Retry.fixed(1, "soon")  # type: ignore[arg-type]
JoinStrategy.quorum("two")  # type: ignore[arg-type]
