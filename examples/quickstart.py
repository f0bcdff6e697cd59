"""The smallest whole workflow: one task, one split over worker processes, one report."""
# The shortest possible script, so without type hints and with one-line states.
# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: E702, F401, I001

from enum import Enum, auto
from dataclasses import dataclass
from canobatch import Workflow, Task, TaskConfig, Retry, JoinConfig, JoinStrategy, SharedStore, WorkerPool

class S(Enum):
    START = auto(); COUNT = auto(); REPORT = auto(); DONE = auto()

def load(ctx):                                  # a plain function is a task; it may take no argument at all
    ctx.store.put("texts", ["a b", "a c", "b b"])
    return S.COUNT

@dataclass
class Count(Task):                              # a class is a task; dataclasses give parameters for free
    index: int
    config = TaskConfig(retry=Retry.exponential(3), attempt_timeout=30.0)
    def run(self, ctx):
        return len(ctx.store.get("texts")[self.index].split())

def report(ctx):
    print(sum(ctx.store.get("counts")))
    return S.DONE

workflow = (
    Workflow("words")
    .register(S.START, load)
    .register_split(S.COUNT, [Count(0), Count(1), Count(2)],
                    JoinConfig(JoinStrategy.all(), S.REPORT, into="counts"))
    .register(S.REPORT, report)
    .add_exit_state(S.DONE)
)
final = workflow.orchestrate(S.START)           # S.DONE
print(f"final: {final.name}")
