"""What a script defines in ``__main__`` is the same class, and its values the same members, after any journey."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

DEFINITIONS = '''
import enum, os, sys
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from canobatch import JoinConfig, JoinStrategy, Task, TaskConfig, Workflow, WorkerPool
from canobatch.errors import JoinError

ALL = JoinStrategy.all()

class Color(enum.Enum):
    RED = enum.auto()
    BLUE = "blue"

class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2

class Mode(enum.Flag):
    READ = 1
    WRITE = 2

@dataclass(frozen=True)
class Point:
    x: int
    y: "Any" = 0

    def norm(self):
        return abs(self.x) + abs(self.y)

@dataclass
class Tree:
    value: object
    children: list = field(default_factory=list)

Pair = namedtuple("Pair", "left right")

class Triple(NamedTuple):
    a: int
    b: Color
    c: Point

class Plain:
    class Inner:
        def __eq__(self, other):
            return type(other) is Plain.Inner
        __hash__ = None

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return type(other) is Plain and other.value == self.value

    def __hash__(self):
        return hash(self.value)

class BadInput(ValueError):
    def __init__(self, code, point):
        super().__init__(code, point)
        self.code = code
        self.point = point

def helper(value):
    return value, Color.RED

S = enum.Enum("S", "START SPLIT NEXT LOOK END")
JOIN = JoinConfig(ALL, S.LOOK, into="v")

VALUES = {
    "enum": Color.BLUE,
    "int enum": Level.HIGH,
    "flag": Mode.READ | Mode.WRITE,
    "dataclass": Point(1, 2),
    "tree": Tree(Color.RED, [Tree(Point(0)), Tree({Color.BLUE: [Level.LOW]})]),
    "namedtuple": Pair(Color.RED, Point(3, 4)),
    "typed namedtuple": Triple(1, Color.BLUE, Point(5, Color.RED)),
    "plain": Plain(Color.RED),
    "inner": Plain.Inner(),
    "class": Point,
    "enum class": Color,
    "nested": {Color.RED: [Point(1, 1), (Level.LOW, {"deep": {Point(2, 2)}})], Point(9): Color.BLUE},
    "set": frozenset({Color.RED, Point(1, 2), Level.HIGH}),
}

def same(found, name):
    """The value is equal to the original and of the very same class; members are identical and found in dicts."""
    value = VALUES[name]
    assert found == value, (name, found, value)
    assert value == found
    assert type(found) is type(value), (name, type(found), type(value))
    if isinstance(value, (enum.Enum, type)):
        assert found is value, name
    try:
        table = {value: "found"}
    except TypeError:
        return True
    assert table[found] == "found"
    return True
'''

#: How a value gets from a worker back, or on to another worker.
JOURNEYS = {
    "branch value": """
def make(ctx, name):
    return VALUES[name]

workflow = Workflow("w").register_map(S.START, make, list(VALUES), JOIN)
""",
    "branch value that was not sent before": """
import copy, pickle

def make(ctx, name):
    # Made anew in the worker, where the class came with the function.
    value = copy.deepcopy(VALUES[name])
    return value if name == "inner" else pickle.loads(pickle.dumps(value))

workflow = Workflow("w").register_map(S.START, make, list(VALUES), JOIN)
""",
    "map item": """
def check(ctx, item):
    name, value = item
    return same(value, name) and value

workflow = Workflow("w").register_map(S.START, check, list(VALUES.items()), JOIN)
""",
    "map item of a function that does not know the class": """
workflow = Workflow("w").register_map(S.START, lambda ctx, item: item, list(VALUES.values()), JOIN)
""",
    "store value written by a worker": """
def write(ctx):
    for name, value in VALUES.items():
        ctx.store.put(name, value)
        assert same(ctx.store.get(name), name)
    return S.SPLIT

def collect(ctx):
    ctx.store.put("v", [ctx.store.get(name) for name in VALUES])
    return S.LOOK

workflow = Workflow("w").register(S.START, write, config=TaskConfig(where="worker")).register(S.SPLIT, collect)
""",
    "store value read by a worker that has never seen anything else": """
