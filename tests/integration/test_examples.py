"""Every example, run as a user runs it: its exit code, its last line, its figures."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from ast import literal_eval
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from canobatch.journal import RunStatus, SqliteJournal
from tests.support.watch import await_that

if TYPE_CHECKING:
    from tests.conftest import RunScript, StartScript

RunExample = Callable[..., subprocess.CompletedProcess[str]]
OutputOf = Callable[..., str]
Report = dict[str, Any]

#: Gives the branches of the ad exchange time on a machine that is busy with other things.
UNHURRIED = ("--slow", "5")

EXAMPLES = Path(__file__).parents[2] / "examples"
PREPOSITIONS = set(
    "about above across after against along among around at before behind below beneath beside between beyond by "
    "down during for from in into near of off on over through to toward under up with within".split()
)


@pytest.fixture
def run_example(run_script: RunScript) -> RunExample:
    """Run an example to its end; it must leave no process behind."""

    def run(name: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
        return run_script(EXAMPLES / name, *args, env=env)

    return run


@pytest.fixture
def output_of(run_example: RunExample) -> OutputOf:
    """Run an example that must succeed and say nothing on stderr; return its output."""

    def output(name: str, *args: object) -> str:
        done = run_example(name, *args)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return output


@pytest.fixture
def books_report(output_of: OutputOf) -> Callable[..., Report]:
    """Run the book analysis and return its JSON object."""

    def report(*args: object) -> Report:
        found: Report = json.loads(output_of("book_analysis.py", "--json", *args))
        assert set(found) == {"books", "batches", "statistics"}
        return found

    return report


@pytest.fixture
def exchange(output_of: OutputOf) -> Callable[..., list[dict[str, Any]]]:
    """Run the ad exchange and return its answers without their times."""

    def answers(*args: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(output_of("ad_exchange.py", "--json", *args))
        assert all(each.pop("elapsed_ms") > 0 for each in found)
        return found

    return answers


def last_line(output: str) -> str:
    """The line by which an example is judged."""
    return output.splitlines()[-1]


def count(path: Path) -> tuple[int, list[str]]:
    """The words and prepositions of a file, by the plainest reading of the rule."""
    total, found = 0, set()
    for word in path.read_text("utf-8-sig").lower().split():
        letters = [at for at, char in enumerate(word) if char.isalpha()]
        if letters:
            total += 1
            found.add(word[letters[0] : letters[-1] + 1])
    return total, sorted(found & PREPOSITIONS)


# ---------------------------------------------------------------- the small ones


def test_quickstart(output_of: OutputOf) -> None:
    """The first script of the documentation counts six words and ends in its exit state."""
    assert output_of("quickstart.py").splitlines() == ["6", "final: DONE"]


def test_join_strategies(output_of: OutputOf) -> None:
    """Each strategy keeps as many branches as it needs, kills the rest, and the killed leave no trace."""
    output = output_of("join_strategies.py")
    assert last_line(output) == "6 strategies joined: 16 branches kept, 8 killed"
    traces = [line.partition("in the store: ")[2] for line in output.splitlines() if "joined after" in line]
    assert [len(literal_eval(trace)) for trace in traces] == [4, 1, 2, 3, 3, 3]


def test_queue_consumer(output_of: OutputOf) -> None:
    """A queue of 25 items is consumed in batches of at most seven, in its order."""
    *_, results, summary = output_of("queue_consumer.py").splitlines()
    first, last = (sum(n * n for n in range(number)) for number in (100, 124))
    assert results == f"first and last result: {first}, {last}"
    assert summary == "consumed 25 items in 4 batches"


def test_crash_and_resume(output_of: OutputOf) -> None:
    """A run that was killed at half of 60 branches keeps at least that half, and does the rest."""
    first, second, _, last = output_of("crash_and_resume.py").splitlines()
    assert first == "the first process ended with SIGKILL"
    assert second.startswith("run demo is interrupted; recorded: ")
    words = last.split()
    assert words[:3] == ["resumed", "to", "DONE:"]
    kept, done, again = int(words[3]), int(words[6]), int(words[8])
    assert kept >= 30
    assert kept + done == 60
    assert again <= done


def test_scheduled_etl(output_of: OutputOf) -> None:
    """Three runs of the pipeline, by a clock that is quick, load twelve orders each; the nightly one is known."""
    nightly, demo, other, summary = output_of("scheduled_etl.py", "--interval", "0.2").splitlines()
    assert nightly.count(":30 UTC") == 2
    runs = int(demo.removeprefix("demo: completed, ").removesuffix(" runs"))
    assert runs >= 3
    assert other == "nightly: idle, 0 runs"
    assert summary.startswith(f"{runs} runs loaded {12 * runs} orders worth ")


def test_scheduled_etl_served(start_script: StartScript) -> None:
    """With --serve it goes on until SIGTERM, and then comes to its end."""
    script = start_script(EXAMPLES / "scheduled_etl.py", "--serve", "--interval", "0.2")
    script.wait_for("serving 2 flows")
    script.process.send_signal(signal.SIGTERM)
    assert script.process.wait(60) == 0
    assert "orders worth" in last_line(script.stdout)
    assert script.survivors(within=3.0) == {}


def test_circuit_breaker(output_of: OutputOf) -> None:
    """Five calls fail, those after the fourth in a row are spared the service, and a trial finds it well again."""
    *answers, before, last, summary = output_of("circuit_breaker.py").splitlines()
    assert before == "from the cache:   20.2 (breaker open)"
    assert last == "from the service: 20.8 (breaker closed)"
    words = "8 calls for {} requests: 5 failed, the last one succeeded and left the breaker closed"
    assert summary == words.format(len(answers) + 2)


def test_rate_limited(output_of: OutputOf) -> None:
    """33 calls, eight at once and then forty a second, take 0.6 s at least; everything that was taken came back."""
    left, summary = output_of("rate_limited.py").splitlines()
    assert left == "left for this hour: 967 calls, 9901 words; free: 2"
    took = float(summary.split()[-7])
    assert summary == f"30 answers by 33 calls in {took:.2f} s, 3 of them made again"
    assert took >= 0.6


def test_worker_resources(output_of: OutputOf) -> None:
    """Three runs, and each worker has made its table once."""
    *workers, primes, summary = output_of("worker_resources.py").splitlines()
    assert 1 <= len(workers) <= 2
    assert primes == "primes up to 10000: 1229, up to 290000: 25224"
    assert summary == "87 lookups in 3 runs; tables made by each worker: 1"


def test_processing_models(output_of: OutputOf) -> None:
    """The tour goes through a state of each model, in their order."""
    output = output_of("processing_models.py")
    assert output.startswith("path: WAIT SETTLE PICK PARSE COMPARE PAGES FEED PUBLISH DONE\n")
    assert "refused readings: [40, 41]" in output
    assert last_line(output) == "DONE after 8 states"


def test_saga_payment(output_of: OutputOf) -> None:
    """Each order ends as it should, and the books say what is in effect."""
    assert output_of("saga_payment.py").splitlines() == [
        "lamp: done; the books say: charged, reserved, shipped",
        "chair: undone: there is no address to ship to; the books say: refunded, released",
        "table: failed and not undone: the bank takes back no 199.00; the books say: charged, released",
        "1 shipped, 1 undone, 1 to be seen to by hand",
    ]


def test_on_request(output_of: OutputOf) -> None:
    """Each request is a run with a store of its own; its exit state is the answer's status."""
    hello, blank, _, summary = output_of("on_request.py").splitlines()
    assert hello == """'Hello World From Cano': 200 {"words": 4, "upper": "HELLO WORLD FROM CANO"}"""
    assert blank == """'   ': 400 {"error": "the text is blank"}"""
    assert summary == "22 requests: 21 answered, 1 refused"


