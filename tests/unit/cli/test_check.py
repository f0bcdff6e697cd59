"""What `check` finds, all of it at once."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field

import pytest

from canobatch import JoinConfig, JoinStrategy, Task, Workflow
from canobatch.cli.pickling import does_not_return, problem_of
from canobatch.cli.reach import unreachable

BAD = """
import threading
from dataclasses import dataclass, field
from canobatch import JoinConfig, JoinStrategy, Task, Workflow

@dataclass
class Settings:
    on: list = field(default_factory=lambda: [1, threading.Lock()])

@dataclass
class Count(Task):
    index: int
    settings: Settings = field(default_factory=Settings)
    def run(self, ctx):
        return 1

def begin(ctx):
    return "count" if ctx.params else "done"

bad = (
    Workflow("bad")
    .register("begin", begin)
    .register_split("count", [Count(0), Count(1)], JoinConfig(JoinStrategy.quorum(3), "nowhere"))
    .register("island", lambda: "done")
    .add_exit_state("done")
)
also = Workflow("also bad").register("start", 3).add_exit_state("done")
"""

GOOD = """
from canobatch import Workflow
from canobatch.scheduler import Scheduler
flow = Workflow("good").register("start", lambda: "done").add_exit_state("done")
flows = Scheduler().cron("nightly", flow, "start", "30 1 * * *", "Europe/Paris")
"""


def test_all_problems_of_all_workflows_are_found_at_once(run, workplace):
    """Joins, targets, unreachable states, what does not pickle and where: one list, exit code 3."""
    (workplace / "bad_flow.py").write_text(BAD)
    done = run("check", "bad_flow.py")
    assert done.exit_code == 3
    assert "quorum(3) can never be met by 2 branches" in done.stdout
    assert "join_state 'nowhere' is neither registered nor an exit state" in done.stdout
    assert "state 'island' can never be reached" in done.stdout
    assert "Count.settings.on[1] (lock) does not pickle" in done.stdout
    assert "workflow 'also bad'" in done.stdout
    assert done.stderr == f"bad_flow.py: {len(done.stdout.splitlines())} problems\n"


def test_problems_as_json(run, workplace):
    """--json prints one object with a list of problems."""
    (workplace / "bad_flow.py").write_text(BAD)
    done = run("check", "bad_flow.py:bad", "--json")
    facts = json.loads(done.stdout)
    assert (facts["schema"], facts["ok"], facts["checked"]) == (1, False, ["bad"])
    assert len(facts["problems"]) == 4


def test_a_sound_target_passes(run, workplace):
    """A workflow and a scheduler without problems: exit code 0, and nothing on standard output."""
    (workplace / "good_flow.py").write_text(GOOD)
    done = run("check", "good_flow.py")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no problems (checked: flow, flows)" in done.stderr


def test_a_bad_cron_expression_is_found(run, workplace):
    """A schedule that can never be is a problem of the target, with its line."""
    (workplace / "cron_flow.py").write_text(GOOD.replace("30 1 * * *", "99 1 * * *"))
    done = run("check", "cron_flow.py")
    assert done.exit_code == 3
    assert "99" in done.stdout
    assert "line 5" in done.stdout


def test_a_flow_that_begins_where_it_cannot_is_found(run, workplace):
    """The initial state and the parameters of every flow are tried."""
    (workplace / "start_flow.py").write_text(GOOD.replace('flow, "start"', 'flow, "begin"'))
    done = run("check", "start_flow.py")
    assert done.exit_code == 3
    assert "flow 'nightly'" in done.stdout
    assert "'begin' is neither registered nor an exit state" in done.stdout


def test_a_target_that_cannot_be_loaded_is_a_problem_too(run, workplace):
    """An import that fails is reported like any other problem."""
    (workplace / "import_flow.py").write_text("import nothing_like_it\n")
    done = run("check", "import_flow.py", "--json")
    assert done.exit_code == 3
    assert "nothing_like_it" in json.loads(done.stdout)["problems"][0]


def test_a_state_in_which_runs_begin_is_reached(run, workplace):
    """--initial says where runs begin besides."""
    (workplace / "two_starts.py").write_text(
        GOOD.replace('.add_exit_state("done")', '.register("again", lambda: "done").add_exit_state("done")', 1)
    )
    assert run("check", "two_starts.py").exit_code == 3
    assert run("check", "two_starts.py", "--initial", "start", "--initial", "again").exit_code == 0


RESOURCES = """
from enum import Enum
from canobatch import JoinConfig, JoinStrategy, Resource, Task, TaskConfig, Workflow
from canobatch.models import Node

class Key(Enum):
    DB = 1

class Model(Resource):
    scope = "worker"

class Count(Task):
    def run(self, ctx):
        return [ctx.resources[key] for key in ("model",)] + [ctx.resource(Key.DB)]

class Fine(Task):
    config = TaskConfig(where="parent")
    def run(self, ctx):
        return ctx.resource(Key.DB).next

class Load(Node):
    def prep(self, ctx):
        return ctx.resource(key="files")
    def exec(self, value):
        return value
    def post(self, ctx, result):
        return "count"

one = lambda ctx, item: ctx.resources["files"]