options = {"max_tasks_per_worker": 1}

def write(ctx):
    for name, value in VALUES.items():
        ctx.store.put(name, value)
    ctx.store.put("names", list(VALUES))
    return S.SPLIT

def read(ctx):
    return [ctx.store.get(name) for name in ctx.store.get("names")]

def unpack(ctx):
    ctx.store.put("v", ctx.store.get("one")[0])
    return S.LOOK

workflow = Workflow("w").register(S.START, write, config=TaskConfig(where="worker"))
workflow.register_split(S.SPLIT, [read], JoinConfig(ALL, S.NEXT, into="one"))
workflow.register(S.NEXT, unpack, config=TaskConfig(where="worker"))
""",
    "appended and updated by workers": """
def append(ctx, name):
    ctx.store.append("all", VALUES[name])
    ctx.store.update("last", lambda old: VALUES[name], default=Color.RED)

def collect(ctx):
    assert same(ctx.store.get("last"), list(VALUES)[-1])
    ctx.store.put("v", ctx.store.get("all"))
    return S.LOOK

workflow = Workflow("w").register_map(S.START, append, list(VALUES), JoinConfig(ALL, S.SPLIT))
workflow.register(S.SPLIT, collect)
""",
    "parameter of a task": """
@dataclass
class Carry(Task):
    name: str
    value: object
    def run(self, ctx):
        assert same(self.value, self.name)
        return self.value

workflow = Workflow("w").register_split(S.START, [Carry(*item) for item in VALUES.items()], JOIN)
""",
    "split result": """
workflow = Workflow("w")
workflow.register_map(S.START, lambda ctx, name: VALUES[name], list(VALUES), JoinConfig(ALL, S.NEXT))

def read(ctx, index):
    return ctx.split(S.START)[index].value

workflow.register_map(S.NEXT, read, range(len(VALUES)), JOIN)
""",
    "one list of all": """
workflow = Workflow("w").register_split(S.START, [lambda: list(VALUES.values())], JoinConfig(ALL, S.NEXT, into="one"))

def unpack(ctx):
    ctx.store.put("v", ctx.store.get("one")[0])
    return S.LOOK

workflow.register(S.NEXT, unpack, config=TaskConfig(where="worker"))
""",
}

LOOK = """
def look(ctx):
    values = ctx.store.get("v")
    assert len(values) == len(VALUES), values
    assert all(same(value, name) for name, value in zip(VALUES, values))
    return S.END

workflow.register(S.LOOK, look).add_exit_state(S.END)
with WorkerPool(2, **globals().get("options", {})) as pool:
    # Twice: the second time workers know the classes already.
    for _ in range(2):
        final = workflow.orchestrate(S.START, pool=pool)
        assert final is S.END
print("done")
"""


def check(done, output: str = "done\n") -> None:
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == output


@pytest.mark.parametrize("journey", list(JOURNEYS))
def test_values_of_main_are_the_same_after(journey, run_script):
    """After any way through a worker members are identical, instances equal and of the same class, keys found."""
    check(run_script(DEFINITIONS + JOURNEYS[journey] + LOOK))


def test_states_of_main_come_back_as_themselves(run_script):
    """A state that a worker returns is the very member of the Enum of ``__main__``, and so is ``ctx.state``."""
    source = """
WORKER = TaskConfig(where="worker")

def start(ctx):
    ctx.store.put("state", ctx.state)
    return S.NEXT

class Next(Task):
    config = WORKER
    def run(self, ctx):
        assert ctx.state is S.NEXT
        return {S.NEXT: S.LOOK}[ctx.state]

def look(ctx):
    assert ctx.store.get("state") is S.START
    return S.END

