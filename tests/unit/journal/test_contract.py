"""What every journal promises, asked of each."""

from __future__ import annotations

import pickle
import threading

import pytest

from canobatch.effects import Entry, record_error
from canobatch.errors import JournalError, RunInUseError, RunNotFoundError, VersionMismatchError
from canobatch.journal import (
    AttemptRecord,
    Commit,
    CompensationRecord,
    MemoryJournal,
    RunStatus,
    SqliteJournal,
    memory,
    sqlite,
)
from tests.support.log_journal import LogJournal
from tests.support.runs import LARGE, entries, essence, failure, new_run, put, story, success, take_over


@pytest.fixture(params=["memory", "process", "power", "somebody else's"])
def journal(request, tmp_path):
    """A journal of each kind."""
    if request.param == "memory":
        return MemoryJournal()
    if request.param == "somebody else's":
        return LogJournal(tmp_path / "log")
    return SqliteJournal(tmp_path / "home", durable=request.param)


def test_a_begun_run_is_found_at_its_initial_state(journal):
    """What begin was given is what a resumed run gets, at visit 1."""
    run = journal.begin(new_run(entries=entries(seed=7)))
    assert (run.run_id, run.life) == ("r", 1)
    run.close()
    again, recovered = take_over(journal)
    assert (recovered.run_id, recovered.workflow, recovered.version) == ("r", "words", 3)
    assert (recovered.params, recovered.made_with) == (b"params", "3.11 / 3.1")
    assert [(visit.visit, visit.state, visit.next_state) for visit in recovered.visits] == [(1, "LOAD", None)]
    assert recovered.store == entries(seed=7)
    assert recovered.status is RunStatus.INTERRUPTED
    assert (recovered.life, again.life) == (2, 2)
    again.close()


def test_recorded_attempts_come_back_whole_in_branch_order(journal):
    """Each attempt has its value, operations, error and timings, whatever the order of recording."""
    run = journal.begin(new_run())
    written = [
        success(1, 2, LARGE, operations=(put("x", LARGE), ("update", "y", b"function", None), ("clear",))),
        failure(1, 0, 1, "retried"),
        success(1, 0, b"", attempt=2),
        AttemptRecord(1, 1, 1, "succeeded", None),
    ]
    for attempt in written:
        run.record(attempt)
    run.close()
    again, _ = take_over(journal)
    assert list(again.attempts(1)) == [written[i]._replace(life=1) for i in (1, 2, 3, 0)]
    assert list(again.attempts(2)) == []
    again.close()


def test_large_data_may_be_a_view_of_memory(journal):
    """What a run hands over as it lies in memory comes back equal, wherever it was in a call."""
    view = memoryview(LARGE)
    run = journal.begin(new_run(entries={"old": Entry(view, "plain", "bytes")}))
    run.record(success(1, 0, view, operations=(("put", "x", (view, "plain", "bytes")), ("append", "y", view))))
    run.note(1, "cursor", view)
    run.close()
    run, recovered = take_over(journal)
    assert recovered.store["old"].data == LARGE
    assert recovered.cursors == {"cursor": LARGE}
    (attempt,) = run.attempts(1)
    assert (attempt.value, attempt.operations) == (
        LARGE,
        (("put", "x", (LARGE, "plain", "bytes")), ("append", "y", LARGE)),
    )
    run.commit(Commit(1, "LOAD", "DONE", entries={"new": Entry(view, "plain", "bytes")}))
    run.close()
    run, recovered = take_over(journal)
    assert recovered.store["new"].data == LARGE
    run.close()


def test_a_running_run_reads_what_it_recorded(journal):
    """Attempts that were handed over are read, durable or not yet."""
    run = journal.begin(new_run())
    for index in range(300):
        run.record(success(1, index))
    assert [attempt.branch for attempt in run.attempts(1)] == list(range(300))
    run.close()


def test_a_ticket_becomes_durable(journal):
    """Waiting for a ticket returns once it is durable, as are all before it."""
    run = journal.begin(new_run())
    first = run.record(success(1, 0))
    last = run.note(1, "wake", b"5.0")
    last.wait(30.0)
    assert first.is_durable
    assert last.is_durable
    run.close()


