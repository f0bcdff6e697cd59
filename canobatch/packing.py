"""Definitions by value, and the names of ``__main__`` that workers must know.

A module-level class of ``__main__`` cannot be imported by a worker. So the worker gets it by value, once,
under its name, before it gets bytes that refer to it: then states and dataclasses of a script are equal
and identical after a round trip. What a definition drags along unasked is refused, by name.
"""

from __future__ import annotations

import re
import sys
import types
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from canobatch.effects import PROTOCOL, first_line, loads
from canobatch.errors import PayloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: A global that a by-value function drags along may pickle to this many bytes.
DRAG_LIMIT = 1 << 20


def pack_definition(definition: Any, what: str) -> bytes:
    """Pickle tasks by value where they cannot be imported.

    Args:
        definition: What a worker needs to run a state.
        what: How to call it in an error, such as "state S.COUNT".

    Raises:
        PayloadError: Something in it does not pickle, or a function drags a large global; both are named.
    """
    import cloudpickle  # noqa: PLC0415

    try:
        data: bytes = cloudpickle.dumps(definition, PROTOCOL)
    except Exception as error:
        culprit = _culprit(definition, cloudpickle.dumps, set()) or "something in it"
        raise PayloadError(
            f"{what} cannot be sent to a worker: {culprit} does not pickle ({first_line(error)}); "
            "create it inside the task, or make it a resource"
        ) from error
    if len(data) > DRAG_LIMIT:
        for name, value in _dragged(definition, set()):
            try:
                size = len(cloudpickle.dumps(value, PROTOCOL))
            except Exception:  # noqa: BLE001, S112 - the whole did pickle
                continue
            if size > DRAG_LIMIT:
                raise PayloadError(
                    f"{what} cannot be sent to a worker: it drags {name} along, {size / 1e6:.1f} MB pickled; "
                    "put it in the store, or load it inside the task"
                )
    return data


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Return the named things that pickling ``value`` by value would pull in."""
    if isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, types.MethodType):
        yield f"method {value.__func__.__qualname__}", value.__func__
        yield f"{type(value.__self__).__name__} instance", value.__self__
    elif isinstance(value, dict):
        for key, part in value.items():
            yield f"key {key!r}", part
    elif isinstance(value, list | tuple | set | frozenset):
        for index, part in enumerate(value):
            yield f"item {index}", part
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        for name, part in (*vars(value).items(), *vars(type(value)).items()):
            if not name.startswith("__"):
                yield f"{type(value).__name__}.{name}", part


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    owner = function.__qualname__
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"global {name!r} of {owner}", function.__globals__[name]
    defaults = function.__defaults__ or ()
    names = function.__code__.co_varnames[: function.__code__.co_argcount][-len(defaults) :]
    for name, part in zip(names, defaults, strict=False):
        yield f"default {name!r} of {owner}", part
    for name, part in (function.__kwdefaults__ or {}).items():
        yield f"default {name!r} of {owner}", part
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        with suppress(ValueError):  # not set yet
            yield f"{name!r} enclosed by {owner}", cell.cell_contents


def _culprit(value: Any, dump: Callable[[Any], bytes], seen: set[int]) -> str | None:
    """Return the name of the innermost thing that does not pickle."""
    if id(value) in seen:
        return None
    seen.add(id(value))
    for name, part in _parts(value):
        try:
            dump(part)
        except Exception:  # noqa: BLE001
            inner = _culprit(part, dump, seen)
            if inner is None:
                return f"{name} ({type(part).__name__})"
            # "item 0" says nothing where a name follows.
            return inner if _is_position(name) and not _is_position(inner) else f"{name}, {inner}"
    return None


def _is_position(name: str) -> bool:
    return name.startswith(("item ", "key "))


def _dragged(value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Return the globals and enclosed values of functions that travel by value."""
    if id(value) in seen or isinstance(value, type | types.ModuleType | str | bytes | int | float):
        return
    seen.add(id(value))
    by_value = isinstance(value, types.FunctionType) and (value.__module__ == "__main__" or "<" in value.__qualname__)
    for name, part in _parts(value):
        if by_value and not isinstance(part, types.FunctionType | type | types.ModuleType):
            yield name, part
        if by_value or isinstance(value, list | tuple | dict) or hasattr(value, "__dict__"):
            yield from _dragged(part, seen)


# -- what lives in __main__


def mains_in(data: bytes | bytearray | memoryview, *, by_value: bool = False) -> frozenset[str]:
    """Return the names of the classes and functions of ``__main__`` that a pickle refers to.

    Never too few: where it cannot be told, a name is taken to be meant when its letters occur.

    Args:
        data: A pickle, or several in a row.
        by_value: Whether it was made by `pack_definition`: then its functions are in it, and classes are
            looked for that a task may give back.
    """
    if _MAIN.search(data) is None:
        return frozenset()
    data = bytes(data)
    # A global is the strings of module and name, then STACK_GLOBAL; a name that occurred before is fetched
    # from the memo instead.
    is_vague = by_value or _MEMOIZED_GLOBAL.search(data) is not None
    kinds = type if by_value else type | types.FunctionType
    return frozenset(
        name
        for name, obj in list(vars(sys.modules["__main__"]).items())
        if isinstance(obj, kinds) and obj.__module__ == "__main__" and obj.__qualname__ == name
        if (name.encode() in data if is_vague else any(ending in data for ending in _endings(name)))
    )


_MAIN = re.compile(rb"__main__")
_MEMOIZED_GLOBAL = re.compile(rb"(?:h.|j....)\x93", re.DOTALL)


def _endings(name: str) -> tuple[bytes, ...]:
    """Return how a reference to ``name`` may end: as a global, or as the last of two arguments."""
    text = name.encode()
    if len(text) > 255:
        return (text,)
    string = b"\x8c%c%s\x94" % (len(text), text)
    return string + b"\x93", string + b"\x86"


def functions_of_main() -> list[str]:
    """Return the names of the functions that ``__main__`` defines."""
    return [
        name
        for name, obj in list(vars(sys.modules["__main__"]).items())
        if isinstance(obj, types.FunctionType) and obj.__module__ == "__main__" and obj.__qualname__ == name
    ]


def pack_mains(names: Iterable[str]) -> bytes:
    """Pickle these classes and functions of ``__main__`` by value; leave out what does not pickle."""
    import cloudpickle  # noqa: PLC0415

    main = vars(sys.modules["__main__"])
    found = {name: main[name] for name in names if name in main}
    try:
        return bytes(cloudpickle.dumps(found, PROTOCOL))
    except Exception:  # noqa: BLE001
        picklable = {}
        for name, obj in found.items():
            try:
                cloudpickle.dumps(obj, PROTOCOL)
            except Exception:  # noqa: BLE001, S112 - a worker that needs it will say so by name
                continue
            picklable[name] = obj
        return bytes(cloudpickle.dumps(picklable, PROTOCOL))


def register_mains(data: bytes) -> None:
    """In a worker: put what `pack_mains` packed where pickles by reference look for it."""
    vars(sys.modules["__main__"]).update(loads(data))