workflow = Workflow("w", default_config=WORKER).register(S.START, start).register(S.NEXT, Next()).register(S.LOOK, look)
workflow.add_exit_state(S.END)
run = workflow.start(S.START)
assert run.wait() is S.END
assert [id(state) for state in run.report().path] == [id(s) for s in (S.START, S.NEXT, S.LOOK, S.END)]
print("done")
"""
    check(run_script(DEFINITIONS + source))


def test_int_and_string_enums_of_main_are_states(run_script):
    """States may be members of an IntEnum, a StrEnum or a Flag; what comes back is the member, not its value."""
    source = """
class T(enum.StrEnum):
    END = "end"

def start(ctx):
    return Level.LOW

def low(ctx):
    return T.END

workflow = Workflow("w", default_config=TaskConfig(where="worker"))
workflow.register(Mode.READ, start).register(Level.LOW, low).add_exit_state(T.END)
run = workflow.start(Mode.READ)
assert run.wait() is T.END
assert [type(state) for state in run.report().path] == [Mode, Level, T]
print("done")
"""
    check(run_script(DEFINITIONS + source))


def test_exceptions_of_main_come_back_as_themselves(run_script):
    """An exception of ``__main__`` raised in a worker is caught here by its class, with its attributes and causes."""
    source = """
def fail(ctx, item):
    try:
        raise BadInput(1, Point(1, 2))
    except BadInput as error:
        raise BadInput(2, Color.RED) from error

workflow = Workflow("w").register_map(S.START, fail, [1, 2], JoinConfig(ALL, S.END)).add_exit_state(S.END)
try:
    workflow.orchestrate(S.START)
except JoinError as error:
    own = error.result[1].error.__cause__
    assert type(own) is BadInput
    assert (own.code, own.args) == (2, (2, Color.RED))
    assert own.point is Color.RED
    assert type(own.__cause__) is BadInput
    assert own.__cause__.point == Point(1, 2)
    print("done")
"""
    check(run_script(DEFINITIONS + source))


def test_retry_on_knows_an_exception_of_main(run_script):
    """``retry_on`` with a class of ``__main__`` applies to what was raised in a worker."""
    source = """
from canobatch import Retry
class Again(Exception):
    pass

def flaky(ctx):
    if ctx.attempt < 3:
        raise Again
    return ctx.attempt

config = TaskConfig(retry=Retry.fixed(5, 0.0), retry_on=(Again,))
workflow = Workflow("w", default_config=config)
workflow.register_split(S.START, [flaky], JoinConfig(ALL, S.END, into="v")).add_exit_state(S.END)
run = workflow.start(S.START)
run.wait()
assert run.store.get("v") == [3]
print("done")
"""
    check(run_script(DEFINITIONS + source))


def test_functions_of_main_are_values_too(run_script):
    """A function of ``__main__`` that comes from a worker, or from the store, is the script's very function."""
    source = """
def give(ctx):
    ctx.store.put("function", helper)
    ctx.store.put("bound", Point(1).norm)
    assert ctx.store.get("function")(1) == (1, Color.RED)
    return helper

def pass_on(ctx, item):
    assert item(2) == (2, Color.RED)
    return item, ctx.store.get("function")

workflow = Workflow("w").register_split(S.START, [give], JoinConfig(ALL, S.NEXT, into="v"))
workflow.register_map(S.NEXT, pass_on, [helper], JoinConfig(ALL, S.END, into="w")).add_exit_state(S.END)
run = workflow.start(S.START)
run.wait()
assert run.store.get("bound")() == 1
assert run.store.get("w")[0][0] is helper
assert run.store.get("v") == [helper]
assert run.store.get("function") is helper
assert run.store.get("w")[0][1] is helper
print("done")
"""
    check(run_script(DEFINITIONS + source))


def test_functions_of_main_use_each_other_and_their_globals(run_script):
    """A task of ``__main__`` finds other functions, classes, constants and modules of the script in the worker."""
    source = """
import math
LIMIT = 10
TABLE = {Color.RED: "red", Point(1, 2): "point"}

def twice(value):
    return 2 * value

def area(radius):
    return math.floor(math.pi * twice(radius)) + LIMIT

def task(ctx, item):
    return area(item), TABLE[Color.RED], TABLE[Point(1, 2)], helper(item)[1] is Color.RED, Plain(item).value

workflow = Workflow("w").register_map(S.START, task, [1, 2], JoinConfig(ALL, S.END, into="v"))
run = workflow.add_exit_state(S.END).start(S.START)
run.wait()
assert run.store.get("v") == [(16, "red", "point", True, 1), (22, "red", "point", True, 2)], run.store.get("v")
print("done")
"""
    check(run_script(DEFINITIONS + source))


