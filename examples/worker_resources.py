"""A costly object that each worker makes once, and keeps for all tasks and runs of the workflow.

A table of primes stands for what takes long to load and cannot be sent: a model, an index, a connection. It is
set up by the first task that asks for it in a worker, and torn down when the worker ends.
"""

import os
import time
from bisect import bisect_right
from enum import Enum, auto

from canobatch import Counter, JoinConfig, JoinStrategy, Resource, Resources, TaskContext, WorkerPool, Workflow

LIMIT = 300_000


class S(Enum):
    """The states: one split and its end."""

    COUNT = auto()
    DONE = auto()


class Primes(Resource):
    """All primes below a limit."""

    scope = "worker"

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def setup(self) -> None:
        """Sieve; what is made here stays in its worker."""
        started = time.perf_counter()
        is_prime = bytearray([1]) * self.limit
        is_prime[:2] = b"\0\0"
        for n in range(2, int(self.limit**0.5) + 1):
            if is_prime[n]:
                is_prime[n * n :: n] = bytes(len(range(n * n, self.limit, n)))
        self.table = [n for n in range(self.limit) if is_prime[n]]
        self.seconds = time.perf_counter() - started

    def teardown(self) -> None:
        """Give it back."""
        self.table.clear()

    def up_to(self, n: int) -> int:
        """Return how many primes there are up to ``n``."""
        return bisect_right(self.table, n)


def count(ctx: TaskContext, n: int) -> tuple[int, int, float]:
    """Look up one number in this worker's table."""
    primes = ctx.resource("primes", Primes)
    ctx.resource("lookups", Counter).add()
    return os.getpid(), primes.up_to(n), primes.seconds


lookups = Counter()
workflow = (
    Workflow("primes", resources=Resources({"primes": Primes(LIMIT), "lookups": lookups}))
    .register_map(S.COUNT, count, range(10_000, LIMIT, 10_000), JoinConfig(JoinStrategy.all(), S.DONE, into="counts"))
    .add_exit_state(S.DONE)
)
seconds: dict[tuple[int, float], None] = {}
with WorkerPool(2) as pool:
    pool.warm_up()
    for _ in range(3):
        run = workflow.start(S.COUNT, pool=pool)
        run.wait()
        counts = run.store.get("counts")
        seconds.update({(pid, took): None for pid, _, took in counts})
for pid, took in seconds:
    print(f"worker {pid} made its table in {took * 1000:.0f} ms")
print(f"primes up to 10000: {counts[0][1]}, up to 290000: {counts[-1][1]}")
workers = {pid for pid, _ in seconds}
print(f"{lookups.value:g} lookups in 3 runs; tables made by each worker: {len(seconds) / len(workers):g}")
