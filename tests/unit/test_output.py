"""The file of what a worker printed, and its index, as read while it is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from canobatch import output
from canobatch.output import OutputFile, Span, follow, spans


@dataclass
class Printer:
    """A worker's file, and what an attempt writes to it."""

    file: OutputFile

    def attempt(self, branch, text, attempt=1, at=0.0):
        self.file.begin(branch, attempt, at)
        os.write(self.file.fd, text)
        return self.file.end()


@pytest.fixture
def printer(tmp_path):
    """A worker's file in visit 1 of state S."""
    file = OutputFile(str(tmp_path), "w")
    file.visit(1, "S")
    yield Printer(file)
    file.close()


def texts(directory):
    """What each attempt printed: (state, visit, branch, attempt) -> text."""
    return {(s.state, s.visit, s.branch, s.attempt): s.read() for s in spans(directory)}


def test_each_attempt_has_its_own(printer, tmp_path):
    """Spans are in the order of visit, branch and attempt; what printed nothing has none."""
    assert printer.attempt(2, b"two\n", attempt=2) == ("w", 0, 4)
    assert printer.attempt(None, b"") is None
    assert printer.attempt(2, b"one\n", attempt=1) == ("w", 4, 8)
    assert printer.attempt(0, b"zero\n") == ("w", 8, 13)
    printer.file.visit(2, "T")
    printer.attempt(None, b"later")
    assert texts(tmp_path) == {
        ("S", 1, 0, 1): b"zero\n",
        ("S", 1, 2, 1): b"one\n",
        ("S", 1, 2, 2): b"two\n",
        ("T", 2, None, 1): b"later",
    }
    assert [span.branch for span in spans(tmp_path)] == [0, 2, 2, None]


def test_what_runs_is_read_too(printer, tmp_path):
    """A span without an end goes up to the end of the file; so does that of a killed attempt."""
    printer.attempt(0, b"done\n")
    printer.file.begin(1, 3, 5.0)
    os.write(printer.file.fd, b"half")
    (_, now) = spans(tmp_path)
    assert now == Span("S", 1, 1, 3, tmp_path / "w.out", 5, None, 5.0)
    assert now.read() == b"half"
    os.write(printer.file.fd, b" more")
    assert now.read() == b"half more"
    printer.file.end()
    assert [span.end for span in spans(tmp_path)] == [5, 14]


def test_a_line_cut_by_a_kill_is_no_line(printer, tmp_path):
    """What a worker was writing to the index when it was killed is not read."""
    printer.attempt(0, b"done\n")
    with (tmp_path / "w.idx").open("ab") as file:
        file.write(b"[1,1,1,5,")
    assert list(texts(tmp_path)) == [("S", 1, 0, 1)]


def test_nothing_there_is_nothing(tmp_path):
    """A directory without files, or without itself, has no spans."""
    assert spans(tmp_path) == []
    assert spans(tmp_path / "missing") == []


def test_a_file_goes_on_where_it_was(printer, tmp_path):
    """A worker that comes back to a run appends to its file."""
    printer.attempt(0, b"first")
    again = OutputFile(str(tmp_path), "w")
    again.visit(2, "T")
    assert Printer(again).attempt(1, b"second") == ("w", 5, 11)
    again.close()
    assert texts(tmp_path) == {("S", 1, 0, 1): b"first", ("T", 2, 1, 1): b"second"}


def test_too_much_loses_its_middle(printer, tmp_path):
    """Beginning and end are kept, the disk is given back the rest, and offsets stay right."""
    head, tail = b"head\n".ljust(output.KEPT_HEAD, b"h"), b"\ntail".rjust(output.KEPT_TAIL, b"t")
    printer.attempt(0, head + bytes(30 << 20) + tail)
    printer.attempt(1, b"after")
    text = texts(tmp_path)
    if (tmp_path / "w.out").stat().st_size > 30 << 20:
        assert text["S", 1, 0, 1].startswith(b"head\n")
        assert text["S", 1, 0, 1].endswith(b"\ntail")
        assert b"bytes of output were left out]" in text["S", 1, 0, 1]
    assert len(text["S", 1, 0, 1]) < output.ATTEMPT_LIMIT + 20_000
    assert (tmp_path / "w.out").stat().st_blocks * 512 < output.ATTEMPT_LIMIT + 100_000
    assert text["S", 1, 1, 1] == b"after"


