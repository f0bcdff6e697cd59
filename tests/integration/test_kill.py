"""Promise 1: when a run goes on, nothing of a loser is alive, whatever it does and whenever it is killed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from canobatch import JoinConfig, JoinError, JoinStrategy, Retry, TaskConfig, WorkerPool, Workflow
from canobatch.errors import (
    MemoryLimitError,
    RetryExhaustedError,
    RunCancelledError,
    TaskTimeoutError,
    WorkerLostError,
    WorkflowTimeoutError,
)
from tests.support.losers import WAYS, Loser, Winner
from tests.support.tasks import assert_works, measure, square
from tests.support.watch import Scene, Witness, await_that, is_alive, kill

#: Of each kind of descendant one, and one that cannot be asked.
MIXED = ["loops_in_c", "starts_a_session", "daemonises", "forks_all_the_time"]

#: Those that end up stopped.
STOPPED = ["stops_itself", "sends_and_stops", "fills_and_stops"]

ANY = JoinStrategy.any()


def race(witness: Witness, losers: list[Loser], winners: int, **options: object) -> Workflow:
    """Return a workflow in which the losers are killed for the winners, and that then looks who is alive."""
    names = [loser.name for loser in losers]
    place = witness.scene.place
    state = str(options.pop("state", ""))
    tasks = [*losers, *(Winner(value, names, place, state) for value in range(winners))]
    seen: list[str] = []

    def look(ctx):
        seen.extend(witness.survivors())
        ctx.store.put("survivors", seen)
        return "end"

    join = JoinConfig(JoinStrategy.quorum(winners), "look", into="values")
    return Workflow("race", **options).register_split("race", tasks, join).register("look", look).add_exit_state("end")


@pytest.mark.parametrize("how", [way for way in WAYS if way not in STOPPED and not way.endswith("_and_dies")])
def test_a_loser_is_dead_when_the_next_state_runs(how, tmp_path):
    """However a loser resists and whatever it started, nothing of it is alive in the next state."""
    with Witness(tmp_path, "loser") as witness, WorkerPool(3) as pool:
        run = race(witness, [Loser("loser", how, str(tmp_path))], 2).start("race", pool=pool)
        assert run.wait(60) == "end"
        assert run.store.get("survivors") == []
        assert run.store.get("values") == [0, 1]
        assert run.report().splits["race"][0].status == "cancelled"
        assert_works(pool)
        assert witness.survivors() == []


@pytest.mark.parametrize("how", STOPPED)
def test_a_loser_that_was_stopped_is_dead(how, tmp_path):
    """A worker that was stopped by SIGSTOP, also while it sends a 300 MB result, is killed like any other."""
    with Witness(tmp_path, "loser") as witness, WorkerPool(3) as pool:
        run = race(witness, [Loser("loser", how, str(tmp_path))], 2, state="T").start("race", pool=pool)
        assert run.wait(60) == "end"
        assert run.store.get("survivors") == []
        assert run.store.get("values") == [0, 1]
        assert_works(pool)


def test_losers_of_all_kinds_die_together(tmp_path):
    """A join kills all of its losers at once, and one winner is enough."""
    names = [way for way in WAYS if not way.startswith("sends")]
    with Witness(tmp_path, *names) as witness, WorkerPool(len(names) + 1) as pool:
        losers = [Loser(name, name, str(tmp_path)) for name in names]
        run = race(witness, losers, 1).start("race", pool=pool)
        assert run.wait(90) == "end"
        assert run.store.get("survivors") == []
        assert run.store.get("values") == [0]
        assert_works(pool)
        assert witness.survivors() == []


def test_a_loser_with_a_pool_of_its_own_is_dead(tmp_path):
    """A loser that runs a workflow on a nested pool is killed with that pool's keeper, workers and their children."""
    place = str(tmp_path)

    def nest():
        join = JoinConfig(JoinStrategy.all(), "end")
        workflow = Workflow("inner").register_split("s", [Loser(name, name, place) for name in inner], join)
        with WorkerPool(2) as pool:
            workflow.add_exit_state("end").orchestrate("s", pool=pool)

    inner = ["loops_in_c", "daemonises"]
    with Witness(tmp_path, *inner) as witness, WorkerPool(2) as pool:
        alive = []
        workflow = Workflow("outer").register_split("s", [nest, Winner(1, inner, place)], JoinConfig(ANY, "look"))
        workflow.register("look", lambda ctx: alive.extend(witness.survivors()) or "end").add_exit_state("end")
        assert workflow.start("s", pool=pool).wait(60) == "end"
        assert alive == []
        assert_works(pool)