def test_a_commit_changes_the_store_and_the_state_at_once(journal):
    """Entries are put, removed and cleared, the visit is left, its operations and cursors are dropped."""
    run = journal.begin(new_run(entries=entries(old=1, gone=2)))
    run.record(success(1, 0, operations=(put("new", LARGE),)))
    run.note(1, "step", b"cursor")
    changes = {**entries(new=LARGE, old=3), "gone": None, "never": None}
    run.commit(Commit(1, "LOAD", "COUNT", entries=changes, attempts=1, total=1, duration=0.5))
    run.close()
    again, recovered = take_over(journal)
    assert recovered.store == entries(new=LARGE, old=3)
    assert recovered.cursors == {}
    first, second = recovered.visits
    assert (first.state, first.next_state, first.attempts, first.total, first.duration) == ("LOAD", "COUNT", 1, 1, 0.5)
    assert first.entered_at <= first.left_at == second.entered_at
    assert (second.visit, second.state, second.left_at) == (2, "COUNT", None)
    (attempt,) = again.attempts(1)
    assert (attempt.value, attempt.operations) == (b"value", ())
    again.commit(Commit(2, "COUNT", "DONE", is_cleared=True, entries=entries(only=1)))
    again.close()
    last, recovered = take_over(journal)
    assert recovered.store == entries(only=1)
    last.close()


def test_a_commit_may_bring_attempts(journal):
    """The attempt of a single task and the branches that were cut are recorded with the commit."""
    run = journal.begin(new_run())
    cut = success(1, 1, None)._replace(status="cancelled")
    run.commit(Commit(1, "LOAD", "DONE", records=(success(1, None, operations=(put("x", 1),)), cut)))
    run.close()
    again, _ = take_over(journal)
    found = [(one.branch, one.status, one.operations) for one in again.attempts(1)]
    assert found == [(None, "succeeded", ()), (1, "cancelled", ())]
    again.close()


def test_a_commit_can_stay_in_its_state(journal):
    """A step's effects and its cursor are one transaction; the visit goes on."""
    run = journal.begin(new_run())
    run.commit(Commit(1, "LOAD", None, entries=entries(sum=1), cursors={"step": b"1", "other": b"x"}))
    run.commit(Commit(1, "LOAD", None, entries=entries(sum=2), cursors={"step": b"2", "other": None}))
    run.close()
    again, recovered = take_over(journal)
    assert (recovered.store, recovered.cursors) == (entries(sum=2), {"step": b"2"})
    assert len(recovered.visits) == 1
    again.close()


def test_facts_belong_to_their_visit(journal):
    """A second visit of a state does not meet the cursor of the first; None drops a fact."""
    run = journal.begin(new_run())
    run.note(1, "wake", LARGE)
    run.commit(Commit(1, "LOAD", "LOAD"))
    run.note(2, "step", b"1")
    run.note(2, "wake", b"2")
    run.note(2, "step", None)
    run.close()
    again, recovered = take_over(journal)
    assert recovered.cursors == {"wake": b"2"}
    again.close()


def test_a_state_after_a_router_is_entered_without_a_commit(journal):
    """Entering makes the visit known, and a commit of it counts as usual; entering again changes nothing."""
    run = journal.begin(new_run())
    run.enter(2, "COUNT")
    run.record(success(2, 0))
    run.close()
    again, recovered = take_over(journal)
    assert [(visit.visit, visit.state) for visit in recovered.visits] == [(1, "LOAD"), (2, "COUNT")]
    again.enter(2, "OTHER")
    again.commit(Commit(2, "COUNT", "DONE"))
    again.enter(2, "OTHER")
    again.enter(1, "OTHER")
    again.close()
    last, recovered = take_over(journal)
    assert [visit.state for visit in recovered.visits] == ["LOAD", "COUNT", "DONE"]
    last.close()


def test_a_commit_needs_no_entry(journal):
    """A visit that was reached by routers alone is committed without having been entered."""
    run = journal.begin(new_run())
    run.commit(Commit(3, "COUNT", "DONE"))
    run.close()
    again, recovered = take_over(journal)
    assert [(visit.visit, visit.state) for visit in recovered.visits] == [(1, "LOAD"), (3, "COUNT"), (4, "DONE")]
    again.close()


def test_fresh_attempts_follow_those_of_an_earlier_life(journal):
    """After a take-over attempts begin at 1 again, and come after those of before."""
    run = journal.begin(new_run())
    run.record(failure(1, 0, 1, "retried"))
    run.record(failure(1, 0, 2))
    run.close()
    again, _ = take_over(journal)
    again.record(success(1, 0))
    found = [(attempt.life, attempt.attempt, attempt.status) for attempt in again.attempts(1)]
    assert found == [(1, 1, "retried"), (1, 2, "failed"), (2, 1, "succeeded")]
    again.close()