def test_etl_pipeline(output_of: OutputOf) -> None:
    """What is loaded is what was made, to the cent, in as many blocks as there are."""
    *months, summary = output_of("etl_pipeline.py", 25_000).splitlines()
    assert len(months) == 12
    assert summary.startswith("25000 orders in 3 blocks: ")
    assert summary.endswith("EUR, as expected")


# ---------------------------------------------------------------- ad exchange


def answer(winner: str | None, price: float, bids: int, final: str = "Complete") -> dict[str, Any]:
    """What the exchange should say."""
    creative = winner and f"creative_{winner}"
    return {
        "winner": winner, "winning_price": price, "creative": creative, "total_bids": bids, "final_state": final,
    }  # fmt: skip


def test_ad_exchange_is_always_won_by_the_same_bid(exchange: Callable[..., list[dict[str, Any]]]) -> None:
    """Of five bidders three are in time, and all three are scored, in every one of five requests."""
    assert exchange(*UNHURRIED, "--repeat", "5") == [answer("DSP-Global", 3.52, 3)] * 5


def test_ad_exchange_at_its_real_pace(exchange: Callable[..., list[dict[str, Any]]]) -> None:
    """The limits of 50 to 200 ms can be kept: not by every machine at every moment, but by this one, now and then."""
    assert answer("DSP-Global", 3.52, 3) in exchange("--repeat", "8")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--floor", "3.30"], answer("DSP-Global", 3.52, 2)),
        (["--floor", "3.40"], answer("DSP-Global", 3.52, 1)),
        (["--floor", "3.60"], answer(None, 0.0, 0)),
        (["--floor", "0.001"], answer(None, 0.0, 0)),
        (["--placement", ""], answer(None, 0.0, 0)),
        (["--outage", "context"], answer(None, 0.0, 0, "Rejected")),
        (["--outage", "tracking"], answer(None, 0.0, 0)),
    ],
    ids=["two bids", "one bid", "no fill", "no floor", "no placement", "context outage", "tracking outage"],
)
def test_ad_exchange_other_paths(
    exchange: Callable[..., list[dict[str, Any]]], args: list[str], expected: dict[str, Any]
) -> None:
    """The floor decides which bids count; no fill, an invalid request and an outage are answered, not raised."""
    assert exchange(*UNHURRIED, *args) == [expected]


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ([], "Start -> GatherContext -> RequestBids -> ScoreBids -> RunAuction -> TrackResults -> BuildResponse"),
        (
            ["--floor", "9"],
            "Start -> GatherContext -> RequestBids -> ScoreBids -> RunAuction -> ErrorTracking -> NoFill",
        ),
        (["--placement", ""], "Start -> InvalidResponse"),
        (["--outage", "context"], "Start -> GatherContext -> ErrorTracking -> NoFill"),
    ],
    ids=["won", "no fill", "invalid", "outage"],
)
def test_ad_exchange_path(output_of: OutputOf, args: list[str], path: str) -> None:
    """Errors, timeouts and auctions without a winner are transitions of the one run."""
    lines = output_of("ad_exchange.py", *UNHURRIED, *args).splitlines()
    assert lines[0].rpartition(" -> ")[0] == path
    if "RequestBids" in path:
        assert lines[1] == "bids: Split results: 3 succeeded, 0 failed, 2 cancelled"