def test_a_guard_is_not_needed_and_main_does_not_run_again(run_script):
    """A script without ``if __name__ == "__main__"`` runs once: no worker executes it again."""
    source = """
print("once")
workflow = Workflow("w").register_split(S.START, [lambda: 1] * 4, JoinConfig(ALL, S.END)).add_exit_state(S.END)
with WorkerPool(2) as pool:
    assert workflow.orchestrate(S.START, pool=pool) is S.END
"""
    check(run_script(DEFINITIONS + source), "once\n")


def test_a_guarded_script_works_all_the_same(run_script):
    """A script that does have the guard, and defines its workflow in a function, works."""
    source = """
def main():
    class Local:
        def __init__(self, value):
            self.value = value
    local = Local(5)
    workflow = Workflow("w").register_split(S.START, [lambda: local.value], JoinConfig(ALL, S.END, into="v"))
    run = workflow.add_exit_state(S.END).start(S.START)
    assert run.wait() is S.END
    assert run.store.get("v") == [5]
    print("done")

if __name__ == "__main__":
    main()
"""
    check(run_script(DEFINITIONS + source))


def test_a_class_of_a_function_comes_back_as_its_copy(run_script):
    """An instance of a class that has no importable name comes back readable, by value."""
    source = """
def define():
    @dataclass
    class Local:
        value: int
    return Local

Hidden = define()
workflow = Workflow("w").register_split(S.START, [lambda: Hidden(3)], JoinConfig(ALL, S.END, into="v"))
run = workflow.add_exit_state(S.END).start(S.START)
assert run.wait() is S.END
assert run.store.get("v")[0].value == 3
print("done")
"""
    check(run_script(DEFINITIONS + source))


def test_an_instance_that_never_met_a_task_is_read_where_it_is_found(run_script):
    """A value put into the store before the run is the same in a worker whose task does not name its class."""
    source = """
from canobatch import SharedStore
store = SharedStore()
for name, value in VALUES.items():
    store.put(name, value)

def describe(ctx, name):
    value = ctx.store.get(name)
    # Same object twice, once through the store and once by its attributes.
    ctx.store.put("copy of " + name, value)
    return type(value).__name__

workflow = Workflow("w", store=store)
workflow.register_map(S.START, describe, list(VALUES), JoinConfig(ALL, S.END, into="v")).add_exit_state(S.END)
workflow.orchestrate(S.START)
assert store.get("v") == [type(value).__name__ for value in VALUES.values()]
assert all(same(store.get("copy of " + name), name) for name in VALUES)
print("done")
"""
    check(run_script(DEFINITIONS + source))


def test_params_of_main_reach_every_worker(run_script):
    """A run's parameters, a dataclass of ``__main__``, are the same in parent and workers."""
    source = """
@dataclass(frozen=True)
class Params:
    color: Color
    point: Point = Point(7)

def task(ctx):
    assert type(ctx.params) is Params
    return ctx.params, ctx.params.color is Color.RED

workflow = Workflow("w", params=Params)
workflow.register_split(S.START, [task] * 3, JoinConfig(ALL, S.END, into="v")).add_exit_state(S.END)
run = workflow.start(S.START, params={"color": Color.RED})
run.wait()
assert run.store.get("v") == [(Params(Color.RED), True)] * 3
print("done")
"""
    check(run_script(DEFINITIONS + source))