def test_attempts_may_be_counted_anew(journal):
    """Attempts of one number are all kept, in the order in which they were made."""
    run = journal.begin(new_run())
    run.record(failure(1, 0, text="first"))
    run.record(failure(1, 0, text="second"))
    run.close()
    run, _ = take_over(journal)
    run.record(success(1, 0, b"third")).wait()
    found = [(one.life, one.attempt, one.error and one.error.text, one.value) for one in run.attempts(1)]
    assert found == [(1, 1, "first", None), (1, 1, "second", None), (2, 1, None, b"third")]
    run.close()


def test_the_same_visit_twice_is_refused(journal):
    """A visit that was committed is not committed again."""
    run = journal.begin(new_run())
    run.commit(Commit(1, "LOAD", "COUNT", entries=entries(x=1)))
    with pytest.raises(JournalError, match="LOAD was committed already"):
        run.commit(Commit(1, "LOAD", "DONE", entries=entries(x=2)))
    run.close()
    again, recovered = take_over(journal)
    assert recovered.store == entries(x=1)
    again.close()


def test_a_compensation_goes_from_intent_to_undone(journal):
    """Intents, outputs, the rollback's reason and each compensation's end come back in order."""
    run = journal.begin(new_run())
    reserve = run.intend(1, "RESERVE")
    run.commit(Commit(1, "RESERVE", "PAY", outputs={reserve: LARGE}))
    doubt, pay = run.intend(2, "PAY"), run.intend(2, "PAY")
    run.commit(Commit(2, "PAY", "SHIP", outputs={pay: b"payment"}))
    ship = run.intend(3, "SHIP")
    assert reserve < doubt < pay < ship
    run.close()
    run, recovered = take_over(journal)
    assert recovered.rollback is None
    assert recovered.compensations == (
        CompensationRecord(reserve, 1, "RESERVE", "done", LARGE),
        CompensationRecord(doubt, 2, "PAY", "intended"),
        CompensationRecord(pay, 2, "PAY", "done", b"payment"),
        CompensationRecord(ship, 3, "SHIP", "intended"),
    )
    why, again = record_error(RuntimeError("no ship")), record_error(OSError("bank closed"))
    run.withdraw(ship)
    run.begin_rollback(why)
    run.end_compensation(pay, again)
    run.end_compensation(doubt)
    run.close()
    run, recovered = take_over(journal)
    assert recovered.rollback == why
    assert recovered.compensations == (
        CompensationRecord(reserve, 1, "RESERVE", "done", LARGE),
        CompensationRecord(doubt, 2, "PAY", "undone"),
        CompensationRecord(pay, 2, "PAY", "failed", b"payment", again),
    )
    run.end_compensation(pay)
    run.commit(Commit(3, "SHIP", None, entries=entries(free=1), undone=reserve))
    run.end(RunStatus.ROLLED_BACK, state="SHIP", error=why)
    _, recovered = take_over(journal)
    assert (recovered.status, recovered.is_resumable, recovered.error) == (RunStatus.ROLLED_BACK, False, why)
    assert {(one.status, one.error) for one in recovered.compensations} == {("undone", None)}
    assert recovered.store == entries(free=1)


def test_the_whole_story_comes_back_at_every_step(journal):
    """Let go of after any number of steps, a run is taken over as it was, and as another journal has it."""
    model = MemoryJournal()
    run, twin = journal.begin(new_run()), model.begin(new_run())
    count = sum(1 for _ in story(twin))
    run.close()
    twin.close()
    for steps in range(1, count + 1):
        run_id = f"r{steps}"
        run, twin = journal.begin(new_run(run_id)), model.begin(new_run(run_id))
        for _ in zip(range(steps), story(run), story(twin), strict=False):
            pass
        run.close()
        twin.close()
        (run, found), (twin, wanted) = take_over(journal, run_id), take_over(model, run_id)
        assert essence(found) == essence(wanted)
        for visit in range(1, 8):
            assert list(run.attempts(visit)) == list(twin.attempts(visit))
        run.close()
        twin.close()


