"""What does not pickle, and where: a path such as ``Count.config.retry.on[0]``."""

from __future__ import annotations

import types
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from canobatch.effects import PROTOCOL, first_line, loads

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How deep a culprit is looked for.
_DEPTH = 12


def problem_of(value: Any, name: str) -> str | None:
    """Return why a worker cannot be given ``value``, with the path to what is at fault; None if it can.

    Args:
        value: A task, a parameter, a state.
        name: What the path begins with, such as ``Count``.
    """
    error = _error_of(value)
    if error is None:
        return None
    path, culprit = _innermost(value, name, set(), _DEPTH)
    reason = first_line(_error_of(culprit) or error)
    return f"{path} ({type(culprit).__name__}) does not pickle: {reason}"


def does_not_return(value: Any) -> str | None:
    """Return why ``value`` is not the same after a round trip, or None."""
    import cloudpickle  # noqa: PLC0415 - only here

    try:
        again = loads(cloudpickle.dumps(value, PROTOCOL))
    except Exception as error:  # noqa: BLE001 - code of the user's runs
        return f"cannot be read back from its pickle: {first_line(error)}"
    try:
        if bool(again == value):
            return None
    except Exception as error:  # noqa: BLE001
        return f"cannot be compared: {first_line(error)}"
    return "is not equal to what comes back from its pickle; give its class an __eq__"


def _error_of(value: Any) -> Exception | None:
    import cloudpickle  # noqa: PLC0415

    try:
        cloudpickle.dumps(value, PROTOCOL)
    except Exception as error:  # noqa: BLE001 - code of the user's runs
        return error
    return None


def _innermost(value: Any, path: str, seen: set[int], depth: int) -> tuple[str, Any]:
    seen.add(id(value))
    if depth:
        for suffix, part in _parts(value):
            if id(part) not in seen and _error_of(part) is not None:
                return _innermost(part, path + suffix, seen, depth - 1)
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Return what a value is made of, each with what it adds to the path."""
    if isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, dict):
        for key, part in value.items():
            yield f"[{key!r}]", part
            yield f" key {key!r}", key
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield f"[{index}]", part
    elif isinstance(value, set | frozenset):
        for part in value:
            yield " element", part
    elif not isinstance(value, type | types.ModuleType):
        yield from _parts_of_object(value)


def _parts_of_object(value: Any) -> Iterator[tuple[str, Any]]:
    # functools.partial and the like say what they are made of only by these.
    for name in ("func", "args", "keywords"):
        if type(value).__module__ == "functools" and hasattr(value, name):
            yield f".{name}", getattr(value, name)
    for name, part in list(getattr(value, "__dict__", {}).items()):
        yield f".{name}", part
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name) and not name.startswith("__"):
                yield f".{name}", getattr(value, name)
    # A class that travels by value takes its attributes along.
    for name, part in list(vars(type(value)).items()):
        if not name.startswith("__") and not isinstance(part, types.MemberDescriptorType | property):
            yield f".{name}", part


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with suppress(ValueError):  # not set yet
            yield f" encloses {name}", cell.cell_contents
    for name, part in _defaults(function):
        yield f"({name}=...)", part
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f" uses {name}", function.__globals__[name]


def _defaults(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    values = function.__defaults__ or ()
    names = function.__code__.co_varnames[: function.__code__.co_argcount][-len(values) :] if values else ()
    yield from zip(names, values, strict=False)
    yield from (function.__kwdefaults__ or {}).items()
