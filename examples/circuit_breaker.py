"""A circuit breaker around a service that breaks down: after some failures it is left in peace, until it is well again.

The breaker is attached to the task, so it is asked before an attempt is made. While it is open the state's
`on_error` answers from a cache; when its time is over, one trial call finds out whether the service is back.
"""

import time
from enum import Enum, auto

from canobatch import CircuitBreaker, Retry, TaskConfig, TaskContext, Workflow


class S(Enum):
    """The states: one request after the other, until the service has come back."""

    ASK = auto()
    ANSWER = auto()
    ANSWER_FROM_CACHE = auto()
    DONE = auto()


class PriceService:
    """A service that is out of order for a while, and after that needs some rest."""

    def __init__(self) -> None:
        self.calls = 0
        self.failures = 0
        self.last_failure = 0.0

    def price(self) -> float:
        """Return the price, or fail."""
        self.calls += 1
        if 3 <= self.calls <= 7:
            self.failures += 1
            self.last_failure = time.monotonic()
            raise ConnectionError("the price service does not answer")
        return 20.0 + self.calls / 10


service = PriceService()
breaker = CircuitBreaker(failure_threshold=4, reset_timeout=0.2)


def ask(ctx: TaskContext) -> S:
    """Ask the service; a failed attempt is made once more, as long as the breaker lets it through."""
    ctx.store.put("price", service.price())
    return S.ANSWER


def answer(ctx: TaskContext) -> S:
    """Give the answer of the service; with the first one after the outage the example ends."""
    print(f"from the service: {ctx.store.get('price')} (breaker {breaker.state})")
    return S.DONE if service.failures else S.ASK


def answer_from_cache(ctx: TaskContext) -> S:
    """Give the last price that is known."""
    ctx.store.add("cached")
    print(f"from the cache:   {ctx.store.get('price')} (breaker {breaker.state})")
    time.sleep(0.02)
    return S.ASK


workflow = (
    Workflow("prices")
    .register(
        S.ASK,
        ask,
        on_error=S.ANSWER_FROM_CACHE,
        config=TaskConfig(circuit_breaker=breaker, retry=Retry.fixed(1, 0.0)),
    )
    .register(S.ANSWER, answer)
    .register(S.ANSWER_FROM_CACHE, answer_from_cache)
    .add_exit_state(S.DONE)
)
run = workflow.start(S.ASK)
run.wait()
print(
    f"{service.calls} calls for {2 + run.store.get('cached') + 1} requests: {service.failures} failed, "
    f"the last one succeeded and left the breaker {breaker.state}"
)
