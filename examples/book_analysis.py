"""Which prepositions do whole books use? A map-reduce on two levels.

Level 2: each batch of books is one run of the workflow below; all runs share one pool of workers.
Level 1: a run fetches its books (split 1), analyses them (split 2) and sums them up.
At the end one reduce over all batches ranks the books.

The analysis joins at 75 %: a batch goes on without a book that is missing or too short. When nothing is
missing, that same join cuts the slowest book short, so a third split picks up what was cut, and the
result does not depend on which book that was.

    python examples/book_analysis.py                  # books that it makes itself
    python examples/book_analysis.py --books DIR      # DIR/index.json and the files it names
    python examples/book_analysis.py --download       # four books of Project Gutenberg
    python examples/book_analysis.py --scheduled      # each batch is a flow of one scheduler
    python examples/book_analysis.py --journal DIR    # killed and called again, it goes on where it was
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import statistics
import struct
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from http.client import HTTPException
from pathlib import Path
from typing import Any

from canobatch import (
    BranchResult,
    CanobatchError,
    JoinConfig,
    JoinError,
    JoinStrategy,
    Run,
    TaskContext,
    WorkerPool,
    Workflow,
)
from canobatch.errors import RunNotFoundError
from canobatch.journal import Journal, SqliteJournal
from canobatch.scheduler import Scheduler

PREPOSITIONS = tuple(
    "about above across after against along among around at before behind below beneath beside between beyond by "
    "down during for from in into near of off on over through to toward under up with within".split()
)
BATCH_SIZE = 4
SHORTEST = 1000  # bytes
ENOUGH = 0.75  # of the books of a batch


# ---------------------------------------------------------------- the rule


def analyse(text: str) -> dict[str, Any]:
    """Count the words of ``text`` and say which prepositions occur.

    A word is what is left of a piece of lower-cased text between white space when everything that is not
    a letter is stripped from both its ends. Stripping is done once per distinct piece, not once per word.
    """
    pieces = Counter(text.lower().split())
    unclean = [piece for piece in pieces if not piece.isalpha()]
    marks = "".join(char for char in set("".join(unclean)) if not char.isalpha())
    words = {piece: piece.strip(marks) for piece in unclean}
    total = pieces.total() - sum(pieces[piece] for piece, word in words.items() if not word)
    present = [word for word in PREPOSITIONS if word in pieces]
    found = sorted({*present, *words.values()}.intersection(PREPOSITIONS))
    return {"total_words": total, "preposition_count": len(found), "unique_prepositions": found}


# ---------------------------------------------------------------- where books come from


class NoNetworkError(Exception):
    """A book could not be fetched, whichever it is."""


@dataclass(frozen=True)
class Book:
    """A book that can be read, once and anywhere."""

    id: int
    title: str

    def read(self) -> bytes:
        """Return the whole text in UTF-8, or raise `OSError` when there is no such book."""
        raise NotImplementedError


@dataclass(frozen=True)
class FileBook(Book):
    """A file."""

    path: str

    def read(self) -> bytes:
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class WebBook(Book):
    """A book of Project Gutenberg."""

    def read(self) -> bytes:
        url = f"https://www.gutenberg.org/cache/epub/{self.id}/pg{self.id}.txt"
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            raise FileNotFoundError(f"{url}: {error}") from None
        except (OSError, HTTPException) as error:
            raise NoNetworkError(f"cannot fetch {url}: {getattr(error, 'reason', error)}") from None


@dataclass(frozen=True)
class MadeBook(Book):
    """Prose without meaning: every time and everywhere the same."""

    size: int

    def read(self) -> bytes:
        known = [word for rank, word in enumerate(PREPOSITIONS) if (rank + 3 * self.id) % (4 + self.id % 9)]
        syllables = [head + tail for head in "bdfgklmnprstvw" for tail in ("a", "e", "i", "o", "u", "ay")]
        invented = (first + second for first in syllables for second in syllables)
        # The commonest words first, as in a language: a word of rank r has about 1 / r of all places.
        words = enumerate(itertools.chain(known, ["—", "1872", "don't", "to-day"], invented))
        places = (word for rank, word in words for _ in range(1 + 9000 // (rank + 8)))
        marks = itertools.cycle(["{}"] * 12 + ["{},", "{}.", "“{}”", "({})"])
        table = [mark.format(word) for mark, word in zip(marks, places, strict=False)]
        count = self.size // 6
        draws = struct.unpack(f"<{count}H", hashlib.shake_128(f"book {self.id}".encode()).digest(2 * count))
        prose = [table[draw % len(table)] for draw in draws]
        lines = [" ".join(prose[at : at + 12]).capitalize() for at in range(0, count, 12)]
        text = ("\r\n" if self.id % 3 == 0 else "\n").join(lines)
        return text.encode("utf-8-sig" if self.id % 4 == 0 else "utf-8")


def made_books() -> list[Book]:
    """Return twelve books of 40 KB to 1.2 MB."""
    sizes = {
        "A Lamp above the Harbour": 760_000, "Beneath the Salt Road": 170_000, "The Clockmaker's Orchard": 440_000,
        "Letters from a Winter Island": 610_000, "The Long Way to Aldermoor": 1_200_000, "Eleven Doors": 620_000,
        "A House without a Map": 870_000, "The Weather Collector": 460_000, "Between Two Tides": 1_050_000,
        "Small Hours in Varn": 160_000, "The Ferryman's Ledger": 180_000, "On the Keeping of Bees": 40_000,
    }  # fmt: skip
    return [MadeBook(number, title, size) for number, (title, size) in enumerate(sizes.items(), 1)]


def books_in(directory: Path) -> list[Book]:
    """Return the books that ``directory/index.json`` lists."""
    entries = json.loads((directory / "index.json").read_text("utf-8"))
    return [FileBook(entry["id"], entry["title"], str(directory / entry["file"])) for entry in entries]


def web_books() -> list[Book]:
    """Return four well-known books of Project Gutenberg."""
    titles = {
        1342: "Pride and Prejudice", 11: "Alice's Adventures in Wonderland",
        2701: "Moby Dick; Or, The Whale", 76: "Adventures of Huckleberry Finn",
    }  # fmt: skip
    return [WebBook(number, title) for number, title in titles.items()]


# ---------------------------------------------------------------- level 1: one batch


class S(Enum):
    """The states of a batch."""

    DOWNLOAD = auto()
    ANALYSE = auto()
    CATCH_UP = auto()
    SUMMARISE = auto()
    COMPLETE = auto()
    INCOMPLETE = auto()


@dataclass(frozen=True)
class Batch:
    """The parameters of a run."""

    name: str
    books: tuple[Book, ...]


def batch_books(ctx: TaskContext) -> Sequence[Book]:
    """Return what the first two splits fan out over."""
    return ctx.params.books  # type: ignore[no-any-return]


def cut_books(ctx: TaskContext) -> list[Book]:
    """Return the books that the join of the analysis cut short."""
    return [ctx.params.books[branch.index] for branch in ctx.split(S.ANALYSE).cancelled]


def download(ctx: TaskContext, book: Book) -> bool:
    """Put the book into the store. A missing one does not fail the batch here, but its analysis later."""
    try:
        ctx.store.put(f"text_{book.id}", book.read())
    except OSError:
        return False
    return True


def analyse_book(ctx: TaskContext, book: Book) -> dict[str, Any]:
    """Analyse one book of the store."""
    raw = ctx.store.get(f"text_{book.id}", None)
    if raw is None:
        raise LookupError(f"{book.title} is missing")
    if len(raw) < SHORTEST:
        raise ValueError(f"{book.title} is too short: {len(raw)} of at least {SHORTEST} bytes")
    return {"id": book.id, "title": book.title, "batch": ctx.params.name, **analyse(raw.decode("utf-8-sig"))}


def reason(branch: BranchResult) -> str:
    """Return why a branch has no value."""
    if branch.error is None:
        return "not done in time"
    return str(branch.error.__cause__ or branch.error)


def summarise(ctx: TaskContext) -> S:
    """Sum the batch up, in the order of its books."""
    outcomes = dict(zip(ctx.params.books, ctx.split(S.ANALYSE), strict=True))
    outcomes.update(zip(cut_books(ctx), ctx.split(S.CATCH_UP), strict=True))
    books = [branch.value for branch in outcomes.values() if branch.status == "succeeded"]
    failed = [
        {"id": book.id, "title": book.title, "error": reason(branch)}
        for book, branch in outcomes.items()
        if branch.status != "succeeded"
    ]
    final = S.COMPLETE if len(books) >= ENOUGH * len(outcomes) else S.INCOMPLETE
    summary = {"batch": ctx.params.name, "state": final.name, **figures(books), "failed": failed}
    ctx.store.put("books", books)
    ctx.store.put("summary", summary)
    return final


def batch_workflow(journal: Journal | None = None) -> Workflow:
    """Return what is done with a batch; with a journal, a run that was killed can be resumed."""
    return (
        Workflow("book batch", params=Batch, journal=journal)
        .register_map(S.DOWNLOAD, download, batch_books, JoinConfig(JoinStrategy.all(), S.ANALYSE, timeout=120))
        .register_map(
            S.ANALYSE,
            analyse_book,
            batch_books,
            JoinConfig(JoinStrategy.percentage(ENOUGH), S.CATCH_UP, timeout=60, on_failure=S.CATCH_UP),
        )
        .register_map(
            S.CATCH_UP,
            analyse_book,
            cut_books,
            JoinConfig(JoinStrategy.all(), S.SUMMARISE, timeout=60, on_failure=S.SUMMARISE),
        )
        .register(S.SUMMARISE, summarise)
        .add_exit_states([S.COMPLETE, S.INCOMPLETE])
    )


workflow = batch_workflow()


# ---------------------------------------------------------------- level 2: all batches


def figures(books: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a batch, or of all batches."""
    return {
        "total_books": len(books),
        "total_words": sum(book["total_words"] for book in books),
        "average_prepositions": statistics.fmean(b["preposition_count"] for b in books) if books else 0.0,
        "total_unique_prepositions": len({word for book in books for word in book["unique_prepositions"]}),
    }