flow = (
    Workflow("flow", resources={Key.DB: Resource(), "files": Resource(), "model": Model()})
    .register("load", Load())
    .register_split("count", [Count(), Count(), lambda ctx: ctx.resource("model")],
                    JoinConfig(JoinStrategy.all(), "map"))
    .register_map("map", one, [1], JoinConfig(JoinStrategy.all(), "fine"))
    .register("fine", Fine())
    .add_exit_state("done")
)
"""


def test_what_lives_in_the_launcher_and_is_asked_for_in_a_worker_is_found(run, workplace):
    """A run-scoped resource in the code of a branch, a map or a phase; not in a task that stays in the launcher."""
    (workplace / "resource_flow.py").write_text(RESOURCES)
    done = run("check", "resource_flow.py")
    found = [line for line in done.stdout.splitlines() if "lives in the launcher" in line]
    assert [line.split(", which")[0] for line in found] == [
        "workflow 'flow': state 'load': Load runs in a worker, but asks for resource 'files'",
        "workflow 'flow': state 'count': Count runs in a worker, but asks for resource <Key.DB: 1>",
        "workflow 'flow': state 'map': <lambda> runs in a worker, but asks for resource 'files'",
    ]
    assert done.exit_code == 3


def test_a_resource_that_does_not_reach_workers_is_found(run, workplace):
    """One of scope "worker" that does not pickle is named."""
    (workplace / "locked_flow.py").write_text(
        RESOURCES + "import threading\nmodel = Model()\nmodel.lock = threading.Lock()\n"
        'flow = Workflow("flow", resources={"model": model}).register("s", lambda: "e").add_exit_state("e")\n'
    )
    done = run("check", "locked_flow.py")
    assert "workflow 'flow': resource 'model' cannot be sent to a worker" in done.stdout
    assert done.exit_code == 3


# -- paths


@dataclass
class Retry:
    on: list = field(default_factory=list)


@dataclass
class Config:
    retry: Retry = field(default_factory=Retry)


@dataclass
class Count(Task):
    config: Config = field(default_factory=Config)


class Slotted:
    __slots__ = ("held", "unset")

    def __init__(self, held):
        self.held = held


LOCK = threading.Lock()


def enclosing():
    held = {"k": (1, LOCK)}
    return lambda ctx: held


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Count(Config(Retry([LOCK]))), "Count.config.retry.on[0] (lock)"),
        ({"a": {1: LOCK}}, "Count['a'][1] (lock)"),
        (Slotted([0, LOCK]), "Count.held[1] (lock)"),
        (enclosing(), "Count encloses held['k'][1] (lock)"),
        (lambda ctx, held=LOCK: held, "Count(held=...) (lock)"),
        (LOCK, "Count (lock)"),
    ],
)
def test_the_path_leads_to_what_does_not_pickle(value, path):
    """The innermost thing at fault is named by attributes, indexes, keys and enclosed names."""
    assert problem_of(value, "Count").startswith(f"{path} does not pickle: TypeError")


def test_what_pickles_has_no_problem():
    """A cycle is no problem, and neither is a function of this module."""
    cycle = []
    cycle.append(cycle)
    assert problem_of(cycle, "x") is None
    assert problem_of(enclosing, "x") is None


class Unequal:
    pass


def test_a_state_must_be_equal_to_what_comes_back():
    """A state of a class without __eq__ would be another one in every worker."""
    assert "is not equal" in does_not_return(Unequal())
    assert does_not_return("state") is None


# -- unreachable states


def to_b(ctx):
    if ctx.attempt > 1:
        return "b"
    return "c" if ctx.params else "b"


def anywhere(ctx):
    return ctx.store.get("next")


class ToC(Task):
    def run(self, ctx):
        def inner():
            return "d"

        inner()
        return "c"


def flow(**states):
    workflow = Workflow("w")
    for name, task in states.items():
        workflow.register(name, task)
    return workflow.add_exit_state("end")


@pytest.mark.parametrize(
    ("states", "left"),
    [
        ({"a": to_b, "b": lambda: "end", "c": lambda: "end", "d": lambda: "end"}, ["d"]),
        ({"a": ToC(), "c": lambda: "end", "d": lambda: "end"}, ["d"]),
        ({"a": anywhere, "b": lambda: "end"}, []),
        ({"a": lambda: "a"}, ["end"]),
    ],
)
def test_states_are_called_unreachable_where_the_code_leaves_no_doubt(states, left):
    """What is returned is read off the code; where it depends on the run, nothing is said."""
    assert unreachable(flow(**states).definition, ["a"]) == left


def test_joins_and_errors_lead_somewhere():
    """The targets of a join and of on_error are transitions."""
    join = JoinConfig(JoinStrategy.all(), "b", on_failure="c", on_timeout="d")
    workflow = flow(b=lambda: "end", c=lambda: "end", d=lambda: "end", e=lambda: "end")
    workflow.register_split("a", [lambda: 1], join)
    workflow.register("x", lambda: "end", on_error="e")
    assert unreachable(workflow.definition, ["a"]) == ["e", "x"]
    assert unreachable(workflow.definition, ["a", "x"]) == []
