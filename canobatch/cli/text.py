"""Facts as text: durations, sizes, tables."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from typing import TYPE_CHECKING

import click

from canobatch import _clock

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Columns that each column of a table keeps on a narrow terminal: a day and a time.
_NARROWEST = 11
#: Columns of a run's id, which stays whole.
_RUN_ID = 24
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


def short_time(seconds: float, now: float) -> str:
    """Return an instant as lists show it: the time of today, the day of other times.

    Example:
        >>> [len(short_time(2e7, 2e7 + days * 86_400)) for days in (0, 3, 900)]
        [8, 11, 10]
    """
    then, today = (_clock.as_utc(instant).astimezone() for instant in (seconds, now))
    if then.date() == today.date():
        return f"{then:%H:%M:%S}"
    return f"{then:%m-%d %H:%M}" if then.year == today.year else f"{then:%Y-%m-%d}"


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


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), room: int | None = None
) -> str:
    """Return aligned columns; those named in ``right`` are aligned to the right, empty ones left out.

    What does not fit into ``room`` columns is taken from the widest, from the first, which names the row, only last.
    None: those of the terminal, without one all there is.
    """
    columns = [index for index, _ in enumerate(headers) if any(row[index] for row in rows)]
    grid = [[click.style(headers[index], bold=True) for index in columns]]
    grid += [[row[index] for index in columns] for row in rows]
    widths = [max(width(row[place]) for row in grid) for place in range(len(columns))]
    room = _room() if room is None else room
    if room is not None:
        _narrow(widths, room - 2 * (len(widths) - 1))
    lines = []
    for row in grid:
        cells = []
        for place, whole in enumerate(row):
            cell = _cut(whole, widths[place])
            gap = " " * (widths[place] - width(cell))
            cells.append(gap + cell if headers[columns[place]] in right else cell + gap)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _room() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _narrow(widths: list[int], room: int) -> None:
    """Take from the widest columns until all have room or none has much left; from the first, if it is long, last."""
    while sum(widths) > room and (widest := max(widths[1:], default=0)) > _NARROWEST:
        widths[widths.index(widest, 1)] -= 1
    if widths[0] > _RUN_ID:
        widths[0] = max(_NARROWEST, min(widths[0], room - sum(widths[1:])))


def _cut(cell: str, room: int) -> str:
    """Return what fits of a cell; its colours are lost if that is not all."""
    if width(cell) <= room:
        return cell
    text, taken = "", 0
    for character in click.unstyle(cell):
        taken += _columns(character)
        if taken >= room:
            break
        text += character
    return f"{text}…"


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
