"""Which resources a task asks for: read off its code, where that says it."""

from __future__ import annotations

import ast
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from canobatch.cli.reach import InDoubtError, parsed, value_of
from canobatch.definition import functions_of, is_hashable

if TYPE_CHECKING:
    from collections.abc import Iterator


def keys_asked_for(task: Any) -> list[Any]:
    """Return the keys in each ``ctx.resource(key)`` and ``ctx.resources[key]`` of a task, as far as they are known."""
    found: dict[Any, None] = {}
    for function in functions_of(task):
        with suppress(InDoubtError):
            tree = parsed(function)
            names = {each.arg for each in (*tree.args.posonlyargs, *tree.args.args)}
            for node in _keys(tree, names):
                with suppress(InDoubtError):
                    key = node.value if isinstance(node, ast.Constant) else value_of(node, function)
                    if is_hashable(key):
                        found[key] = None
    return list(found)


def _keys(tree: ast.AST, names: set[str]) -> Iterator[ast.expr]:
    """Return what stands for a key, where a parameter of the function is asked for a resource."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_read(node.func, "resource", names):
            yield from node.args[:1]
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "key")
        elif isinstance(node, ast.Subscript) and _is_read(node.value, "resources", names):
            yield node.slice


def _is_read(node: ast.expr, attribute: str, names: set[str]) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr == attribute
        and isinstance(node.value, ast.Name)
        and node.value.id in names
    )
