"""Facts as text: durations, sizes, tables."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import click

from canobatch import _clock

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Characters of a cell; names may have ten thousand.
_WIDEST = 60


def duration(seconds: float | None) -> str:
    """Return a duration for people.

    Example:
        >>> duration(0.0123), duration(75), duration(7500)
        ('12 ms', '1m15s', '2h05m')
    """
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 2 * 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def local_time(seconds: float) -> str:
    """Return an instant, given in seconds since the epoch, on the wall clock of this machine."""
    return f"{_clock.as_utc(seconds).astimezone():%Y-%m-%d %H:%M:%S}"


def size(count: float | None) -> str:
    """Return a number of bytes for people.

    Example:
        >>> size(812_000_000)
        '812 MB'
    """
    if count is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def one_line(text: str, limit: int = _WIDEST) -> str:
    """Return text on one line without anything that moves the cursor, shortened in the middle of nothing."""
    # Ten thousand characters are looked at only as far as they are shown.
    clean = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return clean if len(clean) <= limit else f"{clean[: limit - 1]}…"


def width(text: str) -> int:
    """Return how many columns text takes on a terminal."""
    return sum(_columns(c) for c in click.unstyle(text))


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Return aligned columns; those named in ``right`` are aligned to the right, empty ones left out."""
    columns = [index for index, _ in enumerate(headers) if any(row[index] for row in rows)]
    grid = [[click.style(headers[index], bold=True) for index in columns]]
    grid += [[row[index] for index in columns] for row in rows]
    widths = [max(width(row[place]) for row in grid) for place in range(len(columns))]
    lines = []
    for row in grid:
        cells = []
        for place, cell in enumerate(row):
            gap = " " * (widths[place] - width(cell))
            cells.append(gap + cell if headers[columns[place]] in right else cell + gap)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> plural(1, "branch"), plural(2, "branch"), plural(1200, "run")
        ('1 branch', '2 branches', '1,200 runs')
    """
    if count != 1 and noun.endswith("ry"):
        return f"{count:,} {noun[:-1]}ies"
    ending = "" if count == 1 else "es" if noun.endswith(("ch", "s", "sh")) else "s"
    return f"{count:,} {noun}{ending}"