def test_losers_are_dead_on_the_way_to_a_failure_state(tmp_path):
    """A split that fails fast kills what still runs before ``on_failure`` is entered."""

    def fail():
        Scene(tmp_path).await_runs("loser")
        raise ValueError("enough")

    alive = []
    with Witness(tmp_path, "loser") as witness, WorkerPool(2) as pool:
        join = JoinConfig(JoinStrategy.all(), "end", fail_fast=True, on_failure="failed")
        workflow = Workflow("w").register_split("s", [Loser("loser", "daemonises", str(tmp_path)), fail], join)
        workflow.register("failed", lambda ctx: alive.extend(witness.survivors()) or "end").add_exit_state("end")
        run = workflow.start("s", pool=pool)
        assert run.wait(60) == "end"
        assert run.report().path == ["s", "failed", "end"]
        assert alive == []
        assert_works(pool)


def test_a_300_mb_result_arrives_beside_a_kill(tmp_path):
    """A sibling's large result is whole although a loser is killed while it sends its own."""

    def big():
        Scene(tmp_path).await_runs("loser", state="T")
        return bytes(range(250)) * 1_200_000

    with Witness(tmp_path, "loser") as witness, WorkerPool(2) as pool:
        tasks = [Loser("loser", "fills_and_stops", str(tmp_path)), big]
        workflow = Workflow("w").register_split("s", tasks, JoinConfig(ANY, "end")).add_exit_state("end")
        run = workflow.start("s", pool=pool)
        assert run.wait(90) == "end"
        assert witness.survivors() == []
        value = run.report().splits["s"][1].value
        assert len(value) == 300_000_000
        assert value[-250:] == bytes(range(250))
        assert_works(pool)


def test_a_loser_is_killed_at_any_moment_of_its_sending(tmp_path):
    """A loser's large result, killed at a random moment while it is made, sent or received, harms nobody."""
    rounds = 6

    def big(ctx):
        Scene(tmp_path).runs(f"big-{ctx.run_id}")
        return bytes(60_000_000)

    def small(ctx):
        Scene(tmp_path).await_runs(f"big-{ctx.run_id}")
        time.sleep(random.random() * 0.15)  # the moment, not a wait
        return "small"

    workflow = Workflow("w").register_split("s", [big, small], JoinConfig(ANY, "end", into="v")).add_exit_state("end")
    with WorkerPool(2) as pool:
        for index in range(rounds):
            run = workflow.start("s", pool=pool, run_id=str(index))
            assert run.wait(60) == "end"
            (value,) = run.store.get("v")
            assert value == "small" or len(value) == 60_000_000
            assert len(run.report().splits["s"].cancelled) == 1
            assert not is_alive(Scene(tmp_path).pids(f"big-{index}")[0]) or value != "small"
        assert_works(pool)


# -- the other reasons to be killed


def test_an_attempt_timeout_kills_everything_of_the_attempt(tmp_path):
    """An attempt that outlives its timeout is dead with all it started, its branch timed out, its sibling fine."""
    with Witness(tmp_path, *MIXED) as witness, WorkerPool(5) as pool:
        config = TaskConfig(attempt_timeout=3.0)
        tasks = [Loser(how, how, str(tmp_path), config) for how in MIXED]
        tasks.append(Winner("sibling", MIXED, str(tmp_path)))
        alive = []
        workflow = Workflow("w").register_split("s", tasks, JoinConfig(JoinStrategy.all(), "end", on_failure="look"))
        workflow.register("look", lambda ctx: alive.extend(witness.survivors()) or "end").add_exit_state("end")
        pool.warm_up()
        run = workflow.start("s", pool=pool)
        assert run.wait(90) == "end"
        assert alive == []
        split = run.report().splits["s"]
        assert [branch.status for branch in split] == ["timed_out"] * 4 + ["succeeded"]
        assert split[4].value == "sibling"
        error = split[1].error
        assert isinstance(error, TaskTimeoutError)
        assert isinstance(error, TimeoutError)
        assert (error.limit, error.state, error.branch, error.attempt) == (3.0, "s", 1, 1)
        assert "3 s" in str(error)
        assert_works(pool)


