"""What a TARGET may be, and what is said of one that cannot be loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from canobatch.cli.target import function_kind, load_target, workflow_kind
from canobatch.errors import TargetError

ONE = """
from canobatch import Workflow
flow = Workflow("{name}").register("start", lambda: "done").add_exit_state("done")
"""


def load(text):
    return load_target(text, workflow_kind())


@pytest.fixture
def place(workplace):
    """A directory with a file, and a package with two modules."""
    (workplace / "one_flow.py").write_text(ONE.format(name="one"))
    package = workplace / "some_flows"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "names.py").write_text("NAME = 'inner'\n")
    inner = "from .names import NAME\n" + ONE.format(name="inner") + "also = flow\n"
    (package / "inner.py").write_text(inner)
    (package / "two.py").write_text(ONE.format(name="a") + "other = Workflow('b')\n")
    made = "def make() -> Workflow:\n    return Workflow('made').register(1, lambda: 2).add_exit_state(2)\n"
    (package / "factory.py").write_text("from __future__ import annotations\nfrom canobatch import Workflow\n" + made)
    return workplace


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("one_flow.py", "one"),
        ("./one_flow.py:flow", "one"),
        ("one_flow", "one"),
        ("one_flow:flow", "one"),
        ("some_flows/inner.py", "inner"),
        ("some_flows.inner", "inner"),
        ("some_flows.inner:also", "inner"),
        ("some_flows.two:other", "b"),
        ("some_flows.factory:make", "made"),
        ("some_flows/factory.py", "made"),
    ],
)
def test_a_target_is_found(place, text, name):
    """A file, a module, an attribute of either, a factory, and the only workflow of a module."""
    assert load(text).name == name


def test_a_file_is_a_module_that_workers_can_import(place):
    """What a file defines has the file's name for its module, never __main__, and is importable elsewhere."""
    workflow = load("some_flows/inner.py")
    module = next(m for m in sys.modules.values() if getattr(m, "flow", None) is workflow)
    assert module.__name__ == "some_flows.inner"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; import some_flows.inner"], check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one_fow.py", "there is no file one_fow.py; did you mean one_flow.py?"),
        ("nowhere/x.py", "there is no directory nowhere"),
        ("one_fow", "there is no module one_fow; did you mean one_flow"),
        ("some_flows.iner", "there is no module some_flows.iner; did you mean inner?"),
        ("one_flow:flo", "one_flow has no attribute 'flo'; did you mean flow?"),
        ("some_flows.two", "has 2 workflows: flow, other; say which, as in some_flows.two:flow"),
        ("some_flows.names", "has no workflow"),
        ("some_flows.names:NAME", "is 'inner', not a workflow"),
        ("no spaces allowed", "is not a target"),
        ("", "is not a target"),
        ("x" * 10_000, "there is no module xxx"),
        ("x" * 10_000 + ".py", "there is no file xxx"),
        ("x" * 10_000 + "/y.py", "there is no file xxx"),
        ("one_flow.py:flow.name", "is 'one', not a workflow"),
    ],
)
def test_what_is_not_there_is_told_with_what_may_be_meant(place, text, words):
    """A misspelt file, module or attribute names its neighbours."""
    with pytest.raises(TargetError) as caught:
        load(text)
    assert words in str(caught.value)
    assert caught.value.target == text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nonexistent_thing\n", "ModuleNotFoundError: No module named 'nonexistent_thing' ({path}, line 1)"),
        ("x = 1\nx(\n", "SyntaxError"),
        ("\n1 / 0\n", "ZeroDivisionError: division by zero ({path}, line 2)"),
        ("raise SystemExit(7)\n", "SystemExit: 7"),
        ("def make(a, b=1):\n    pass\n", "make() needs a; a factory takes no arguments"),
        ("def make():\n    return 3\n", "make() made 3, not a workflow"),
        ("def make():\n    raise KeyError('k')\n", "KeyError: 'k' ({path}, line 2)"),
        ("from canobatch import Retry\nRetry.fixed(-1)\n", "({path}, line 2)"),
        ("raise ValueError('one\\ntwo')\n", "ValueError: one ({path}, line 1)"),
        ("x = '\0'\n", "cannot load broken_one.py:make: SyntaxError"),
        ("async def make():\n    pass\n", "make() made the coroutine make, not a workflow"),
    ],
)
def test_code_that_fails_is_told_with_its_line(workplace, source, words):
    """An error while a target is loaded is one sentence with the file and the line of the user's own code."""
    path = workplace / "broken_one.py"
    path.write_text(source)
    with pytest.raises(TargetError) as caught:
        load("broken_one.py:make")
    assert words.format(path=path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_a_name_that_is_taken_is_refused(workplace):
    """A json.py of the user's cannot be told from the one that workers have."""
    import json

    (workplace / "json.py").write_text(ONE.format(name="x"))
    with pytest.raises(TargetError, match="json is the name of another module"):
        load("json.py")
    assert sys.modules["json"] is json


def test_a_name_with_dots_is_refused(workplace):
    """Workers could not import it."""
    (workplace / "a.b.py").write_text(ONE.format(name="x"))
    with pytest.raises(TargetError, match="rename the file"):
        load("a.b.py")


def test_names_with_spaces_and_letters_of_all_kinds(workplace):
    """A file may be called as people call files."""
    (workplace / "mein flow ü.py").write_text(ONE.format(name="x"))
    assert load("mein flow ü.py").name == "x"


def test_functions_are_those_that_the_module_defines(workplace):
    """For a map only the module's own public functions count, not what it imports."""
    (workplace / "one_function.py").write_text("from json import dumps\ndef _no(): ...\ndef yes(x): return x\n")
    assert load_target("one_function.py", function_kind()).__name__ == "yes"
