"""Typed parameters out of text."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path

import pytest

from canobatch.cli.params import convert, fields_of, free, parse_params, seconds, size
from canobatch.errors import ConfigurationError


class Colour(Enum):
    RED = 1
    DARK_BLUE = "navy"


@dataclass
class Inner:
    a: int
    b: str = "x"


@dataclass
class Params:
    day: date
    n: int = 3
    rate: float | None = None
    colours: list[Colour] = field(default_factory=list, metadata={"help": "Which ones."})


@pytest.mark.parametrize(
    ("kind", "texts", "value"),
    [
        (int, ["3"], 3),
        (int, ["007"], 7),
        (int, ["0x10"], 16),
        (int, ["1_000"], 1000),
        (int, ["-5"], -5),
        (float, ["1e3"], 1000.0),
        (bool, ["Yes"], True),
        (bool, ["0"], False),
        (str, ["3"], "3"),
        (str, [""], ""),
        (str, ["a=b"], "a=b"),
        (bytes, ["é"], "é".encode()),
        (Path, ["/a b"], Path("/a b")),
        (Decimal, ["1.10"], Decimal("1.10")),
        (date, ["2026-11-20"], date(2026, 11, 20)),
        (datetime, ["2026-11-20T01:02"], datetime(2026, 11, 20, 1, 2)),  # noqa: DTZ001 - as typed  # noqa: DTZ001
        (timedelta, ["1m30s"], timedelta(seconds=90)),
        (Colour, ["RED"], Colour.RED),
        (Colour, ["Colour.RED"], Colour.RED),
        (Colour, ["dark_blue"], Colour.DARK_BLUE),
        (Colour, ["navy"], Colour.DARK_BLUE),
        (typing.Literal["a", 3], ["3"], 3),
        (int | None, ["none"], None),
        (int | str, ["3"], 3),
        (str | int, ["3"], 3),
        (int | str, ["x"], "x"),
        (list[int], ["1", "2"], [1, 2]),
        (list[int], ["[1, 2]"], [1, 2]),
        (list[int] | None, ["1"], [1]),
        (list[int] | None, ["none"], None),
        (set[str], ["a", "a"], {"a"}),
        (tuple[int, str], ["1", "2"], (1, "2")),
        (tuple[int, ...], ["1", "2", "3"], (1, 2, 3)),
        (dict[str, float], ['{"a": 1}'], {"a": 1.0}),
        (Inner, ['{"a": 1}'], Inner(1)),
        (list[Inner], ['[{"a": 1}, {"a": 2, "b": "y"}]'], [Inner(1), Inner(2, "y")]),
        (typing.Any, ["[1]"], [1]),
        (typing.Annotated[int, "even"], ["4"], 4),
    ],
)
def test_text_becomes_a_value_of_the_type(kind, texts, value):
    """What is typed on a command line becomes exactly what the annotation says."""
    found = convert(kind, texts)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (int, ["1.5"]),
        (int, ["x"]),
        (bool, ["maybe"]),
        (date, ["20.11.2026"]),
        (Colour, ["green"]),
        (typing.Literal["a"], ["b"]),
        (int | None, ["x"]),
        (list[int], ["a"]),
        (list[int], ['["a"]']),
        (tuple[int, str], ["1"]),
        (dict[str, int], ["[]"]),
        (dict[str, int], ["{"]),
        (Inner, ['{"c": 1}']),
        (Inner, ["{}"]),
        (timedelta, ["5 apples"]),
    ],
)
def test_text_that_does_not_fit_is_refused(kind, texts):
    """A value of another type is an error, never a guess."""
    with pytest.raises((ValueError, TypeError)):
        convert(kind, texts)


def test_all_problems_are_told_at_once():
    """Unknown names, missing ones and wrong values are listed together, with what may have been meant."""
    with pytest.raises(ConfigurationError) as caught:
        parse_params(Params, ["dy=2026-01-01", "n=x", "colours=red", "colours=gren", "nonsense"])
    text = str(caught.value)
    assert "did you mean day?" in text
    assert "n='x' is not a whole number" in text
    assert "choose RED, DARK_BLUE" in text
    assert "'nonsense' is not name=value" in text
    assert "day is missing; give -p day=... (a date)" in text
    assert len(caught.value.problems) == 5


def test_defaults_are_the_dataclass_s_own():
    """What is not given is left to the dataclass."""
    assert parse_params(Params, ["day=2026-11-20"]) == Params(date(2026, 11, 20))


def test_a_check_of_the_dataclass_refuses_too():
    """An error of __post_init__ is an error of the parameters."""

    @dataclass
    class Positive:
        n: int

        def __post_init__(self):
            if self.n < 0:
                raise ValueError("n must be positive")

    with pytest.raises(ConfigurationError, match="Positive refused them: n must be positive"):
        parse_params(Positive, ["n=-1"])


def test_without_a_dataclass_json_is_json_and_the_rest_is_text():
    """Numbers and lists are what they look like, dates and zip codes stay text."""
    given = ["n=3", "x=[1, null]", "day=2026-11-20", "zip=01234", 'version="1.10"', "empty="]
    assert parse_params(None, given) == {
        "n": 3, "x": [1, None], "day": "2026-11-20", "zip": "01234", "version": "1.10", "empty": "",
    }  # fmt: skip
    assert free("true") is True


def test_fields_say_what_they_are():
    """A field has its type, its default and its help."""
    day, n, _, colours = fields_of(Params)
    assert day.is_required
    assert (n.type, n.is_required, n.default) == (int, False, 3)
    assert (colours.type, colours.is_required, colours.help) == (list[Colour], False, "Which ones.")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("1e2", 100),
        ("90s", 90),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("2d", 172800),
    ],
)
def test_durations(text, value):
    """A duration is seconds, or numbers with units."""
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "x", "5 apples", "1m30", "-", "1.2.3", "nan"])
def test_what_is_no_duration(text):
    """Anything else is an error."""
    with pytest.raises(ValueError):  # noqa: PT011 - any will do
        seconds(text)


@pytest.mark.parametrize(
    ("text", "value"), [("100", 100), ("1k", 1024), ("512M", 512 << 20), ("1.5GiB", 3 << 29), ("2GB", 2 << 30)]
)
def test_sizes(text, value):
    """A size is bytes, or a number with a unit of 1024."""
    assert size(text) == value
    with pytest.raises(ValueError):  # noqa: PT011
        size(f"{text}x")
