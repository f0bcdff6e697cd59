"""How facts are shown: durations, tables, progress."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from canobatch.cli import text
from canobatch.cli.items import Items, Output
from canobatch.cli.view import LineView, describe
from canobatch.join import BranchStatus
from canobatch.observe import RunProgress

BEGAN = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0.0004, "0 ms"),
        (0.25, "250 ms"),
        (9.96, "10.0 s"),
        (75, "1m15s"),
        (7500, "2h05m"),
        (200_000, "2d07h"),
    ],
)
def test_durations_for_people(seconds, words):
    """Two units at most."""
    assert text.duration(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(None, ""), (5, "5 B"), (1234, "1.2 kB"), (812_000_000, "812 MB")])
def test_sizes_for_people(count, words):
    """Powers of ten, as disks and networks count."""
    assert text.size(count) == words


def test_names_cannot_break_a_line():
    """Control characters and ten thousand letters do not reach the terminal."""
    assert text.one_line("a\n\x1b[2Jb") == "a  [2Jb"
    assert len(text.one_line("x" * 10_000)) == 60
    assert text.one_line("x" * 10_000).endswith("…")


def test_tables_are_aligned_by_what_is_seen():
    """Wide letters take two columns, colours none; empty columns are left out."""
    lines = text.table(("a", "b", "c"), [("日本", "", "\x1b[31m1\x1b[0m"), ("x", "", "22")], right=("c",)).splitlines()
    assert [text.click.unstyle(line) for line in lines] == ["a      c", "日本   1", "x     22"]


def test_tables_fit_the_terminal():
    """The widest columns give way, but not the first, nor below what can be read; what is cut ends with dots."""
    row = ("20261121-120030-f644cf50", "\x1b[31mfailed\x1b[0m", "x" * 100, "日本" * 10)
    lines = text.table(("run", "status", "error", "note"), [row], room=70).splitlines()
    assert text.width(lines[1]) == 70
    assert row[0] in lines[1]
    assert row[1] in lines[1]
    assert lines[1].count("…") == 2
    narrow = text.table(("run", "status", "error", "note"), [row], room=10).splitlines()[1]
    assert narrow.startswith(row[0])
    assert text.width(narrow) < 60


def event(kind, state="s", branch=None, detail=None):
    return SimpleNamespace(kind=kind, state=state, branch=branch, detail=detail, time=BEGAN)


def test_progress_is_gathered_from_events():
    """States, what became of branches, retries and what a task says of itself."""
    progress = RunProgress()
    progress.on_event(event("state_entered", "load"))
    progress.on_event(event("progress", "load", None, (3, 10, "reading")))
    now = BEGAN.timestamp() + 5
    assert describe(progress.visits[-1], now) == ["3/10 reading"]
    progress.on_event(event("state_entered", "many"))
    progress.on_event(event("split_started", "many", None, 10))
    for status in (BranchStatus.SUCCEEDED, BranchStatus.SUCCEEDED, BranchStatus.FAILED, BranchStatus.LOST):
        progress.on_event(event("branch_finished", "many", 0, SimpleNamespace(status=status)))
    progress.on_event(event("branch_killed", "many", 5, SimpleNamespace(status=BranchStatus.CANCELLED)))
    progress.on_event(event("retry", "many", 6))
    visit = progress.visits[-1]
    assert (visit.split.done, visit.split.failed, visit.split.killed) == (2, 2, 1)
    assert describe(progress.visits[0], now) == ["0 ms"]
    assert describe(visit, now) == ["4/10", "2 failed", "1 killed", "48.0/min", "0:07 left", "1 retry"]
    assert visit.extent == (5, 10)


def test_a_long_way_is_not_kept():
    """A run that goes through a million states shows the last ones."""
    progress = RunProgress()
    for number in range(1000):
        progress.on_event(event("state_entered", number))
    assert (progress.count, len(progress.visits), progress.visits[-1].state) == (1000, 8, "999")


def test_lines_come_at_once_and_then_now_and_then(capsys):
    """One line for the first state, no other before its time."""
    progress = RunProgress()
    view = LineView(progress, SimpleNamespace(workers=()))
    view.update()
    assert capsys.readouterr().err == ""
    progress.on_event(event("state_entered", "load"))
    view.update()
    view.update()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_lines_are_read_whatever_they_end_with(tmp_path):
    """With or without a newline at the end, Windows too; bytes that are no UTF-8 come back as they were."""
    path = tmp_path / "lines"
    path.write_bytes(b"a\r\n\nb\xff\nlast")
    with path.open("rb") as stream:
        items = Items(stream, is_json=False)
        read = list(items)
    assert [item.encode("utf-8", "surrogateescape") for item in read] == [b"a", b"", b"b\xff", b"last"]
    assert items.ended(0) == "a"


@pytest.mark.parametrize(
    ("value", "is_json", "written"),
    [
        ("text", False, "text\n"),
        ("text", True, '"text"\n'),
        (None, False, ""),
        (None, True, "null\n"),
        ({"ü": (1, 2)}, False, '{"ü": [1, 2]}\n'),
        ({3}, False, "[3]\n"),
        (SimpleNamespace(tolist=lambda: [1]), False, "[1]\n"),
        (1 + 2j, False, '"(1+2j)"\n'),
    ],
)
def test_results_are_written_as_text_or_json(value, is_json, written, tmp_path):
    """Text as it is, anything else as JSON, None not at all."""
    with (tmp_path / "out").open("w") as stream:
        assert Output(stream, is_json=is_json).write(4, value) == 5
    assert (tmp_path / "out").read_text() == written
