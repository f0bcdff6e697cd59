"""Consume a queue: pull a batch, fan out over what was pulled, go on until the queue is empty.

How wide the split is, is known only when its state is entered: it maps over a key of the store.
"""

from enum import Enum, auto

from canobatch import JoinConfig, JoinStrategy, SharedStore, TaskContext, Workflow

BATCH_SIZE = 7


class S(Enum):
    """The states: a loop and its end."""

    PULL = auto()
    PROCESS = auto()
    EMPTY = auto()


def pull(ctx: TaskContext) -> S:
    """Move the next items from the queue to the batch."""
    queue = ctx.store.get("queue")
    if not queue:
        return S.EMPTY
    ctx.store.put("batch", queue[:BATCH_SIZE])
    ctx.store.put("queue", queue[BATCH_SIZE:])
    ctx.store.add("batches")
    return S.PROCESS


def process(ctx: TaskContext, number: int) -> None:
    """Handle one item, in a worker; the results are in the order of the queue, whoever is done first."""
    ctx.store.append("results", sum(n * n for n in range(number)))


store = SharedStore()
store.put("queue", list(range(100, 125)))
workflow = (
    Workflow("queue consumer", store=store)
    .register(S.PULL, pull)
    .register_map(S.PROCESS, process, "batch", JoinConfig(JoinStrategy.all(), S.PULL))
    .add_exit_state(S.EMPTY)
)
workflow.orchestrate(S.PULL)
print(f"first and last result: {store.get('results')[0]}, {store.get('results')[-1]}")
print(f"consumed {len(store.get('results'))} items in {store.get('batches')} batches")