def test_a_killed_attempt_is_dead_when_the_next_one_runs(tmp_path):
    """A second attempt begins when nothing of the first is alive."""
    second = Witness(tmp_path, "first")

    def task(ctx):
        if ctx.attempt == 1:
            Loser("first", "forks", str(tmp_path)).run(ctx)
        return "end" if not any(map(is_alive, Scene(tmp_path).pids("first"))) else "alive"

    with second, WorkerPool(1) as pool:
        config = TaskConfig(attempt_timeout=3.0, retry=Retry.fixed(1, 0.0))
        workflow = Workflow("w").register("s", task, config=config).add_exit_states(["end", "alive"])
        run = workflow.start("s", pool=pool)
        assert run.wait(60) == "end"
        assert run.report().states[0].attempts == 2
        assert second.survivors() == []


def test_a_single_task_that_times_out_is_killed(tmp_path):
    """A single task with a timeout is killed with all it started, and the error is of that state."""
    with Witness(tmp_path, "loser") as witness, WorkerPool(1) as pool:
        task = Loser("loser", "runs_a_command", str(tmp_path), TaskConfig(attempt_timeout=3.0, retry=Retry.fixed(1, 0)))
        workflow = Workflow("w").register("s", task).add_exit_state("end")
        with pytest.raises(RetryExhaustedError) as caught:
            workflow.orchestrate("s", pool=pool)
        assert isinstance(caught.value.last_error, TaskTimeoutError)
        assert caught.value.attempts == 2
        assert witness.survivors() == []
        assert_works(pool)


def test_a_memory_limit_kills_worker_and_descendants(tmp_path):
    """An attempt whose processes together use too much memory is killed with them; the error has both sizes."""
    limit = 150_000_000

    def hog(ctx):
        descriptor = Scene(tmp_path).enter("hog")
        child = os.fork()
        held = bytearray(os.urandom(1000)) * 100_000  # 100 MB each: only together they are too many
        if child:
            Scene(tmp_path).runs("hog", child)
        time.sleep(1000)
        return held, descriptor

    with Witness(tmp_path, "hog") as witness, WorkerPool(2) as pool:
        join = JoinConfig(JoinStrategy.partial_timeout(), "look", timeout=90.0)
        alive = []
        workflow = Workflow("w", default_config=TaskConfig(memory_limit=limit))
        workflow.register_split("s", [hog, lambda: "sibling"], join)
        workflow.register("look", lambda ctx: alive.extend(witness.survivors()) or "end", config=TaskConfig())
        run = workflow.add_exit_state("end").start("s", pool=pool)
        assert run.wait(90) == "end"
        assert alive == []
        lost, sibling = run.report().splits["s"]
        assert sibling.value == "sibling"
        assert lost.status == "failed"
        assert isinstance(lost.error, MemoryLimitError)
        assert isinstance(lost.error, MemoryError)
        assert lost.error.limit == limit < lost.error.used
        assert lost.error.branch == 0
        assert_works(pool)


def test_a_timeout_of_the_split_kills_what_runs(tmp_path):
    """When a split's time is up, its branches are dead before ``on_timeout`` is entered, and count as cancelled."""
    with Witness(tmp_path, *MIXED) as witness, WorkerPool(5) as pool:
        join = JoinConfig(JoinStrategy.all(), "end", timeout=3.0, on_timeout="late")
        tasks = [*(Loser(how, how, str(tmp_path)) for how in MIXED), Winner(1, [], str(tmp_path))]
        alive = []
        workflow = Workflow("w").register_split("s", tasks, join).add_exit_state("end")
        workflow.register("late", lambda ctx: alive.extend(witness.survivors()) or "end")
        # What counts against the timeout is the running, not the booting.
        pool.warm_up()
        run = workflow.start("s", pool=pool)
        assert run.wait(60) == "end"
        assert run.report().path == ["s", "late", "end"]
        assert alive == []
        assert len(run.report().splits["s"].cancelled) == 4
        assert run.report().splits["s"][4].value == 1
        assert_works(pool)


def test_a_partial_timeout_joins_over_the_dead(tmp_path):
    """``partial_timeout`` keeps what succeeded in time, and what did not is dead when the run goes on."""
    with Witness(tmp_path, "loser") as witness, WorkerPool(2) as pool:
        tasks = [Loser("loser", "forks_all_the_time", str(tmp_path)), lambda: 7]
        join = JoinConfig(JoinStrategy.partial_timeout(), "look", timeout=2.0, into="v")
        alive = []
        workflow = Workflow("w").register_split("s", tasks, join).add_exit_state("end")
        workflow.register("look", lambda ctx: alive.extend(witness.survivors()) or "end")
        # What counts against the timeout is the running, not the booting.
        pool.warm_up()
        run = workflow.start("s", pool=pool)
        assert run.wait(60) == "end"
        assert alive == []
        assert run.store.get("v") == [7]