def test_without_holes_the_end_goes(printer, tmp_path, monkeypatch):
    """Where a file system keeps no holes, the beginning is what is kept."""
    monkeypatch.setattr(output, "punch", lambda *_: False)
    printer.attempt(0, b"head" + bytes(10 << 20))
    printer.attempt(1, b"after")
    text = texts(tmp_path)
    assert len(text["S", 1, 0, 1]) == output.KEPT_HEAD
    assert text["S", 1, 1, 1] == b"after"


def test_what_runs_is_trimmed_too(printer, tmp_path):
    """An attempt that prints on and on is trimmed from outside, and goes on."""
    printer.file.begin(0, 1, 0.0)
    os.write(printer.file.fd, b"head" + bytes(20 << 20))
    output.trim_run(tmp_path)
    assert (tmp_path / "w.out").stat().st_blocks * 512 < output.ATTEMPT_LIMIT + 100_000
    os.write(printer.file.fd, b"tail")
    printer.file.end()
    assert texts(tmp_path)["S", 1, 0, 1].endswith(b"tail")


def test_the_oldest_of_a_run_go_first(printer, tmp_path):
    """A run has a bound; what was printed last, and what runs, stays."""
    for branch in range(10):
        printer.attempt(branch, bytes([48 + branch]) * (1 << 20), at=float(branch))
    output.trim_run(tmp_path, limit=6 << 20)
    text = texts(tmp_path)
    assert (tmp_path / "w.out").stat().st_blocks * 512 <= 6 << 20
    assert text["S", 1, 9, 1] == b"9" * (1 << 20)
    assert len(text["S", 1, 0, 1]) < 10_000
    output.trim_run(tmp_path, limit=6 << 20)


def test_followers_see_all_once(printer, tmp_path):
    """Each byte comes once, with its attempt, whether it was printed before, meanwhile, or at the very end."""
    printer.attempt(0, b"early\n")
    steps = iter(
        [
            lambda: (printer.file.begin(1, 1, 0.0), os.write(printer.file.fd, b"one ")),
            lambda: os.write(printer.file.fd, b"two "),
            lambda: (os.write(printer.file.fd, b"three"), printer.file.end()),
            lambda: printer.attempt(2, b"late"),
        ]
    )
    seen: dict[int, bytes] = {}

    def is_over():
        step = next(steps, None)
        if step is not None:
            step()
        return step is None

    for span, piece in follow(tmp_path, is_over):
        seen[span.branch] = seen.get(span.branch, b"") + piece
    assert seen == {0: b"early\n", 1: b"one two three", 2: b"late"}


def test_followers_may_choose(printer, tmp_path):
    """Only what is wanted comes."""
    printer.attempt(0, b"no")
    printer.attempt(1, b"yes")
    assert [piece for _, piece in follow(tmp_path, lambda: True, lambda span: span.branch == 1)] == [b"yes"]


def test_files_of_silent_workers_go(printer, tmp_path):
    """A worker that printed nothing leaves no file; one that did, does."""
    silent = OutputFile(str(tmp_path), "silent")
    printer.attempt(0, b"loud")
    output.remove_empty(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["w.idx", "w.out"]
    assert silent.is_gone
    silent.close()


def test_files_are_the_users_own(printer, tmp_path):
    """What a task prints is nobody else's business."""
    assert {Path(tmp_path, name).stat().st_mode & 0o777 for name in os.listdir(tmp_path)} == {0o600}