def ranked(books: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the books, most prepositions first; ties by title."""
    return sorted(books, key=lambda book: (-book["preposition_count"], book["title"]))


def follow(runs: Sequence[Run]) -> None:
    """Wait for all runs; on a terminal, show where they are."""
    is_live = sys.stderr.isatty()
    for run in runs:
        while is_live:
            states = Counter(other.report().state.name for other in runs)
            line = ", ".join(f"{count} {name}" for name, count in states.items())
            print(f"\r\x1b[Kbatches: {line}", end="", file=sys.stderr, flush=True)
            with contextlib.suppress(TimeoutError):
                run.wait(timeout=0.1)
                break
        run.wait()
    if is_live:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def start(workflow: Workflow, batch: Batch, pool: WorkerPool | None) -> Run:
    """Start the run of a batch, or go on with the one that the journal has of the same books."""
    if not workflow.has_journal:
        return workflow.start(S.DOWNLOAD, pool=pool, params=batch)
    run_id = f"{batch.name}-{hashlib.sha256(repr(batch).encode()).hexdigest()[:12]}"
    try:
        return workflow.start_resume(run_id, pool=pool)
    except RunNotFoundError:
        return workflow.start(S.DOWNLOAD, pool=pool, run_id=run_id, params=batch)


def run_side_by_side(workflow: Workflow, batches: Sequence[Batch], pool: WorkerPool | None) -> list[Run]:
    """Run all batches; they share the workers."""
    runs = [start(workflow, batch, pool) for batch in batches]
    follow(runs)
    return runs


def run_scheduled(workflow: Workflow, batches: Sequence[Batch], pool: WorkerPool | None) -> list[Run]:
    """Do the same with a manual flow for each batch: a batch could be run again while the others go on."""
    scheduler = Scheduler(pool=pool)
    for batch in batches:
        scheduler.manual(batch.name, workflow, S.DOWNLOAD, params=batch)
    with scheduler.start() as running:
        runs = [running.trigger(flow.id) for flow in running.list()]
        follow(runs)
    return runs


def analyse_library(
    library: Sequence[Book],
    pool: WorkerPool | None = None,
    *,
    is_scheduled: bool = False,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Run all batches and reduce what they found."""
    batches = [
        Batch(f"batch-{number}", tuple(library[at : at + BATCH_SIZE]))
        for number, at in enumerate(range(0, len(library), BATCH_SIZE), 1)
    ]
    run_all = run_scheduled if is_scheduled else run_side_by_side
    runs = run_all(batch_workflow(journal) if journal else workflow, batches, pool)
    books = [book for run in runs for book in run.store.get("books")]
    ranking = [book["title"] for book in ranked(books)]
    return {
        "books": books,
        "batches": [run.store.get("summary") for run in runs],
        "statistics": {
            "total_batches": len(batches),
            **figures(books),
            "ranking": ranking,
            "most_diverse": ranking[0] if ranking else None,
            "least_diverse": ranking[-1] if ranking else None,
        },
    }


def show(report: dict[str, Any]) -> None:
    """Print the report for people."""
    for batch in report["batches"]:
        print(
            f"{batch['batch']}: {batch['total_books']} books, {batch['average_prepositions']:.1f} prepositions "
            f"on average, {batch['total_unique_prepositions']} in all, {batch['state'].lower()}"
        )
        for book in batch["failed"]:
            print(f"  left out: {book['error']}")
    totals = report["statistics"]
    print("\nrank  prepositions    words  book")
    for rank, book in enumerate(ranked(report["books"]), 1):
        print(f"{rank:4}  {book['preposition_count']:12}  {book['total_words']:7}  {book['title']} [{book['batch']}]")
    print(
        f"\n{totals['total_books']} books in {totals['total_batches']} batches: {totals['total_words']} words, "
        f"{totals['total_unique_prepositions']} of {len(PREPOSITIONS)} prepositions"
    )


def at_least_one(text: str) -> int:
    """Return ``text`` as a number of workers."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def fail(text: str) -> int:
    """Say why in one line; return the exit code."""
    print(f"book_analysis: {text.splitlines()[0]}", file=sys.stderr)
    return 1


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Which prepositions do whole books use?")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--books", type=Path, metavar="DIR", help="books in DIR/index.json; default: made by itself")
    source.add_argument("--download", action="store_true", help="fetch four books of Project Gutenberg")
    parser.add_argument("--workers", type=at_least_one, metavar="N", help="default: one per core")
    parser.add_argument("--scheduled", action="store_true", help="run the batches as flows of a scheduler")
    parser.add_argument("--journal", type=Path, metavar="DIR", help="record the runs; go on with those DIR has")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    try:
        library = web_books() if args.download else books_in(args.books) if args.books else made_books()
    except (OSError, KeyError, TypeError, ValueError) as error:
        return fail(f"cannot read the list of books: {type(error).__name__}: {error}")
    try:
        with WorkerPool(args.workers) if args.workers else contextlib.nullcontext() as pool:
            journal = SqliteJournal(args.journal) if args.journal else None
            report = analyse_library(library, pool, is_scheduled=args.scheduled, journal=journal)
    except JoinError as error:
        return fail(reason(error.result.errors[0]) if error.result.errors else str(error))
    except CanobatchError as error:
        return fail(str(error))
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
