"""Calls to a service that allows only so many: so many per second, so many words an hour, so many at a time.

The limits are asked in the parent, before a branch is sent: who waits occupies no worker and uses no attempt.
What the service itself refuses, it refuses with a time to wait, and the next attempt keeps to that.
"""

import time
from enum import Enum, auto

from canobatch import (
    Counter,
    JoinConfig,
    JoinStrategy,
    MultiRateLimiter,
    RateLimiter,
    Resources,
    Retry,
    Semaphore,
    TaskConfig,
    TaskContext,
    WindowedRateLimiter,
    WorkerPool,
    Workflow,
)
from canobatch.errors import RateLimitedError


class S(Enum):
    """The states: one split and its end."""

    CALL = auto()
    DONE = auto()


#: No worker holds these: they live here, and are asked here.
calls = RateLimiter(4, per=0.1, burst=4)
hourly = WindowedRateLimiter(1000, window=3600.0)
connections = Semaphore(2)
#: These are asked from the workers.
words = MultiRateLimiter({"words": WindowedRateLimiter(10_000, window=3600.0), "bytes": RateLimiter(50_000)})
resources = Resources({"words": words, "answered": Counter()})


def call(ctx: TaskContext, text: str) -> int:
    """Make one call and return its attempt; the service refuses every tenth at first."""
    words = ctx.resource("words", MultiRateLimiter)
    words.acquire({"words": len(text.split()), "bytes": len(text)}, timeout=60.0)
    if ctx.attempt == 1 and (ctx.branch or 0) % 10 == 9:
        raise RateLimitedError("the service answered 429", retry_after=0.1)
    ctx.resource("answered", Counter).add()
    return ctx.attempt


limits = MultiRateLimiter({"per second": calls, "per hour": hourly})
workflow = (
    Workflow("rate limited", resources=resources)
    .register_map(
        S.CALL,
        call,
        [f"request number {n}" for n in range(30)],
        JoinConfig(JoinStrategy.all(), S.DONE, bulkhead=connections, into="answers"),
        config=TaskConfig(rate_limiter=limits, retry=Retry.fixed(2, 0.0)),
    )
    .add_exit_state(S.DONE)
)
with WorkerPool(2) as pool:
    pool.warm_up()
    started = time.monotonic()
    run = workflow.start(S.CALL, pool=pool)
    run.wait()
    took = time.monotonic() - started
attempts = run.store.get("answers")
again = attempts.count(2)
print(f"left for this hour: {hourly.remaining:g} calls, {words.available['words']:g} words; free: {connections.free}")
print(f"{resources['answered'].value:g} answers by {sum(attempts)} calls in {took:.2f} s, {again} of them made again")
