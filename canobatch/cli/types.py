"""Types of options: durations, sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    # It takes no argument before click 8.2.
    _ParamType = click.ParamType


class Read(_ParamType):
    """A type that is read by a function which raises ValueError."""

    def __init__(self, name: str, read: Callable[[str], Any], words: str) -> None:
        self.name = name
        self._read = read
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not {self._words}", param, ctx)


def _above_zero(text: str) -> float:
    from canobatch.cli.params import seconds  # noqa: PLC0415 - not where no duration is given

    found = seconds(text)
    if not 0 < found < float("inf"):
        raise ValueError
    return found


DURATION = Read("duration", _above_zero, "a duration above 0; write 90, 1.5h or 1m30s")


def _some(text: str) -> str:
    if not text:
        raise ValueError
    return text


#: What is empty is mostly a shell's variable that is not set.
TEXT = Read("text", _some, "a name; it must not be empty")


def _size(text: str) -> int:
    from canobatch.cli.params import size  # noqa: PLC0415 - as above

    found = size(text)
    if found <= 0:
        raise ValueError
    return found


SIZE = Read("size", _size, "a number of bytes above 0; write 1000000, 512M or 2G")