# ---------------------------------------------------------------- book analysis


def test_made_books_give_the_same_report_twice(books_report: Callable[..., Report], output_of: OutputOf) -> None:
    """Twelve generated books in three batches: the same JSON object at every run, with any number of workers."""
    first, second = books_report(), books_report("--workers", "3")
    assert first == second
    assert [book["id"] for book in first["books"]] == list(range(1, 13))
    assert [batch["state"] for batch in first["batches"]] == ["COMPLETE"] * 3
    assert first["statistics"]["total_books"] == 12
    output = output_of("book_analysis.py")
    assert last_line(output) == (
        f"12 books in 3 batches: {first['statistics']['total_words']} words, "
        f"{first['statistics']['total_unique_prepositions']} of 35 prepositions"
    )


def test_books_analysed_by_flows_give_the_same_report(books_report: Callable[..., Report]) -> None:
    """Each batch as a manual flow of one scheduler, triggered, awaited and reduced: nothing else comes out."""
    assert books_report("--scheduled") == books_report()


def test_a_killed_analysis_of_books_goes_on(
    books_report: Callable[..., Report], start_script: StartScript, tmp_path: Path
) -> None:
    """With a journal the same call again gives the same report, also after a kill in its midst."""
    home = tmp_path / "home"
    script = start_script(EXAMPLES / "book_analysis.py", "--journal", home)
    journal = SqliteJournal(home)
    await_that(lambda: any(journal.run(run.run_id).visits[1:] for run in journal.runs()), "a batch should be fetched")
    script.process.kill()
    assert script.process.wait() == -signal.SIGKILL
    assert script.survivors(within=3.0) == {}
    assert books_report("--journal", home) == books_report() == books_report("--journal", home)
    assert [run.status for run in journal.runs()] == [RunStatus.COMPLETED] * 3


def test_rankings_break_ties_by_title(books_report: Callable[..., Report]) -> None:
    """Books with equally many prepositions are ranked by title."""
    report = books_report()
    books = sorted(report["books"], key=lambda book: (-book["preposition_count"], book["title"]))
    assert report["statistics"]["ranking"] == [book["title"] for book in books]
    counts = [book["preposition_count"] for book in books]
    assert len(set(counts)) < len(counts), "no tie to break"


