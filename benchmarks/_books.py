"""The books that every side of the book benchmark reads, and what is done with each."""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REAL_BOOKS = ROOT.parent / "shared" / "books"


def analyse_file(path: str) -> dict[str, Any]:
    """Analyse one book as the example does."""
    example = importlib.import_module("examples.book_analysis")
    text = Path(path).read_bytes().decode("utf-8-sig")
    analysis: dict[str, Any] = example.analyse(text)
    return analysis


def words_in(analyses: list[dict[str, Any]]) -> float:
    """Return the number of words of all books: the proof that all were analysed."""
    return float(sum(analysis["total_words"] for analysis in analyses))


@contextmanager
def library(copies: int) -> Iterator[list[str]]:
    """Give the paths of all books, each ``copies`` times, longest first: real books, else those the example makes."""
    if (REAL_BOOKS / "index.json").exists():
        entries = json.loads((REAL_BOOKS / "index.json").read_text("utf-8"))
        yield _longest_first([REAL_BOOKS / entry["file"] for entry in entries], copies)
        return
    directory = Path(tempfile.mkdtemp(prefix="benchmark-books-"))
    try:
        paths = []
        for book in importlib.import_module("examples.book_analysis").made_books():
            paths.append(directory / f"{book.id}.txt")
            paths[-1].write_bytes(book.read())
        yield _longest_first(paths, copies)
    finally:
        shutil.rmtree(directory)


def _longest_first(paths: list[Path], copies: int) -> list[str]:
    return [str(path) for path in sorted(paths, key=lambda path: -path.stat().st_size) for _ in range(copies)]


def evenly(paths: list[str], parts: int) -> list[list[str]]:
    """Share the books out so that every part has about the same number of bytes."""
    shares: list[list[str]] = [[] for _ in range(parts)]
    sizes = [0] * parts
    for path in paths:
        least = sizes.index(min(sizes))
        shares[least].append(path)
        sizes[least] += Path(path).stat().st_size
    return shares
