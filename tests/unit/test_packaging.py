"""What is shipped, what the root exports, and what an import costs."""

from __future__ import annotations

import ast
import builtins
import configparser
import importlib
import importlib.metadata
import importlib.resources
import inspect
import json
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import cloudpickle
import pytest

import canobatch
from canobatch import errors

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

ERRORS = sorted(
    (value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, BaseException)),
    key=lambda cls: cls.__name__,
)

#: Too heavy, or too much machinery, for an import that every worker makes.
HEAVY = {
    "asyncio", "click", "cloudpickle", "croniter", "ctypes", "loky", "multiprocessing", "numpy", "psutil", "socket",
    "sqlite3", "subprocess", "threading",
}  # fmt: skip


def test_setup_cfg_holds_the_architecture_and_nothing_else():
    """Every section of setup.cfg is about import contracts, and pyproject.toml says nothing of them."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert parser.sections()
    assert [name for name in parser.sections() if name.partition(":")[0] != "importlinter"] == []
    assert "importlinter" not in PYPROJECT["tool"]


def test_metadata_stand_in_one_place():
    """No field of the project's metadata is taken from another file."""
    assert "dynamic" not in PYPROJECT["project"]


def test_the_version_is_the_same_everywhere():
    """The version in pyproject.toml, of the package, and of what is installed are one."""
    declared = PYPROJECT["project"]["version"]
    assert canobatch.__version__ == declared
    assert importlib.metadata.version("canobatch") == declared


def test_type_information_is_shipped():
    """py.typed lies beside the root module and is named as package data."""
    assert (importlib.resources.files("canobatch") / "py.typed").is_file()
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["canobatch"]


def test_every_package_is_found_by_the_build():
    """Each directory of modules has an __init__, so that the build takes it along."""
    directories = {path.parent for path in (ROOT / "canobatch").rglob("*.py")}
    assert [str(path) for path in directories if not (path / "__init__.py").is_file()] == []


def _typed_names():
    """Return the root's names under TYPE_CHECKING, each with the module it comes from."""
    tree = ast.parse(Path(canobatch.__file__).read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    assert blocks
    return {
        alias.asname or alias.name: node.module
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("canobatch")
        for alias in node.names
    }


def test_what_a_type_checker_sees_is_what_there_is():
    """The root's __all__, its imports under TYPE_CHECKING and its lazy table name the same things."""
    assert sorted(canobatch.__all__) == sorted(_typed_names())
    assert _typed_names() == canobatch._HOME_OF


def test_the_root_is_small_and_in_order():
    """The root exports at most 40 names, each once."""
    assert len(canobatch.__all__) == len(set(canobatch.__all__)) <= 40


@pytest.mark.parametrize("name", canobatch.__all__)
def test_a_public_name_is_documented_where_it_lives(name):
    """Every name of the root is the object its module defines, and has a docstring of its own."""
    value = getattr(canobatch, name)
    assert value is getattr(importlib.import_module(_typed_names()[name]), name)
    assert name in dir(canobatch)
    assert inspect.cleandoc(value.__doc__ or "")
    if inspect.isclass(value):
        assert value.__doc__ not in {base.__doc__ for base in value.__mro__[1:]}


def test_an_unknown_name_is_an_attribute_error():
    """A typing mistake on the root is an AttributeError that says the name."""
    with pytest.raises(AttributeError, match="Tsak"):
        canobatch.Tsak  # noqa: B018


def test_importing_the_root_imports_nothing_heavy():
    """`import canobatch` in a fresh interpreter loads no third-party package and no process machinery."""
    program = """if True:
        import sys
        before = set(sys.modules)
        import canobatch
        import json
        print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY.intersection(json.loads(done.stdout)) == set()


def _example_of(cls):
    """Return an error with every attribute that some constructor of its class takes."""
    facts = {"last_error": ValueError("the task's own"), "path": ("A", "B"), "problems": ("one", "two")}
    names = {
        parameter.name
        for base in cls.__mro__
        if "__init__" in vars(base) and base.__module__ == errors.__name__
        for parameter in inspect.signature(base).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "message"
    }
    return cls(
        "what happened, where, and what to do", **{name: facts.get(name, f"the {name}") for name in names}
    ), names


@pytest.mark.parametrize("cls", ERRORS)
@pytest.mark.parametrize("packer", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_an_error_survives_two_round_trips(cls, packer):
    """An error comes back with its class, text, attributes and notes."""
    error, names = _example_of(cls)
    error.add_note("seen in branch 3")
    back = pickle.loads(packer.dumps(pickle.loads(packer.dumps(error))))
    assert type(back) is cls
    assert str(back) == str(error) == "what happened, where, and what to do"
    assert repr(vars(back)) == repr(vars(error))
    assert names <= set(vars(back))
    assert back.__notes__ == ["seen in branch 3"]


@pytest.mark.parametrize("cls", ERRORS)
def test_errors_are_one_tree_of_like_names(cls):
    """Every error class ends in Error, has a docstring, and descends from the root error."""
    assert cls.__name__.endswith("Error")
    assert cls.__doc__
    assert issubclass(cls, errors.CanobatchError)


@pytest.mark.parametrize("cls", ERRORS)
def test_the_error_tree_in_the_docstring_is_complete(cls):
    """The drawing at the head of the module shows each class, with the builtin it mixes in."""
    (line,) = (line for line in errors.__doc__.splitlines() if f"{cls.__name__} " in f"{line} ".replace("─", " "))
    for base in cls.__bases__:
        if getattr(builtins, base.__name__, None) is base and base is not Exception:
            assert f"({base.__name__})" in line


def test_every_example_is_listed():
    """The list of examples has each of them once, and numbers them in order."""
    lines = [line for line in (ROOT / "examples" / "README.md").read_text().splitlines() if line[:1].isdigit()]
    assert [line.partition(".")[0] for line in lines] == [str(n + 1) for n in range(len(lines))]
    listed = [line.split("`")[1] for line in lines]
    assert sorted(listed) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.name)
def test_every_test_states_its_rule(path):
    """Each test function has a docstring that begins with one sentence."""
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    tests = [node for node in functions if node.name.startswith("test_")]
    missing = [node.name for node in tests if not (ast.get_docstring(node) or "").partition("\n")[0].endswith(".")]
    assert missing == []
