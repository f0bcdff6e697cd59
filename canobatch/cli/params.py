"""Parameters as text: ``-p name=value`` made into what a workflow's dataclass says, or refused. Pure.

Without a dataclass a value is taken as JSON where it is JSON, else as text.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union
from uuid import UUID

from canobatch.errors import ConfigurationError

_TRUE = frozenset({"true", "yes", "on", "1", "y", "t"})
_FALSE = frozenset({"false", "no", "off", "0", "n", "f"})
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"[\d.e+-]+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
_DURATION = re.compile(f"(?:{_PART.pattern})+")
_SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Field(NamedTuple):
    """One declared parameter."""

    name: str
    type: Any
    is_required: bool
    #: None where it has none that can be told beforehand.
    default: Any
    help: str


def fields_of(declared: type) -> list[Field]:
    """Return the parameters that a dataclass declares; ``metadata={"help": ...}`` explains one."""
    try:
        hints = typing.get_type_hints(declared)
    except Exception:  # noqa: BLE001 - a name that exists for type checkers only
        hints = {}
    missing = dataclasses.MISSING
    return [
        Field(
            each.name,
            hints.get(each.name, str if isinstance(each.type, str) else each.type),
            each.default is missing and each.default_factory is missing,
            None if each.default is missing else each.default,
            str(each.metadata.get("help", "")),
        )
        for each in dataclasses.fields(declared)
        if each.init
    ]


def parse_params(declared: type | None, given: Sequence[str]) -> Any:
    """Return a run's parameters: an instance of the dataclass, or a dict.

    Args:
        declared: The workflow's dataclass, or None.
        given: ``name=value`` each; a list takes its name several times, or JSON.

    Raises:
        ConfigurationError: It lists every one that is unknown, missing or of another type.
    """
    texts: dict[str, list[str]] = {}
    problems = []
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            problems.append(f"{each!r} is not name=value")
        else:
            texts.setdefault(name.strip(), []).append(value)
    if declared is None:
        if problems:
            raise _refusal(problems)
        return {name: free(values[-1]) for name, values in texts.items()}
    return make(declared, texts, problems)


def make(declared: type, texts: Mapping[str, Sequence[str]], problems: list[str] | None = None) -> Any:
    """Return an instance of a dataclass, made of text; see `parse_params`."""
    problems = list(problems or ())
    known = {field.name: field for field in fields_of(declared)}
    values = {}
    for name, given in texts.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 2, 0.6)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(known) or 'none'}"
            problems.append(f"there is no parameter {name!r}; {hint}")
            continue
        try:
            values[name] = convert(known[name].type, given)
        except (ValueError, TypeError, ArithmeticError) as error:
            problems.append(f"{name}={given[-1]!r} is not {describe(known[name].type)}{_because(error)}")
    problems += [
        f"{field.name} is missing; give -p {field.name}=... ({describe(field.type)})"
        for field in known.values()
        if field.is_required and field.name not in texts
    ]
    if problems:
        raise _refusal(problems)
    try:
        return declared(**values)
    except Exception as error:
        # A check in its __post_init__.
        raise ConfigurationError(f"parameters: {declared.__name__} refused them: {error}") from error


def _refusal(problems: list[str]) -> ConfigurationError:
    return ConfigurationError("parameters: " + "; ".join(problems), problems)


def _because(error: Exception) -> str:
    return f": {error.args[0]}" if isinstance(error, _UnfitError) else ""


class _UnfitError(ValueError):
    """A value does not fit, with words of our own."""


# -- text to value


def free(text: str) -> Any:
    """Return what text means where nothing is declared."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def convert(kind: Any, texts: Sequence[str]) -> Any:
    """Return the value of a type that was given as text, several times for a list.

    Raises:
        ValueError: It is none.
    """
    kind = _plain(kind)
    many = [member for member in _members(kind) or (kind,) if is_many(member)]
    if many and not (len(texts) == 1 and many[0] is not kind and texts[0].lower() in {"none", "null"}):
        kind = many[0]
        if len(texts) > 1 or not texts[0].lstrip().startswith("["):
            return _collect(kind, [_from_text(inner, text) for inner, text in _pairs(kind, texts)])
        return _from_json(kind, json.loads(texts[0]))
    return _from_text(kind, texts[-1])


def is_many(kind: Any) -> bool:
    """Return whether a type is one of several values."""
    return (typing.get_origin(kind) or kind) in (list, set, frozenset, tuple, Sequence)


def _plain(kind: Any) -> Any:
    """Return what an annotation is about."""
    if typing.get_origin(kind) is typing.Annotated:
        return _plain(typing.get_args(kind)[0])
    return kind