def test_a_cancel_kills_what_runs(tmp_path):
    """A cancelled run has ended, with its reason, when all its processes are dead."""
    with Witness(tmp_path, *MIXED) as witness, WorkerPool(4) as pool:
        join = JoinConfig(JoinStrategy.all(), "end")
        workflow = Workflow("w").register_split("s", [Loser(how, how, str(tmp_path)) for how in MIXED], join)
        run = workflow.add_exit_state("end").start("s", pool=pool)
        witness.scene.await_runs(*MIXED)
        run.cancel("no longer needed")
        with pytest.raises(RunCancelledError) as caught:
            run.wait(60)
        assert witness.survivors() == []
        assert (caught.value.reason, caught.value.state) == ("no longer needed", "s")
        assert len(run.report().splits["s"].cancelled) == 4
        assert_works(pool)


def test_a_cancel_kills_a_single_task_in_a_worker(tmp_path):
    """A single task in a worker is killed by a cancel, with all it started."""
    with Witness(tmp_path, "loser") as witness, WorkerPool(1) as pool:
        task = Loser("loser", "daemonises", str(tmp_path), TaskConfig(where="worker"))
        run = Workflow("w").register("s", task).add_exit_state("end").start("s", pool=pool)
        witness.scene.await_runs("loser")
        run.cancel()
        with pytest.raises(RunCancelledError):
            run.wait(60)
        assert witness.survivors() == []
        assert_works(pool)


def test_a_total_timeout_kills_what_runs(tmp_path):
    """A run whose time is up fails when all its processes are dead."""
    with Witness(tmp_path, *MIXED) as witness, WorkerPool(4) as pool:
        join = JoinConfig(JoinStrategy.all(), "end", on_timeout="end")
        workflow = Workflow("w", total_timeout=3.0)
        workflow.register_split("s", [Loser(how, how, str(tmp_path)) for how in MIXED], join).add_exit_state("end")
        pool.warm_up()
        with pytest.raises(WorkflowTimeoutError) as caught:
            workflow.start("s", pool=pool).wait(60)
        assert witness.survivors() == []
        assert caught.value.limit == 3.0
        assert caught.value.elapsed >= 3.0
        assert caught.value.state == "s"
        assert_works(pool)


def test_only_the_run_that_is_cancelled_is_killed(tmp_path):
    """A kill for one run leaves another run on the same pool alone."""
    with Witness(tmp_path, "victim") as witness, WorkerPool(2) as pool:
        victim = Workflow("v").register_split(
            "s", [Loser("victim", "forks", str(tmp_path))], JoinConfig(JoinStrategy.all(), "end")
        )

        def outlive(ctx):
            Scene(tmp_path).runs("other")
            # Until the other one is dead.
            await_that((tmp_path / "go").exists, "the test should say go")
            return 5

        other = Workflow("o").register_split("s", [outlive], JoinConfig(ANY, "end", into="v")).add_exit_state("end")
        doomed = victim.add_exit_state("end").start("s", pool=pool)
        run = other.start("s", pool=pool)
        Scene(tmp_path).await_runs("victim", "other")
        doomed.cancel()
        with pytest.raises(RunCancelledError):
            doomed.wait(60)
        assert witness.survivors() == []
        (tmp_path / "go").touch()
        assert run.wait(60) == "end"
        assert run.store.get("v") == [5]
        assert run.report().splits["s"][0].attempts == 1


# -- killed by somebody else


@pytest.mark.parametrize("how", ["sends_and_dies", "fills_and_dies"])
def test_a_worker_killed_while_it_sends_fails_its_branch_alone(how, tmp_path):
    """A torn result is one lost attempt: the branch says which signal it was, its siblings succeed."""
    with Witness(tmp_path, "loser") as witness, WorkerPool(2) as pool:
        tasks = [
            Loser("loser", how, str(tmp_path)),
            *[Winner(n, ["loser"], str(tmp_path)) for n in range(3)],
        ]
        join = JoinConfig(JoinStrategy.partial_timeout(), "end", timeout=90.0)
        run = Workflow("w").register_split("s", tasks, join).add_exit_state("end").start("s", pool=pool)
        assert run.wait(90) == "end"
        lost, *others = run.report().splits["s"]
        assert lost.status == "lost"
        assert isinstance(lost.error, WorkerLostError)
        assert lost.error.signal == signal.SIGKILL
        assert lost.error.pid == witness.scene.pids("loser")[0]
        assert [branch.value for branch in others] == [0, 1, 2]
        assert_works(pool)


