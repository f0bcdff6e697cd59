"""Events of real runs: what begins ends, whatever becomes of the run."""

from __future__ import annotations

import contextlib
import random
from collections import Counter

import pytest

from canobatch import (
    CancelToken,
    ConfigurationError,
    JoinConfig,
    JoinStrategy,
    Retry,
    RunCancelledError,
    TaskConfig,
    WorkerPool,
    Workflow,
)
from canobatch.errors import CanobatchError, JoinError, WorkflowTimeoutError
from canobatch.join import BranchResult, BranchStatus, SplitResult
from canobatch.journal import MemoryJournal
from tests.support.branches import Act, map_of, split_of
from tests.support.watch import await_that

ENDS = {"run_finished", "run_failed", "run_cancelled"}
any_, all_, quorum = JoinStrategy.any(), JoinStrategy.all(), JoinStrategy.quorum


class Recorder:
    """Keeps every event."""

    def __init__(self):
        self.events = []

    def on_event(self, event):
        self.events.append(event)

    def of(self, *kinds):
        return [event for event in self.events if event.kind in kinds]


def assert_balanced(events):
    """Every start has one end, in order, within what it belongs to."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[0].kind in {"run_started", "run_resumed"}
    assert [event.kind for event in events if event.kind in ENDS] == [events[-1].kind]
    split, open_branches, ended = None, set(), Counter()
    for event in events:
        if event.kind == "split_started":
            assert split is None
            split = event.state
            ended.clear()
        elif event.kind == "split_finished":
            assert event.state == split
            assert not open_branches
            split = None
        elif event.kind.startswith("branch_") and event.kind != "branch_kept":
            assert event.state == split
            if event.kind == "branch_started":
                assert event.branch not in open_branches
                open_branches.add(event.branch)
            else:
                open_branches.remove(event.branch)
                ended[event.branch] += 1
                assert ended[event.branch] == 1
                assert isinstance(event.detail, BranchResult)
        elif event.kind == "retry" and event.branch is not None:
            assert event.branch in open_branches
    assert split is None


def test_starts_and_ends_balance_in_every_run():
    """Random splits that fail, hang, die, retry, time out, are cut and cancelled tell of the end of all they began."""
    kinds = Counter()
    with WorkerPool(2) as pool:
        for seed in range(30):
            dice = random.Random(seed)
            acts = dice.choices(["ok", "ok", "ok", "fail", "die", "hang"], k=dice.randint(1, 6))
            retry = dice.choice([Retry.none(), Retry.fixed(1, 0.0), Retry.fixed(2, 0.02), Retry.fixed(1, 1000.0)])
            config = TaskConfig(retry=retry, attempt_timeout=dice.choice([None, 0.1]))
            strategy = dice.choice([any_, all_, quorum(dice.randint(1, len(acts)))])
            end = dice.choice(["timeout", "timeout", "cancel", "total"])
            flow = Workflow("random", total_timeout=0.4 if end == "total" else None)
            recorder, token = Recorder(), CancelToken()
            flow.with_observer(recorder)
            flow.register_split(
                "split",
                [Act(act) for act in acts],
                JoinConfig(strategy, "end", timeout=0.3 if end == "timeout" else None, fail_fast=dice.random() < 0.5),
                config=config,
            )
            flow.add_exit_state("end")
            run = flow.start("split", pool=pool, cancel=token)
            if end == "cancel":
                await_that(lambda seen=recorder: seen.of("branch_started", *ENDS), "the run should be under way")
                token.cancel("enough")
            with contextlib.suppress(CanobatchError):
                run.wait(60)
            assert_balanced(recorder.events)
            kinds.update(event.kind for event in recorder.events)
    # The dice reached all of it.
    assert ENDS | {"branch_finished", "branch_killed", "retry"} <= kinds.keys()


def test_a_killed_branch_says_so(shared_pool):
    """A loser ends as killed, with how long it ran; a branch that no worker was given has no events."""
    recorder = Recorder()
    flow = split_of([Act("hang"), Act(), *[Act("hang") for _ in range(20)]], any_).with_observer(recorder)
    flow.orchestrate("split", pool=shared_pool)
    killed = recorder.of("branch_killed")
    assert {event.branch for event in killed} == {event.branch for event in recorder.of("branch_started")} - {1}
    assert killed[0].detail.status is BranchStatus.CANCELLED
    assert killed[0].detail.duration > 0
    assert len(recorder.of("branch_started")) < 22
    (end,) = recorder.of("split_finished")
    assert isinstance(end.detail, SplitResult)
    assert_balanced(recorder.events)


def test_a_branch_starts_when_a_worker_has_it():
    """With one worker a branch that waits for it has not started."""
    recorder = Recorder()
    with WorkerPool(1) as pool:
        run = split_of([Act("hang"), Act()], all_).with_observer(recorder).start("split", pool=pool)
        await_that(lambda: recorder.of("branch_started"), "the first should have started")
        run.cancel()
        with pytest.raises(RunCancelledError):
            run.wait(60)
    assert [event.branch for event in recorder.of("branch_started")] == [0]


def test_an_item_that_never_reached_a_worker_starts_and_ends(shared_pool):
    """A branch whose item cannot be sent fails, and its events balance."""
    recorder = Recorder()
    flow = map_of(lambda ctx, item: None, [1, (n for n in ())], any_).with_observer(recorder)
    flow.orchestrate("split", pool=shared_pool)
    assert_balanced(recorder.events)
    assert {event.branch for event in recorder.of("branch_finished")} >= {1}


def test_nothing_is_told_of_begins_where_nobody_listens(shared_pool):
    """Without observers a lane is not asked to tell what begins."""
    asked = []
    original = shared_pool.open_lane

    class Pool:
        def __getattr__(self, name):
            return getattr(shared_pool, name)

        def open_lane(self, *args):
            lane = original(*args)
            begin = lane.begin
            lane.begin = lambda *a, **k: (asked.append(k.get("tells_begin", False)), begin(*a, **k))
            return lane

    split_of([Act()], all_).orchestrate("split", pool=Pool())
    split_of([Act()], all_).with_observer(Recorder()).orchestrate("split", pool=Pool())
    assert asked == [False, True]


def test_an_observer_that_exits_disturbs_nobody(caplog):
    """Also SystemExit is an observer's own affair."""

    class Exiting:
        def on_event(self, event):
            raise SystemExit(3)

    flow = Workflow("w").register("a", lambda: "b").add_exit_state("b").with_observer(Exiting())
    assert flow.orchestrate("a") == "b"
    assert caplog.text.count("an observer failed") == 4


