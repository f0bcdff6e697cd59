"""Which states a run can reach: read off the code of tasks where it leaves no doubt, else nothing is said."""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
from typing import TYPE_CHECKING, Any

from canobatch.definition import Single, is_hashable
from canobatch.task import Task, entry_point

if TYPE_CHECKING:
    from collections.abc import Iterable

    from canobatch.definition import Definition, Handler

#: Methods of processing models that return the next state, or something that holds it.
_METHODS = ("route", "poll", "after_wait", "post", "finish", "step", "on_close", "flush_window")
#: Calls that hold no state, or hold it as their first argument.
_WITHOUT = frozenset({"Pending", "More"})
_AROUND = frozenset({"Ready", "Done"})


class InDoubtError(Exception):
    """It cannot be told from the code."""


def unreachable(definition: Definition, starts: Iterable[Any]) -> list[Any]:
    """Return the states to which no transition leads from ``starts``; [] where that cannot be known."""
    pending = list(starts)
    reached: set[Any] = set()
    while pending:
        state = pending.pop()
        if state in reached:
            continue
        reached.add(state)
        handler = definition.handlers.get(state)
        if handler is None or state in definition.exits:
            continue
        try:
            pending += _targets(definition, handler)
        except InDoubtError:
            return []
    return [state for state in dict.fromkeys([*definition.handlers, *definition.exits]) if state not in reached]


def _targets(definition: Definition, handler: Handler) -> list[Any]:
    found = [state for state, _ in definition.transitions(handler) if definition.knows(state)]
    if not isinstance(handler, Single):
        return found
    # What its code names may be more than what it returns; the exact answer decides whether there is doubt.
    return found + [state for state in _returned(handler.task) if definition.knows(state)]


def _returned(task: Any) -> list[Any]:
    found = []
    functions = _functions(task)
    if not functions:
        raise InDoubtError
    for function in functions:
        constant = _constant(function)
        if constant:
            found += constant
            continue
        for node in _returns(function):
            found += _states(node, function)
    return found


def _constant(function: Any) -> list[Any]:
    """Return what a function returns that does nothing but return a constant, as many a lambda does."""
    code = getattr(function, "__code__", None)
    if code is None:
        return []
    steps = [step for step in dis.get_instructions(code) if step.opname not in {"RESUME", "COPY_FREE_VARS", "NOP"}]
    is_plain = {step.opname for step in steps} <= {"LOAD_CONST", "RETURN_VALUE", "RETURN_CONST"}
    return [step.argval for step in steps if "CONST" in step.opname] if is_plain else []


def _functions(task: Any) -> list[Any]:
    entry = inspect.unwrap(getattr(entry_point(task), "__func__", entry_point(task)))
    module = getattr(entry, "__module__", None) or ""
    if isinstance(task, Task) and module.startswith("canobatch."):
        kinds = [kind for kind in type(task).__mro__ if not kind.__module__.startswith("canobatch.")]
        return [vars(kind)[name] for name in _METHODS for kind in kinds[:1] if name in vars(kind)]
    return [entry]


def _returns(function: Any) -> list[ast.expr | None]:
    node = parsed(function)
    if isinstance(node, ast.Lambda):
        return [node.body]
    return [own.value for own in _own_nodes(node) if isinstance(own, ast.Return)]


def parsed(function: Any) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda:
    """Return the syntax tree of a function.

    Raises:
        InDoubtError: Its source is not there, or holds several lambdas.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError) as error:
        raise InDoubtError from error
    body = tree.body[0]
    if isinstance(body, ast.FunctionDef | ast.AsyncFunctionDef):
        return body
    # A lambda in the midst of a call.
    lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    if len(lambdas) != 1:
        raise InDoubtError
    return lambdas[0]


def _own_nodes(function: ast.AST) -> Iterable[ast.AST]:
    """Return the nodes of a function without those of functions inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield child
            yield from _own_nodes(child)


def _states(node: ast.expr | None, function: Any) -> list[Any]:
    if node is None:
        return []
    if isinstance(node, ast.Constant):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return _states(node.body, function) + _states(node.orelse, function)
    if isinstance(node, ast.BoolOp):
        return [state for value in node.values for state in _states(value, function)]
    if isinstance(node, ast.Tuple) and node.elts:
        # (state, output) of what can be compensated.
        return _states(node.elts[0], function)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        if name in _WITHOUT:
            return []
        if name in _AROUND and node.args:
            return _states(node.args[0], function)
    return [value_of(node, function)]


def value_of(node: ast.expr, function: Any) -> Any:
    """Return the value of a name or attribute that does not depend on the run.

    Raises:
        InDoubtError: It may.
    """
    if isinstance(node, ast.Attribute):
        owner = value_of(node.value, function)
        if not inspect.ismodule(owner) and not isinstance(owner, type):
            raise InDoubtError
        value = getattr(owner, node.attr, InDoubtError)
    elif isinstance(node, ast.Name):
        code = function.__code__
        if node.id in code.co_varnames:
            raise InDoubtError
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=False))
        try:
            value = cells[node.id].cell_contents if node.id in cells else function.__globals__[node.id]
        except (KeyError, ValueError) as error:
            raise InDoubtError from error
    else:
        raise InDoubtError
    if value is InDoubtError or not is_hashable(value):
        raise InDoubtError
    return value