@pytest.mark.parametrize("is_resumable", [True, False])
@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED])
def test_an_ended_run_is_taken_over_only_if_it_may_be(journal, status, is_resumable):
    """A run that ended for good is read and not changed; one that may be resumed is running again."""
    run = journal.begin(new_run())
    why = record_error(ValueError("why"))
    run.end(status, state="LOAD", error=why, is_resumable=is_resumable)
    again, recovered = take_over(journal)
    assert (recovered.status, recovered.state, recovered.error) == (status, "LOAD", why)
    assert recovered.is_resumable is is_resumable
    (summary,) = journal.runs()
    assert summary.status is (RunStatus.RUNNING if is_resumable else status)
    if is_resumable:
        again.record(success(1, 0)).wait()
    else:
        with pytest.raises(JournalError) as caught:
            again.record(success(1, 0))
        assert caught.value.reason == "closed"
        assert list(again.attempts(1)) == []
    again.close()


def test_a_living_owner_keeps_its_run(journal):
    """Neither another run of the id nor a take-over is possible while the owner has it; its pid is named."""
    run = journal.begin(new_run())
    with pytest.raises(RunInUseError, match=r"in use|already"):
        journal.begin(new_run())
    with pytest.raises(RunInUseError, match="in use") as caught:
        take_over(journal)
    assert (caught.value.run_id, caught.value.pid is not None) == ("r", True)
    run.record(success(1, 0)).wait()
    run.close()


def test_an_id_is_not_used_twice(journal):
    """A run that is over keeps its id; the error says what to do."""
    journal.begin(new_run()).end(RunStatus.COMPLETED)
    with pytest.raises(RunInUseError, match="resume it, or choose another id"):
        journal.begin(new_run())


def test_an_unknown_run_is_not_found(journal):
    """An id that no run has is a KeyError that says it."""
    with pytest.raises(RunNotFoundError, match="no run nobody") as caught:
        take_over(journal, "nobody")
    assert isinstance(caught.value, KeyError)
    assert caught.value.run_id == "nobody"
    with pytest.raises(RunNotFoundError):
        journal.run("nobody")


@pytest.mark.parametrize("facts", [{"version": 4}, {"workflow": "numbers"}])
def test_another_definition_is_refused(journal, facts):
    """Another workflow or version cannot take a run over, and the right one still can."""
    journal.begin(new_run()).close()
    with pytest.raises(VersionMismatchError, match="words version 3") as caught:
        take_over(journal, **facts)
    assert caught.value.recorded == "words version 3"
    again, recovered = take_over(journal)
    assert recovered.life == 2
    again.close()


def test_a_closed_run_takes_nothing(journal):
    """After close or end every call is a clear error, but closing again is fine."""
    run = journal.begin(new_run())
    run.close()
    run.close()
    for call in (
        lambda: run.record(success(1, 0)),
        lambda: run.commit(Commit(1, "LOAD", "DONE")),
        lambda: run.end(RunStatus.COMPLETED),
        lambda: run.note(1, "step", b""),
    ):
        with pytest.raises(JournalError) as caught:
            call()
        assert caught.value.reason == "closed"


def test_an_owner_is_known_to_the_next(journal):
    """What marks its processes, and what made its values; one that dies before it says who it is changes neither."""
    run = journal.begin(new_run())
    run.own("f00d.cafe", "3.11 / 3.2")
    run.close()
    for _ in range(2):
        again, recovered = take_over(journal)
        assert (recovered.owner.token, recovered.made_with) == ("f00d.cafe", "3.11 / 3.2")
        again.close()
    again, _ = take_over(journal)
    again.own("", "3.12 / 3.2")
    again.close()
    last, recovered = take_over(journal)
    assert (recovered.owner.token, recovered.made_with) == ("", "3.12 / 3.2")
    last.close()


ODD = ["", ".", "..", ".hidden", "a/b", "a%2Fb", "ä ö\n", "x" * 500, "%%x", "\ud800", "r.lock", "a" * 199 + "/"]


def test_any_text_may_be_an_id_a_state_a_key(journal):
    """Ids, labels, names and keys are any strings, and never meet each other's files."""
    for text in ODD:
        run = journal.begin(new_run(text, workflow=text, initial=text, entries={text: entries(x=1)["x"]}))
        run.note(1, text, b"x")
        run.record(failure(1, 0, text=text))
        run.close()
    assert sorted(run.run_id for run in journal.runs()) == sorted(ODD)
    for text in ODD:
        run, recovered = take_over(journal, text, workflow=text)
        assert recovered.visits[0].state == text
        assert (list(recovered.store), list(recovered.cursors)) == ([text], [text])
        run.close()


