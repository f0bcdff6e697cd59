"""The pure rules of the book analysis: what a word is, which prepositions occur, and the books it makes itself."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "book_analysis.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("book_analysis_under_test", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def digest(text: bytes) -> str:
    """A short fingerprint."""
    return hashlib.sha256(text).hexdigest()[:16]


def plain_reading(text: str, prepositions: tuple[str, ...]) -> dict[str, Any]:
    """The rule read word by word, without any shortcut."""
    words = []
    for piece in text.lower().split():
        while piece and not piece[0].isalpha():
            piece = piece[1:]
        while piece and not piece[-1].isalpha():
            piece = piece[:-1]
        if piece:
            words.append(piece)
    found = sorted(set(words) & set(prepositions))
    return {"total_words": len(words), "preposition_count": len(found), "unique_prepositions": found}


@pytest.mark.parametrize(
    ("text", "words", "found"),
    [
        ("The cat sat on the mat with care. It was under the table.", 13, ["on", "under", "with"]),
        ("", 0, []),
        (" \r\n\t ", 0, []),
        ("1872 — *** 3.14", 0, []),
        ("ON, (Over) _up_ “with” 3by4 by-and-by", 6, ["by", "on", "over", "up", "with"]),
        ("in\r\nto\u00a0at\u2003of", 4, ["at", "in", "of", "to"]),
        ("\ufeffAbove the fold", 3, ["above"]),
        ("don't in-between upon insides", 4, []),
        ("ÀU NEAR été!", 3, ["near"]),
        ("up up up up.", 4, ["up"]),
    ],
)
def test_rule(example: ModuleType, text: str, words: int, found: list[str]) -> None:
    """A word is a lower-cased piece between white space with all non-letters stripped from both its ends."""
    assert example.analyse(text) == {
        "total_words": words,
        "preposition_count": len(found),
        "unique_prepositions": found,
    }


def test_there_are_35_prepositions(example: ModuleType) -> None:
    """The list of prepositions holds 35 different words."""
    assert len(set(example.PREPOSITIONS)) == len(example.PREPOSITIONS) == 35


def test_made_books_are_always_the_same(example: ModuleType) -> None:
    """The generated corpus has fixed bytes, the sizes of whole books, and the marks of real files."""
    corpus = {book.title: book.read() for book in example.made_books()}
    assert len(corpus) == 12
    assert min(map(len, corpus.values())) >= 40_000
    assert 1_200_000 <= max(map(len, corpus.values())) < 1_300_000
    assert any(text.startswith(b"\xef\xbb\xbf") for text in corpus.values())
    assert any(b"\r\n" in text for text in corpus.values())
    assert digest(corpus["On the Keeping of Bees"]) == "49cee60a61bbe579"
    assert digest(b"".join(corpus.values())) == "a9e3ecb2b4bc90f6"


def test_shortcuts_change_nothing(example: ModuleType) -> None:
    """The fast analysis of a whole book equals the rule read word by word."""
    for book in example.made_books()[-3:]:
        text = book.read().decode("utf-8-sig")
        assert example.analyse(text) == plain_reading(text, example.PREPOSITIONS)