def test_two_workflows_of_one_script_share_their_classes(run_script):
    """Values of ``__main__`` go from one run to another on the same pool through a shared store."""
    source = """
from canobatch import SharedStore
store = SharedStore()
with WorkerPool(2) as pool:
    def write(ctx, name):
        ctx.store.put(name, VALUES[name])
    def read(ctx, name):
        return ctx.store.get(name)
    first = Workflow("first", store=store).register_map(S.START, write, list(VALUES), JoinConfig(ALL, S.END))
    first.add_exit_state(S.END).orchestrate(S.START, pool=pool)
    second = Workflow("second", store=store).register_map(S.START, read, list(VALUES), JoinConfig(ALL, S.END, into="v"))
    second.add_exit_state(S.END).orchestrate(S.START, pool=pool)
assert all(same(value, name) for name, value in zip(VALUES, store.get("v")))
print("done")
"""
    check(run_script(DEFINITIONS + source))


def test_the_classes_of_a_module_that_is_run_as_main(run_script, tmp_path):
    """``python -m package.module`` is a ``__main__`` like any other."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "module.py").write_text(DEFINITIONS + JOURNEYS["branch value"] + LOOK)
    check(run_script("import runpy; runpy.run_module('package.module', run_name='__main__', alter_sys=True)"))


# -- notebooks: cells that are executed one after the other in a __main__ without a file

NOTEBOOK = """
import sys, types
main = types.ModuleType("__main__")
sys.modules["__main__"] = main

def cell(source):
    exec(compile(source, f"<ipython-input-{cell.count}>", "exec"), main.__dict__)
    cell.count += 1

cell.count = 1
"""


def notebook(*cells: str) -> str:
    return NOTEBOOK + "".join(f"cell({source!r})\n" for source in cells)


def test_a_notebook_works(run_script):
    """Functions and classes of cells that were executed, not imported, are tasks and values as in a script."""
    done = run_script(
        notebook(
            DEFINITIONS,
            JOURNEYS["branch value"],
            LOOK,
        )
    )
    check(done)


def test_a_cell_that_is_executed_again_replaces_what_it_defined(run_script):
    """A class or function that a notebook defines anew is the new one in workers that knew the old one."""
    run_cell = """
workflow = Workflow("w").register_split(S.START, [task] * 4, JoinConfig(ALL, S.END, into="v")).add_exit_state(S.END)
run = workflow.start(S.START, pool=pool)
run.wait()
values = run.store.get("v")
assert all(type(value) is Thing for value in values), values
print([(value.version, value.describe()) for value in values[:1]])
"""
    define = """
@dataclass
class Thing:
    version: int
    def describe(self):
        return "{0}"

def task(ctx):
    thing = Thing({1})
    assert thing.describe() == "{0}"
    return thing
"""
    done = run_script(
        notebook(
            DEFINITIONS + "pool = WorkerPool(1)",
            define.format("first", 1),
            run_cell,
            define.format("second", 2),
            run_cell,
            "pool.close()",
        )
    )
    check(done, "[(1, 'first')]\n[(2, 'second')]\n")


def test_an_enum_of_states_that_a_notebook_defines_anew_works(run_script):
    """After the cell with the states was executed again, a workflow of the new states runs on the same pool."""
    states = "class State(enum.Enum):\n    START = 1\n    END = 2\n"
    run = """
workflow = Workflow("w", default_config=TaskConfig(where="worker"))
workflow.register(State.START, lambda: State.END).add_exit_state(State.END)
assert workflow.orchestrate(State.START, pool=pool) is State.END
print("ran")
"""
    more = "class State(enum.Enum):\n    START = 1\n    NEW = 3\n    END = 2\n"
    done = run_script(notebook(DEFINITIONS + "pool = WorkerPool(1)", states, run, more, run, "pool.close()"))
    check(done, "ran\nran\n")


def test_code_given_on_the_command_line_and_on_stdin_is_a_main(tmp_path):
    """``python -c`` and a script on stdin have a ``__main__`` without a file, and work."""
    source = DEFINITIONS + JOURNEYS["branch value"] + LOOK
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command, text in (([sys.executable, "-c", source], None), ([sys.executable, "-"], source)):
        done = subprocess.run(
            command, input=text, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        check(done)