def test_the_history_is_filtered_and_the_latest_comes_first(journal):
    """Runs are listed by workflow, status and start, the latest first."""
    for name, workflow in (("a", "words"), ("b", "numbers"), ("c", "words")):
        run = journal.begin(new_run(name, workflow=workflow))
        if name == "a":
            run.end(RunStatus.FAILED, state="LOAD", error=record_error(ValueError("broken")), is_resumable=True)
        else:
            run.close()
    runs = journal.runs()
    assert [run.run_id for run in runs] == ["c", "b", "a"]
    assert [run.run_id for run in journal.runs(workflow="words")] == ["c", "a"]
    assert [run.run_id for run in journal.runs(status=RunStatus.INTERRUPTED)] == ["c", "b"]
    assert [run.run_id for run in journal.runs(since=runs[1].started_at)] == ["c", "b"]
    (failed,) = journal.runs(status=RunStatus.FAILED)
    assert failed.error == "builtins.ValueError: broken"
    assert (failed.state, failed.ended_at >= failed.started_at) == ("LOAD", True)


def test_one_run_s_history_has_its_visits_attempts_and_errors(journal):
    """The history of a run tells all but the values, while it runs and afterwards."""
    run = journal.begin(new_run())
    run.record(failure(1, 0, 1, "retried"))
    run.record(success(1, 0, attempt=2, operations=(put("x", 1),)))
    run.commit(Commit(1, "LOAD", "RESERVE", attempts=2, total=1, duration=1.5))
    number = run.intend(2, "RESERVE")
    history = journal.run("r")
    assert history.summary.status is RunStatus.RUNNING
    assert [(visit.state, visit.attempts, visit.duration) for visit in history.visits] == [
        ("LOAD", 2, 1.5),
        ("RESERVE", 0, None),
    ]
    assert [(one.status, one.value, one.duration) for one in history.attempts] == [
        ("retried", None, None),
        ("succeeded", None, 0.5),
    ]
    assert history.attempts[0].error.text == "no such word"
    assert history.compensations == (CompensationRecord(number, 2, "RESERVE", "intended"),)
    run.close()
    assert journal.run("r").summary.status is RunStatus.INTERRUPTED


def test_pruning_removes_ended_runs_only(journal):
    """By count the oldest ended runs go, with all they had; running and interrupted ones stay."""
    for index in range(4):
        run = journal.begin(new_run(f"done {index}"))
        run.record(success(1, 0, LARGE))
        run.end(RunStatus.COMPLETED)
    journal.begin(new_run("interrupted")).close()
    running = journal.begin(new_run("running"))
    assert journal.prune(older_than=3600.0) == []
    assert sorted(journal.prune(keep=2)) == ["done 0", "done 1"]
    assert [run.run_id for run in journal.runs()] == ["running", "interrupted", "done 3", "done 2"]
    with pytest.raises(RunNotFoundError):
        take_over(journal, "done 0")
    assert sorted(journal.prune(older_than=0.0)) == ["done 2", "done 3"]
    assert [run.run_id for run in journal.runs()] == ["running", "interrupted"]
    journal.begin(new_run("done 0")).close()
    running.close()


@pytest.mark.parametrize("module", [memory, sqlite])
def test_a_run_that_is_taken_over_meanwhile_is_not_pruned(module, tmp_path, monkeypatch):
    """Between the look and the removal a failed run may have got an owner: it stays."""
    journal = MemoryJournal() if module is memory else SqliteJournal(tmp_path)
    journal.begin(new_run()).end(RunStatus.FAILED, is_resumable=True)
    taken = []

    def prunable(*arguments):
        taken.append(take_over(journal)[0])
        return ["r"]

    monkeypatch.setattr(module, "prunable", prunable)
    assert journal.prune() == []
    (run,) = taken
    run.record(success(1, 0)).wait()
    assert [one.status for one in journal.runs()] == [RunStatus.RUNNING]
    run.close()


def test_many_threads_may_record(journal):
    """Calls of many threads all arrive, once."""
    run = journal.begin(new_run())

    def write(first):
        for index in range(first, first + 200):
            run.record(success(1, index, str(index).encode())).wait()

    threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 800, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [attempt.value for attempt in run.attempts(1)] == [str(index).encode() for index in range(800)]
    run.close()


def test_a_sqlite_journal_pickles_as_its_directory(tmp_path):
    """In another process a journal is the same directory."""
    journal = SqliteJournal(tmp_path, durable="power")
    journal.begin(new_run()).close()
    again = pickle.loads(pickle.dumps(journal))
    assert repr(again) == repr(journal)
    assert [run.run_id for run in again.runs()] == ["r"]