def stopped_worker(pool: WorkerPool) -> int:
    """Stop an idle worker, and return its pid."""
    pool.warm_up()
    pid = pool.workers[0].pid
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_a_worker_killed_while_it_receives_costs_no_attempt():
    """A call whose worker dies before it has all of the argument is sent to another one, as the same attempt."""
    with WorkerPool(1) as pool:
        pid = stopped_worker(pool)
        join = JoinConfig(JoinStrategy.all(), "end", into="v")
        workflow = Workflow("w").register_map("s", measure, [bytes(100_000_000)], join).add_exit_state("end")
        run = workflow.start("s", pool=pool)
        await_that(lambda: pool.workers and pool.workers[0].busy, "the call should be on its way")
        assert pool.workers[0].pid == pid
        kill(pid)
        assert run.wait(60) == "end"
        assert run.store.get("v") == [100_000_000]
        assert run.report().splits["s"][0].attempts == 1
        assert_works(pool)


def test_a_worker_killed_at_any_moment_of_its_receiving():
    """A worker killed at a random moment after a large argument was sent costs one attempt at most."""
    with WorkerPool(1, spares=1) as pool:
        pool.warm_up()
        join = JoinConfig(JoinStrategy.all(), "end", into="v")
        workflow = Workflow("w", default_config=TaskConfig(retry=Retry.fixed(1, 0.0)))
        workflow.register_map("s", measure, [bytes(40_000_000)], join).add_exit_state("end")
        for _ in range(8):
            await_that(lambda: pool.workers, "a worker should be there")
            pid = pool.workers[0].pid
            run = workflow.start("s", pool=pool)
            await_that(lambda: run.report().state == "end" or any(w.busy for w in pool.workers), "it should be sent")
            time.sleep(random.random() * 0.05)  # the moment, not a wait
            kill(pid)
            assert run.wait(60) == "end"
            assert run.store.get("v") == [40_000_000]
        assert_works(pool)


@pytest.mark.parametrize("how", ["timeout", "cancel", "join"])
def test_a_loser_is_killed_while_it_receives_a_large_argument(how):
    """A worker that has got a part of its argument when its split ends is dead in the next state."""
    with WorkerPool(2) as pool:
        pid = stopped_worker(pool)
        alive = []

        # Both get a large argument; the one whose worker is stopped loses.
        strategy = ANY if how == "join" else JoinStrategy.all()
        join = JoinConfig(strategy, "look", timeout=1.0 if how == "timeout" else None, on_timeout="look")
        workflow = Workflow("w").register_map("s", measure, [bytes(50_000_000)] * 2, join)
        workflow.register("look", lambda ctx: alive.append(is_alive(pid)) or "end").add_exit_state("end")
        run = workflow.start("s", pool=pool)
        if how == "cancel":
            await_that(lambda: any(w.busy and w.pid == pid for w in pool.workers), "the call should be on its way")
            run.cancel()
            with pytest.raises(RunCancelledError):
                run.wait(60)
            alive.append(is_alive(pid))
        else:
            assert run.wait(60) == "end"
        assert alive == [False]
        assert_works(pool)


def test_a_worker_killed_between_two_calls_costs_nothing():
    """A call that is sent to a worker which has just died is sent to another one, as the same attempt."""
    with WorkerPool(1, spares=1) as pool:
        pool.warm_up()
        for _ in range(5):
            await_that(lambda: pool.workers, "a worker should be there")
            os.kill(pool.workers[0].pid, signal.SIGKILL)
            assert_works(pool)


def test_idle_workers_that_die_are_replaced():
    """After the death of all idle workers the pool is as large as before."""
    with WorkerPool(3) as pool:
        pool.warm_up()
        before = {worker.pid for worker in pool.workers}
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await_that(lambda: len({w.pid for w in pool.workers} - before) == 3, "three new workers should be there")
        assert_works(pool)


