"""All six join strategies on the same four branches: what was kept, what was killed, and when.

The branches take 50, 150, 300 and 1200 ms. Each says in the store that it ran to its end; what a killed
branch wanted to say is never seen.
"""

import time
from dataclasses import dataclass
from enum import Enum, auto

from canobatch import JoinConfig, JoinStrategy, Task, TaskContext, WorkerPool, Workflow


class S(Enum):
    """The states: one split and its end."""

    SPLIT = auto()
    DONE = auto()


@dataclass(frozen=True)
class Wait(Task):
    """A branch that takes some time."""

    name: str
    seconds: float

    def run(self, ctx: TaskContext) -> str:
        ctx.store.append("begun", self.name)
        time.sleep(self.seconds)
        return self.name


BRANCHES = [Wait("hare", 0.05), Wait("fox", 0.15), Wait("mule", 0.3), Wait("snail", 1.2)]
JOINS = [
    JoinConfig(JoinStrategy.all(), S.DONE),
    JoinConfig(JoinStrategy.any(), S.DONE),
    JoinConfig(JoinStrategy.quorum(2), S.DONE),
    JoinConfig(JoinStrategy.percentage(0.75), S.DONE),
    JoinConfig(JoinStrategy.partial_results(3), S.DONE),
    JoinConfig(JoinStrategy.partial_timeout(), S.DONE, timeout=0.8),
]


def compare(join: JoinConfig, pool: WorkerPool) -> tuple[int, int]:
    """Run the branches under one strategy, print what became of them, and return the counts."""
    workflow = Workflow(str(join.strategy)).register_split(S.SPLIT, BRANCHES, join).add_exit_state(S.DONE)
    run = workflow.start(S.SPLIT, pool=pool)
    run.wait()
    report = run.report()
    result = report.splits[S.SPLIT]
    print(f"{join.strategy} joined after {report.duration * 1000:.0f} ms; in the store: {run.store.get('begun')}")
    for task, branch in zip(BRANCHES, result, strict=True):
        verb = "kept  " if branch.status == "succeeded" else "killed"
        print(f"    {verb} {task.name:5} after {(branch.duration or 0) * 1000:4.0f} ms")
    return len(result.successes), len(result.cancelled)


with WorkerPool(4, spares=3) as pool:
    pool.warm_up()
    kept, killed = zip(*(compare(join, pool) for join in JOINS), strict=True)
print(f"{len(JOINS)} strategies joined: {sum(kept)} branches kept, {sum(killed)} killed")
