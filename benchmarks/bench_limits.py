"""Limits: what a breaker, a limiter and a semaphore cost a call, by themselves, attached to a task, and in a worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

from benchmarks import _work
from benchmarks._peers import library
from benchmarks._row import OURS, Figure, Kind, Measure, Options, Row, Sample, Side

#: A rate that no call has to wait for.
PLENTY = 1e9


class State(Enum):
    """The states of the workflow."""

    AGAIN = auto()
    SPLIT = auto()
    DONE = auto()


def calls(options: Options) -> int:
    """Return how many calls a repeat makes."""
    return 2_000 if options.quick else 10_000


def each(count: int, call: Callable[[], Any]) -> float:
    """Return the microseconds that one of so many calls takes."""
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count * 1e6


def nothing_branch(_ctx: object, _item: int) -> None:
    """Do nothing with an item of a map."""


@contextmanager
def canobatch_side(options: Options) -> Iterator[Measure]:
    """By hand in the parent; attached to a self-looping state and to a split; by hand in a worker."""
    from canobatch import (
        CircuitBreaker,
        JoinConfig,
        JoinStrategy,
        RateLimiter,
        Semaphore,
        TaskConfig,
        WorkerPool,
        Workflow,
    )

    count = calls(options)
    breaker, limiter, places = CircuitBreaker(), RateLimiter(PLENTY), Semaphore(1)
    gate = TaskConfig(circuit_breaker=breaker, rate_limiter=limiter)
    left = 0

    def again() -> State:
        nonlocal left
        left -= 1
        return State.AGAIN if left else State.DONE

    def loop(config: TaskConfig) -> Workflow:
        return Workflow("loop").register(State.AGAIN, again, config=config).add_exit_state(State.DONE)

    def split(config: TaskConfig) -> Workflow:
        join = JoinConfig(JoinStrategy.all(), State.DONE)
        workflow = Workflow("split").register_map(State.SPLIT, nothing_branch, range(count), join, config=config)
        return workflow.add_exit_state(State.DONE)

    def by_hand(_ctx: object, _item: int) -> float:
        return each(count, lambda: places.acquire().release())

    worker = Workflow("worker").register_map(
        State.SPLIT, by_hand, [0], JoinConfig(JoinStrategy.all(), State.DONE, into="v")
    )
    worker.add_exit_state(State.DONE)
    loops, splits = (loop(TaskConfig()), loop(gate)), (split(TaskConfig()), split(gate))
    with WorkerPool(options.workers) as pool:
        pool.warm_up()

        def run(workflow: Workflow, state: State) -> float:
            nonlocal left
            left = count
            started = time.perf_counter()
            workflow.orchestrate(state, pool=pool)
            return (time.perf_counter() - started) / count * 1e6

        def measure() -> Sample:
            sample = {
                "breaker": each(count, lambda: breaker.acquire().succeed()),
                "limiter": each(count, limiter.try_acquire),
            }
            bare, gated = (run(workflow, State.AGAIN) for workflow in loops)
            sample["attached"] = gated - bare
            sample["branch"] = run(splits[1], State.SPLIT)
            again_in_worker = worker.start(State.SPLIT, pool=pool)
            again_in_worker.wait()
            sample["worker"] = again_in_worker.store.get("v")[0]
            return sample

        yield measure


@contextmanager
def lock_side(options: Options) -> Iterator[Measure]:
    """A lock around a number."""
    count = calls(options)
    lock, taken = threading.Lock(), 0

    def take() -> None:
        nonlocal taken
        with lock:
            taken += 1

    yield lambda: {"breaker": each(count, take) * 2, "limiter": each(count, take)}


@contextmanager
def pybreaker_side(options: Options) -> Iterator[Measure]:
    """pybreaker: a call of a function that does nothing."""
    count = calls(options)
    breaker = library("pybreaker").CircuitBreaker()
    yield lambda: {"breaker": each(count, lambda: breaker.call(_work.nothing_at_all))}


@contextmanager
def limits_side(options: Options) -> Iterator[Measure]:
    """limits: a hit of a fixed window in memory."""
    count = calls(options)
    limits = library("limits")
    limiter = limits.strategies.FixedWindowRateLimiter(limits.storage.MemoryStorage())
    plenty = limits.RateLimitItemPerHour(int(PLENTY))
    yield lambda: {"limiter": each(count, lambda: limiter.hit(plenty))}


ROW = Row(
    name="limits",
    title="circuit breaker, rate limiter and semaphore, per call",
    figures=(
        Figure("breaker", "a call through a closed breaker, by hand in the parent", "µs"),
        Figure("limiter", "a call that a token bucket lets through, by hand in the parent", "µs"),
        Figure("attached", "a transition with both attached, less one without", "µs"),
        Figure("branch", "a no-op branch of a split with both attached", "µs"),
        Figure("worker", "taking and giving back a place of a semaphore, in a worker", "µs"),
    ),
    sides=(
        Side(OURS, canobatch_side, Kind.OURS),
        Side("a lock around a number", lock_side, Kind.BOUND),
        Side("pybreaker", pybreaker_side, needs="pybreaker"),
        Side("limits", limits_side, needs="limits"),
    ),
    rounds=11,
    quick_rounds=3,
    remark=(
        "A gated branch is sent when a worker could begin it, not earlier, so that what it was let through with is "
        "not held while it waits; that costs it a round trip."
    ),
)