def test_random_deaths_under_many_small_calls_cost_one_attempt_each():
    """Of the calls in a killed worker's window none is lost, and only the running one counts an attempt."""
    kills = 5
    with WorkerPool(2) as pool:
        pool.warm_up()
        retry = TaskConfig(retry=Retry.fixed(kills, 0.0))
        join = JoinConfig(JoinStrategy.all(), "end", into="v")
        workflow = Workflow("w", default_config=retry).register_map("s", square, range(30_000), join)
        run = workflow.add_exit_state("end").start("s", pool=pool)
        killed = set()
        for _ in range(kills):
            time.sleep(random.random() * 0.1)  # the moment, not a wait
            victims = [worker.pid for worker in pool.workers if worker.pid not in killed]
            if victims:
                killed.add(victims[0])
                kill(victims[0])
        assert run.wait(90) == "end"
        assert run.store.get("v") == [n * n for n in range(30_000)]
        extra = sum(branch.attempts - 1 for branch in run.report().splits["s"])
        assert extra <= len(killed)
        assert_works(pool)


def test_a_worker_killed_as_its_result_arrives_has_succeeded_or_is_lost():
    """A worker that dies while its result is sent gives that result or a lost attempt, never both."""

    def returns_and_dies(ctx, item):
        if ctx.attempt <= 3:
            moment = random.random() * 0.002
            threading.Thread(target=lambda: (time.sleep(moment), os.kill(os.getpid(), signal.SIGKILL))).start()
        ctx.store.append("who", (item, ctx.attempt))
        return item, ctx.attempt

    with WorkerPool(2, spares=2) as pool:
        config = TaskConfig(retry=Retry.fixed(5, 0.0))
        join = JoinConfig(JoinStrategy.all(), "end", into="v")
        workflow = Workflow("w", default_config=config).register_map("s", returns_and_dies, range(20), join)
        run = workflow.add_exit_state("end").start("s", pool=pool)
        assert run.wait(100) == "end"
        values = run.store.get("v")
        assert [item for item, _ in values] == list(range(20))
        # Once per item, and by the attempt that was accepted.
        assert run.store.get("who") == values
        assert [branch.attempts for branch in run.report().splits["s"]] == [attempt for _, attempt in values]
        assert_works(pool)


def test_a_loser_whose_result_arrives_with_the_winners_is_dropped(tmp_path):
    """When all branches of ``any`` end at the same moment, exactly one is accepted, and one only has written."""
    rounds = 15

    def finish(ctx):
        scene = Scene(tmp_path)
        scene.runs(f"{ctx.run_id}-{ctx.branch}")
        scene.await_runs(*(f"{ctx.run_id}-{n}" for n in range(3)))
        ctx.store.append("who", ctx.branch)
        return ctx.branch

    workflow = Workflow("w").register_split("s", [finish] * 3, JoinConfig(ANY, "end", into="v")).add_exit_state("end")
    with WorkerPool(3) as pool:
        for index in range(rounds):
            run = workflow.start("s", pool=pool, run_id=str(index))
            assert run.wait(60) == "end"
            split = run.report().splits["s"]
            (winner,) = split.successes
            assert len(split.cancelled) == 2
            assert run.store.get("v") == run.store.get("who") == [winner.index]
        assert_works(pool)


def test_a_stopped_worker_holds_up_its_own_run_alone(tmp_path):
    """While a worker is stopped, other runs on the pool go on, and its own can be cancelled."""
    with Witness(tmp_path, "loser") as witness, WorkerPool(2) as pool:
        join = JoinConfig(JoinStrategy.all(), "end")
        stuck = Workflow("w").register_split("s", [Loser("loser", "stops_itself", str(tmp_path))], join)
        run = stuck.add_exit_state("end").start("s", pool=pool)
        witness.scene.await_runs("loser", state="T")
        assert_works(pool)
        run.cancel()
        with pytest.raises(RunCancelledError):
            run.wait(60)
        assert witness.survivors() == []


def test_a_failed_split_has_killed_its_losers_when_it_raises(tmp_path):
    """A `JoinError` is raised when the branches that still ran are dead."""

    def fail():
        Scene(tmp_path).await_runs("loser")
        raise ValueError("enough")

    with Witness(tmp_path, "loser") as witness, WorkerPool(2) as pool:
        join = JoinConfig(JoinStrategy.all(), "end", fail_fast=True)
        workflow = Workflow("w").register_split("s", [Loser("loser", "forks", str(tmp_path)), fail], join)
        with pytest.raises(JoinError) as caught:
            workflow.add_exit_state("end").orchestrate("s", pool=pool)
        assert witness.survivors() == []
        assert [branch.status for branch in caught.value.result] == ["cancelled", "failed"]