def test_events_become_plain_data(shared_pool):
    """to_dict gives what JSON can take: states by their labels, details as what they say."""
    recorder = Recorder()
    flow = split_of([Act(), Act("fail")], all_, on_failure="failed").with_observer(recorder)
    flow.orchestrate("split", pool=shared_pool)
    plain = {event.kind: event.to_dict() for event in recorder.events}
    assert plain["run_started"]["workflow"] == "test"
    assert plain["split_started"]["total"] == 2
    assert plain["split_finished"]["succeeded"] == 1
    finished = {event.to_dict()["status"] for event in recorder.of("branch_finished")}
    assert finished == {"succeeded", "failed"}
    assert plain["run_finished"]["state"] == "'failed'"


def test_what_observes_must_take_events():
    """Something without on_event is refused when it is given."""
    with pytest.raises(ConfigurationError, match="on_event"):
        Workflow("w").with_observer(print)


def test_a_run_out_of_time_ends_its_split_first(shared_pool):
    """A total timeout kills what runs, ends the split, then the run."""
    recorder = Recorder()
    flow = split_of([Act("hang"), Act("hang")], all_, workflow={"total_timeout": 0.3}).with_observer(recorder)
    with pytest.raises(WorkflowTimeoutError):
        flow.orchestrate("split", pool=shared_pool)
    assert [event.kind for event in recorder.events][-2:] == ["split_finished", "run_failed"]
    assert len(recorder.of("branch_killed")) == 2
    assert_balanced(recorder.events)


def test_what_a_resumed_run_keeps_is_told(shared_pool, tmp_path):
    """Branches of an earlier life are neither started nor ended, but kept; the others go through both."""

    def work(ctx, item):
        if item == 2 and not (tmp_path / "mended").exists():
            raise ValueError("not yet")
        return item

    flow = map_of(work, range(4), all_, into="v", workflow={"journal": MemoryJournal()})
    run = flow.start("split", pool=shared_pool)
    with pytest.raises(JoinError):
        run.wait(60)
    (tmp_path / "mended").touch()
    recorder = Recorder()
    again = flow.with_observer(recorder).start_resume(run.id, pool=shared_pool)
    assert again.wait(60) == "joined"
    assert again.store.get("v") == [0, 1, 2, 3]
    assert [(event.branch, event.detail.value) for event in recorder.of("branch_kept")] == [(0, 0), (1, 1), (3, 3)]
    assert [event.branch for event in recorder.of("branch_started")] == [2]
    assert recorder.events[0].kind == "run_resumed"
    assert_balanced(recorder.events)