def test_real_books_match_a_plain_count(books_report: Callable[..., Report], books_dir: Path | None) -> None:
    """Every real book, with its byte-order mark or its CRLF, gives the figures of a plain count."""
    if books_dir is None:
        pytest.skip("no whole books beside the repository")
    index = json.loads((books_dir / "index.json").read_text("utf-8"))
    report = books_report("--books", books_dir)
    assert [book["id"] for book in report["books"]] == [entry["id"] for entry in index]
    everything: set[str] = set()
    for entry, book in zip(index, report["books"], strict=True):
        total, found = count(books_dir / entry["file"])
        everything.update(found)
        assert book["title"] == entry["title"]
        assert (book["total_words"], book["preposition_count"]) == (total, len(found))
        assert book["unique_prepositions"] == found
    totals = report["statistics"]
    assert totals["total_words"] == sum(book["total_words"] for book in report["books"])
    assert totals["total_unique_prepositions"] == len(everything)
    assert [batch["total_books"] for batch in report["batches"]] == [4, 4, 4]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Eight small books of which the third is missing and the eighth is too short."""
    books = tmp_path / "library"
    books.mkdir()
    text = "The cat sat on the mat with care. It was under the table.\r\n"
    index = [{"id": n, "title": f"Book {n}", "file": f"{n}.txt"} for n in range(1, 9)]
    for entry in index[:2] + index[3:]:
        copies = 10 if entry["id"] == 8 else 20
        (books / str(entry["file"])).write_bytes(text.encode("utf-8-sig") * copies)
    (books / "index.json").write_text(json.dumps(index), "utf-8")
    return books


def test_missing_and_short_books_fail_alone(library: Path, books_report: Callable[..., Report]) -> None:
    """A missing and a too short book are left out and named; their batches and the program go on."""
    report = books_report("--books", library)
    assert [book["id"] for book in report["books"]] == [1, 2, 4, 5, 6, 7]
    assert {book["total_words"] for book in report["books"]} == {13 * 20}
    assert [batch["state"] for batch in report["batches"]] == ["COMPLETE", "COMPLETE"]
    failed = [failure for batch in report["batches"] for failure in batch["failed"]]
    assert [failure["id"] for failure in failed] == [3, 8]
    assert [failure["error"] for failure in failed] == [
        "Book 3 is missing",
        "Book 8 is too short: 620 of at least 1000 bytes",
    ]
    assert report == books_report("--books", library)


def test_batch_with_too_many_missing_books_is_incomplete(library: Path, books_report: Callable[..., Report]) -> None:
    """Under 75 % of its books a batch is incomplete; what it has still counts."""
    (library / "1.txt").unlink()
    report = books_report("--books", library)
    assert [book["id"] for book in report["books"]] == [2, 4, 5, 6, 7]
    assert [batch["state"] for batch in report["batches"]] == ["INCOMPLETE", "COMPLETE"]


def test_library_without_a_single_book(
    library: Path, books_report: Callable[..., Report], run_example: RunExample
) -> None:
    """Even when every book is missing there is a report, and it is empty."""
    for path in library.glob("*.txt"):
        path.unlink()
    report = books_report("--books", library)
    assert report["books"] == []
    assert report["statistics"]["total_books"] == 0
    shutil.rmtree(library)
    gone = run_example("book_analysis.py", "--books", library)
    assert gone.returncode == 1
    assert len(gone.stderr.splitlines()) == 1


def test_download_without_a_network(run_example: RunExample) -> None:
    """Without a network the download says so in one line and exits with 1."""
    proxy = "http://127.0.0.1:9"  # nothing listens on the discard port
    nowhere = {"https_proxy": proxy, "HTTPS_PROXY": proxy, "no_proxy": "", "NO_PROXY": ""}
    done = run_example("book_analysis.py", "--download", **nowhere)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "cannot fetch https://www.gutenberg.org/" in done.stderr


def test_what_other_tools_do_is_done_here(output_of: OutputOf) -> None:
    """Each way over ends with what the other tool would have given."""
    lines = output_of("coming_from.py").splitlines()
    found = {line.split()[0]: line.partition(" ")[2].strip() for line in lines[:-1]}
    assert lines[-1] == f"{len(found)} ways over"
    assert found["joblib"] == "[0, 1, 4, 9, 16]"
    assert found["imap_unordered"] == "30"
    assert "killed" in found["pebble"]
    assert "ZeroDivisionError" in found["pebble"]
    assert found["as_completed"] == "well; the other was killed"
    assert found["orchestrators"] == "['a', 'b']"
    assert found["apscheduler"] == "done, next at 01:30"
