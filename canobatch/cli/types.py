"""Types of options: durations, sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from canobatch.cli.params import seconds, size

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
        except ValueError as error:
            self.fail(f"{value!r} is not {self._words}{f': {error}' if str(error) else ''}", param, ctx)


def _above_zero(text: str) -> float:
    found = seconds(text)
    if not 0 < found < float("inf"):
        raise ValueError
    return found


DURATION = Read("duration", _above_zero, "a duration above 0; write 90, 1.5h or 1m30s")
SIZE = Read("size", size, "a number of bytes; write 1000000, 512M or 2G")
