"""The fields of a cron expression, as plain numbers. Pure.

Parsed here, so that an error names the field, and a schedule does not change its meaning with a library's next version.
"""

from __future__ import annotations

from dataclasses import dataclass

from canobatch.errors import ConfigurationError

_MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
_DAYS = "SUN MON TUE WED THU FRI SAT".split()

_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    #: The number of the first name.
    first: int = 0


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, tuple(_MONTHS), 1),
    _Field("day of week", 0, 7, tuple(_DAYS)),
)


@dataclass(frozen=True, slots=True)
class CronFields:
    """A parsed expression.

    Attributes:
        text: Six fields of plain numbers, seconds first, for croniter.
        either_day: Whether the day of month or the day of week suffices: both are restricted.
        is_wildcard: Whether the minute or the hour begins with ``*``. Such an expression means a spacing, any
            other means times of day; cron treats the two differently where clocks are changed.
    """

    text: str
    either_day: bool
    is_wildcard: bool


def parse_cron(expression: str) -> CronFields:
    """Parse five fields, or six with seconds first, or a nickname such as ``@daily``.

    Raises:
        ConfigurationError: It names the field and what is wrong with it.
    """
    if not isinstance(expression, str):
        raise ConfigurationError(f"a cron expression must be a string, got {expression!r}")
    text = expression.strip()
    if text.startswith("@"):
        if text.lower() not in _NICKNAMES:
            raise ConfigurationError(f"cron {expression!r}: unknown nickname; known: {', '.join(_NICKNAMES)}")
        text = _NICKNAMES[text.lower()]
    fields = text.upper().split()
    if len(fields) == 5:
        fields.insert(0, "0")
    if len(fields) != 6:
        raise ConfigurationError(
            f"cron {expression!r} has {len(fields)} fields; write 5 (minute hour day month weekday) or 6, seconds first"
        )
    try:
        parsed = [_parse(field, text) for field, text in zip(_FIELDS, fields, strict=True)]
    except ConfigurationError as error:
        raise ConfigurationError(f"cron {expression!r}: {error}") from None
    _, minute, hour, day, _, weekday = fields
    either_day = not (day.startswith("*") or weekday.startswith("*"))
    if either_day and "#" in weekday:
        raise ConfigurationError(f"cron {expression!r}: a weekday with '#' needs '*' as day of month")
    is_wildcard = minute.startswith("*") or hour.startswith("*")
    return CronFields(" ".join(parsed), either_day, is_wildcard)


def _parse(field: _Field, text: str) -> str:
    """Return a field as ``*`` or a list of numbers, and what croniter alone understands as it is."""
    if text == "*":
        return text
    numbers: set[int] = set()
    others = []
    for term in text.split(","):
        if field.name == "day of month" and term == "L":
            others.append(term)
        elif field.name == "day of week" and "#" in term:
            others.append(_nth_weekday(field, term))
        else:
            numbers.update(_range(field, term))
    if field.name == "day of week":
        if others and numbers:
            raise ConfigurationError(f"day of week {text!r} mixes weekdays with and without '#'")
        numbers = {number % 7 for number in numbers}
    return ",".join([*map(str, sorted(numbers)), *others])


def _range(field: _Field, term: str) -> range:
    base, slash, step_text = term.partition("/")
    step = 1
    if slash:
        if not (step_text.isdecimal() and int(step_text) > 0):
            raise ConfigurationError(f"{field.name} {term!r}: a step must be a whole number above 0")
        step = int(step_text)
    if base == "*":
        low, high = field.low, field.high
    else:
        first, dash, last = base.partition("-")
        low = _number(field, first, term)
        high = _number(field, last, term) if dash else (field.high if slash else low)
    if high < low:
        raise ConfigurationError(
            f"{field.name} {term!r} runs backwards; write it as two, such as {low}-{field.high},{field.low}-{high}"
        )
    return range(low, high + 1, step)


def _number(field: _Field, text: str, term: str) -> int:
    if text in field.names:
        return field.names.index(text) + field.first
    if not (text.isascii() and text.isdecimal()):
        hint = f" or a name such as {field.names[0]}" if field.names else ""
        raise ConfigurationError(f"{field.name} {term!r}: {text!r} is not a number{hint}")
    number = int(text)
    if not field.low <= number <= field.high:
        raise ConfigurationError(f"{field.name} {term!r}: {number} is not within {field.low}-{field.high}")
    return number


def _nth_weekday(field: _Field, term: str) -> str:
    day, _, nth = term.partition("#")
    if nth not in set("12345"):
        raise ConfigurationError(f"{field.name} {term!r}: after '#' comes which one of the month, 1 to 5")
    return f"{_number(field, day, term) % 7}#{nth}"