def _members(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else ()


def _pairs(kind: Any, values: Sequence[Any]) -> list[tuple[Any, Any]]:
    inner = typing.get_args(kind) or (str,)
    if (typing.get_origin(kind) or kind) is tuple and inner[-1] is not Ellipsis and typing.get_args(kind):
        if len(inner) != len(values):
            raise _UnfitError(f"it takes {len(inner)} values")
        return list(zip(inner, values, strict=True))
    return [(inner[0], value) for value in values]


def _collect(kind: Any, values: list[Any]) -> Any:
    origin = typing.get_origin(kind) or kind
    return values if origin in (list, Sequence) else origin(values)


def _from_text(kind: Any, text: str) -> Any:
    kind = _plain(kind)
    if members := _members(kind):
        return _first(members, lambda member: _from_text(member, text))
    if typing.get_origin(kind) is Literal:
        return _first(typing.get_args(kind), lambda value: _same(value, text))
    if kind is type(None):
        return _none(text)
    if kind in (Any, object):
        return free(text)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind, text)
    if dataclasses.is_dataclass(kind) or (typing.get_origin(kind) or kind) in (dict, Mapping, list, tuple, set):
        return _from_json(kind, json.loads(text))
    return _READERS.get(kind, kind)(text)


def _from_json(kind: Any, value: Any) -> Any:
    kind = _plain(kind)
    if members := _members(kind):
        return _first(members, lambda member: _from_json(member, value))
    origin = typing.get_origin(kind) or kind
    if is_many(kind) and isinstance(value, list):
        return _collect(kind, [_from_json(inner, each) for inner, each in _pairs(kind, value)])
    if origin in (dict, Mapping) and isinstance(value, dict):
        inner = typing.get_args(kind) or (Any, Any)
        return {_from_json(inner[0], key): _from_json(inner[1], each) for key, each in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        known = {field.name: field.type for field in fields_of(kind)}
        if unknown := [name for name in value if name not in known]:
            raise _UnfitError(f"{kind.__name__} has no {unknown[0]!r}")
        return kind(**{name: _from_json(known[name], each) for name, each in value.items()})
    if kind in (Any, object) or (isinstance(kind, type) and type(value) is kind):
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is type(None) and value is None:
        return None
    if isinstance(value, str):
        return _from_text(kind, value)
    raise _UnfitError(f"got {json.dumps(value)}")


def _first(choices: Sequence[Any], attempt: Any) -> Any:
    # Text fits everything: it is tried last.
    for choice in sorted(choices, key=lambda each: each is str):
        try:
            return attempt(choice)
        except (ValueError, TypeError, ArithmeticError):
            continue
    raise _UnfitError("none of them fits")


def _same(value: Any, text: str) -> Any:
    if isinstance(value, Enum):
        return _first([value], lambda each: each if each.name == text else _fail())
    if str(value) != text:
        _fail()
    return value


def _fail() -> Any:
    raise ValueError


def _none(text: str) -> None:
    if text.lower() not in {"", "none", "null"}:
        _fail()


def _enum(kind: type[Enum], text: str) -> Enum:
    name = text.removeprefix(f"{kind.__name__}.")
    for member in kind:
        if member.name == name or str(member.value) == text:
            return member
    for member in kind:
        if member.name.lower() == name.lower():
            return member
    raise _UnfitError("choose " + ", ".join(member.name for member in kind))


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered not in _TRUE | _FALSE:
        _fail()
    return lowered in _TRUE


def seconds(text: str) -> float:
    """Return a duration such as ``90``, ``1.5h`` or ``1m30s`` in seconds.

    Raises:
        ValueError: It is none.
    """
    text = text.replace(" ", "").lower()
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        _fail()
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def size(text: str) -> int:
    """Return a number of bytes such as ``1000000``, ``512M`` or ``1.5GiB``; a unit is a power of 1024.

    Raises:
        ValueError: It is none.
    """
    lowered = text.strip().lower()
    digits = lowered.rstrip("bikmgt")
    unit = lowered[len(digits) :].removesuffix("ib" if lowered.endswith("ib") else "b")
    if unit not in _SIZES or not digits:
        _fail()
    return int(float(digits) * _SIZES[unit])


_READERS: dict[Any, Any] = {
    bool: _boolean,
    bytes: str.encode,
    date: date.fromisoformat,
    datetime: datetime.fromisoformat,
    time: time.fromisoformat,
    timedelta: lambda text: timedelta(seconds=seconds(text)),
    Decimal: Decimal,
    Path: Path,
    UUID: UUID,
    float: float,
    int: lambda text: int(text.replace("_", ""), 0) if text[:1] != "0" or text[1:2] in "xXoObB" else int(text),
    str: str,
}


def describe(kind: Any) -> str:
    """Return how a type is called to the user."""
    kind = _plain(kind)
    words = {bool: "true or false", str: "text", int: "a whole number", float: "a number", timedelta: "a duration"}
    if kind in words:
        return words[kind]
    if members := _members(kind):
        return " or ".join(describe(member) for member in members)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(member.name for member in kind)
    if kind is type(None):
        return "none"
    if typing.get_origin(kind) is not None:
        return str(kind).replace("typing.", "")
    return f"a {getattr(kind, '__name__', kind)}"
