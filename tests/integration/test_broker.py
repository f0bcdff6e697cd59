"""Limits used by hand in workers: one truth for all processes, and nothing is lost with a process that dies."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time

import pytest

from canobatch import (
    CircuitBreaker,
    Counter,
    JoinConfig,
    JoinStrategy,
    MultiRateLimiter,
    RateLimiter,
    Resources,
    Retry,
    Semaphore,
    TaskConfig,
    WindowedRateLimiter,
    WorkerPool,
    Workflow,
)
from canobatch.broker import release_broker
from canobatch.errors import CircuitOpenError, ConfigurationError, JoinError, RateLimitedError, ResourceError
from tests.support.branches import FOREVER, await_marks, mark
from tests.support.tasks import assert_works
from tests.support.watch import Scene, await_that, kill

NEVER = 100_000.0


def over(fn, items, strategy=None, *, resources=None, config=None, after=None, **join):
    """A workflow that maps ``fn`` over ``items`` in state "s", and ends in "end"."""
    flow = Workflow("w", resources=resources, default_config=config)
    flow.register_map("s", fn, items, JoinConfig(strategy or JoinStrategy.all(), "t", into="v", **join))
    flow.register("t", after or (lambda: "end"), config=TaskConfig(where="worker" if after else "parent"))
    return flow.add_exit_states(["end", "failed"])


def values(flow, pool):
    """Run it and return the values of its branches."""
    run = flow.start("s", pool=pool)
    assert run.wait(100) == "end"
    return run.store.get("v")


# ---------------------------------------------------------------- one truth


def test_a_counter_loses_no_addition():
    """Additions from several workers at a time all count, and each sum is seen once."""
    counter = Counter()

    def add(ctx, item):
        return [counter.add() for _ in range(20)]

    with WorkerPool(2) as pool:
        seen = [n for each in values(over(add, range(10)), pool) for n in each]
    assert sorted(seen) == list(range(1, 201))
    assert counter.value == 200


def test_a_semaphore_lets_no_more_in_than_it_has_places():
    """Over all workers and the launcher, with waiting and without."""
    places, inside = Semaphore(2), Counter()

    def enter(ctx, item):
        with places.acquire(timeout=60.0):
            now = inside.add(1)
            time.sleep(0.005)
            inside.add(-1)
        return now

    with WorkerPool(3) as pool:
        assert max(values(over(enter, range(30)), pool)) <= 2
        assert places.free == 2


def test_a_limiter_counts_the_calls_of_all_workers():
    """Of forty calls in four workers' hands as many are let through as one window has."""
    window = WindowedRateLimiter(10, NEVER)
    tiers = MultiRateLimiter({"window": window})

    def ask(ctx, item):
        return tiers.try_acquire() if item % 2 else window.try_acquire()

    with WorkerPool(2) as pool:
        assert sum(values(over(ask, range(40)), pool)) == 10
    assert (window.used, window.remaining) == (10, 0)


def test_a_breaker_used_by_hand_and_one_attached_are_one():
    """Failures that workers report by hand stop attempts in the parent."""
    breaker = CircuitBreaker(2, NEVER)

    def fail(ctx, item):
        breaker.acquire().fail()
        return str(breaker.state)

    with WorkerPool(1) as pool:
        assert values(over(fail, range(2)), pool) == ["closed", "open"]
    assert breaker.state == "open"
    flow = Workflow("w").register("s", lambda: "end", config=TaskConfig(circuit_breaker=breaker)).add_exit_state("end")
    with pytest.raises(CircuitOpenError):
        flow.orchestrate("s")


def test_resources_of_this_kind_are_there_in_every_worker():
    """ctx.resource gives a proxy of the same class, in the parent the object itself."""
    counter, places = Counter(5), Semaphore(3)
    resources = Resources({"count": counter, "places": places})

    def look(ctx, item):
        permit = ctx.resource("places", Semaphore).acquire()
        with permit:
            return ctx.resource("count", Counter).add(1), ctx.resources["places"].free, ctx.resources["places"].n

    with WorkerPool(1) as pool:
        assert values(over(look, range(3), resources=resources), pool) == [(6, 2, 3), (7, 2, 3), (8, 2, 3)]
    assert resources["count"] is counter


def test_errors_arrive_with_their_facts():
    """What is refused at home is refused in the worker, by the same error."""
    guard = CircuitBreaker(1, NEVER)
    guard.acquire().fail()
    tiers = MultiRateLimiter({"slow": RateLimiter(1, per=NEVER), "fast": RateLimiter(5)})
    tiers.acquire()

    def ask(ctx, item):
        found = []
        for attempt in (
            guard.acquire,
            lambda: tiers.acquire(timeout=1.0),
            lambda: tiers.acquire({"fast": 100}),
            lambda: tiers.acquire({"fats": 1}),
        ):
            try:
                attempt()
            except Exception as error:
                found.append(error)
        return found

    with WorkerPool(1) as pool:
        (errors,) = values(over(ask, [0]), pool)
    assert [type(error) for error in errors] == [
        CircuitOpenError, RateLimitedError, ConfigurationError, ConfigurationError,
    ]  # fmt: skip
    assert errors[0].retry_after == pytest.approx(NEVER, rel=0.1)
    assert errors[1].tier == "slow"


def test_threads_of_one_task_do_not_wait_for_each_other():
    """While one thread waits for a place, another gives it back."""
    places = Semaphore(1)

    def task(ctx, item):
        held = places.acquire()
        got = []
        thread = threading.Thread(target=lambda: got.append(places.acquire(timeout=60.0).release()))
        thread.start()
        held.release()
        thread.join()
        return len(got)

    with WorkerPool(1) as pool:
        assert values(over(task, [0]), pool) == [1]


def test_who_waits_in_another_process_has_its_turn():
    """A worker that came before a thread of the launcher gets the place before it, and one that came after, after."""
    places, order = Semaphore(1), Counter()

    def task(ctx, item):
        with places.acquire(timeout=60.0):
            return order.add()

    def wait():
        with places.acquire(timeout=60.0):
            got.append(order.add())

    def await_line(count):
        await_that(lambda: len(places._line) == count, f"{count} should stand in line")

    with WorkerPool(2) as pool:
        thread, got = threading.Thread(target=wait), []
        with places.acquire():
            early = over(task, [0]).start("s", pool=pool)
            await_line(1)
            thread.start()
            await_line(2)
            late = over(task, [0]).start("s", pool=pool)
            await_line(3)
        assert (early.wait(60), late.wait(60)) == ("end", "end")
        thread.join()
    assert (early.store.get("v"), got, late.store.get("v")) == ([1], [2], [3])


def test_a_wait_that_is_given_up_takes_no_place():
    """A timeout is an error, and the place goes to the next."""
    places = Semaphore(1)
    held = places.acquire()

    def task(ctx, item):
        try:
            places.acquire(timeout=0.02)
        except ResourceError as error:
            return str(error)

    with WorkerPool(1) as pool:
        (text,) = values(over(task, [0]), pool)
        assert "none of its places came free within 0.02 s" in text
        held.release()
        assert places.free == 1


def test_a_permit_that_a_task_forgets_returns():
    """Dropped at the end of the attempt, failed or not."""
    places = Semaphore(1)

    def forgets(ctx, item):
        permit = places.acquire(timeout=60.0)
        if item % 2 and ctx.attempt == 1:
            raise OSError(permit)
        return item

    with WorkerPool(2) as pool:
        config = TaskConfig(retry=Retry.fixed(1, 0.0))
        assert values(over(forgets, range(6), config=config), pool) == list(range(6))
        await_that(lambda: places.free == 1, "the places should return")


# ---------------------------------------------------------------- who holds it dies


@pytest.mark.parametrize("way", ["hangs", "stops"])
def test_a_killed_loser_s_place_is_free_in_the_next_state(way, tmp_path):
    """A branch holds the only place and hangs; when the next state is entered, the place can be had at once."""
    places = Semaphore(1)
    scene = Scene(tmp_path)

    def branch(ctx, item):
        if item == 0:
            permit = places.acquire()
            scene.runs("loser")
            while permit:
                time.sleep(FOREVER)
        scene.await_runs("loser")
        if way == "stops":
            os.kill(scene.pids("loser")[0], 19)
        return item

    def after():
        return "failed" if places.try_acquire() is None else "end"

    with WorkerPool(2) as pool:
        assert values(over(branch, range(2), JoinStrategy.any(), after=after), pool) == [1]
        await_that(lambda: places.free == 1, "the place should be free")
        assert_works(pool)


def test_the_place_of_a_worker_that_is_killed_returns(tmp_path):
    """SIGKILL by a stranger: who waits for the place gets it, and the lost branch its next attempt."""
    places = Semaphore(1)
    scene = Scene(tmp_path)

    def branch(ctx, item):
        permit = places.acquire(timeout=60.0)
        if item == 0 and ctx.attempt == 1:
            scene.runs("victim")
            time.sleep(FOREVER)
        permit.release()
        return ctx.attempt

    def other(ctx, item):
        if item:
            scene.await_runs("victim")
        return branch(ctx, item)

    with WorkerPool(2) as pool:
        config = TaskConfig(retry=Retry.fixed(1, 0.0))
        run = over(other, range(2), config=config).start("s", pool=pool)
        scene.await_runs("victim")
        kill(scene.pids("victim")[0])
        assert run.wait(60) == "end"
        assert run.store.get("v") == [2, 1]
        assert places.free == 1
        assert_works(pool)


def test_a_trial_of_a_worker_that_is_killed_counts_as_neither(tmp_path):
    """The breaker stays half open, and its only trial can be had again."""
    guard = CircuitBreaker(1, 0.0)
    guard.acquire().fail()
    scene = Scene(tmp_path)

    def branch(ctx, item):
        permit = guard.acquire()
        scene.runs("victim")
        while permit:
            time.sleep(FOREVER)

    with WorkerPool(1) as pool:
        run = over(branch, [0], on_failure="failed").start("s", pool=pool)
        scene.await_runs("victim")
        with pytest.raises(CircuitOpenError):
            guard.acquire()
        kill(scene.pids("victim")[0])
        assert run.wait(60) == "failed"
        assert guard.state == "half_open"
        guard.acquire().succeed()
        assert guard.state == "closed"


def test_who_is_killed_while_it_waits_gets_nothing(tmp_path):
    """A place that comes free after a waiting worker's death goes to the living."""
    places = Semaphore(1)
    held = places.acquire()

    def branch(ctx, item):
        if item == 0:
            mark(tmp_path, "waits")
            places.acquire()
        await_marks(tmp_path, "waits")
        return item

    with WorkerPool(2) as pool:
        assert values(over(branch, range(2), JoinStrategy.any()), pool) == [1]
        held.release()
        await_that(lambda: places.free == 1, "the place should be free")
        with places.acquire(timeout=0.0):
            pass


def test_what_a_forked_child_of_a_task_does_frees_nothing(tmp_path):
    """A child has copies of its parent's permits and connections: neither its end nor its garbage gives them back."""
    places = Semaphore(1)

    def branch(ctx, item):
        permit = places.acquire()
        pid = os.fork()
        if pid == 0:
            permit.__del__()
            del permit
            os._exit(0 if places.free == 0 else 1)
        _, status = os.waitpid(pid, 0)
        free = places.free
        permit.release()
        return os.waitstatus_to_exitcode(status), free

    with WorkerPool(1) as pool:
        assert values(over(branch, [0]), pool) == [(0, 0)]
        assert places.free == 1


def test_a_child_that_outlives_a_worker_holds_nothing(tmp_path):
    """A worker dies while a child that it forked lives on for a while: its place returns all the same."""
    places = Semaphore(1)

    def branch(ctx, item):
        permit = places.acquire(timeout=60.0)
        if ctx.attempt == 1:
            if os.fork() == 0:
                time.sleep(FOREVER)
            os._exit(permit is None)
        return ctx.attempt

    with WorkerPool(1) as pool:
        config = TaskConfig(retry=Retry.fixed(1, 0.0))
        assert values(over(branch, [0], config=config), pool) == [2]
        await_that(lambda: places.free == 1, "the place should be free")


# ---------------------------------------------------------------- home


def test_the_broker_ends_with_the_last_pool_and_comes_again():
    """No thread or descriptor is left; what was made before works with the next pool."""
    counter = Counter()

    def add(ctx, item):
        return counter.add()

    flow = over(add, range(3))
    before = threading.active_count()
    for round_ in range(2):
        with WorkerPool(1) as pool:
            assert max(values(flow, pool)) == 3 * (round_ + 1)
            assert "canobatch-broker" in {thread.name for thread in threading.enumerate()}
            with WorkerPool(1) as other:
                assert_works(other)
            assert max(counter.add(0) for _ in range(1)) == 3 * (round_ + 1)
            assert "canobatch-broker" in {thread.name for thread in threading.enumerate()}
        assert threading.active_count() == before


def test_a_pool_that_starts_finds_the_broker_of_what_was_made_before():
    """A handle made while another pool was the only one works after that pool's end, in one that starts then."""
    counter = Counter()
    with WorkerPool(1) as pool:
        pool.warm_up()
        flow = over(lambda ctx, item: counter.add(), range(3))
        handle = pickle.dumps(counter)
    join = JoinConfig(JoinStrategy.all(), "end", into="v")
    late = Workflow("late").register_map("s", lambda ctx, item: pickle.loads(item).add(), [handle] * 3, join)
    with WorkerPool(1) as pool:
        run = late.add_exit_state("end").start("s", pool=pool)
        assert run.wait(60) == "end"
        assert max(values(flow, pool)) == 6


def test_a_launcher_without_brokered_things_has_no_broker():
    """The thread is started when first needed."""
    with WorkerPool(1) as pool:
        assert_works(pool)
        assert "canobatch-broker" not in {thread.name for thread in threading.enumerate()}


def test_what_was_sent_home_is_the_thing_itself():
    """A handle that comes back is the object that was sent, also when its broker was closed meanwhile."""
    places = Semaphore(1)
    handle = pickle.dumps(places)
    try:
        assert pickle.loads(handle) is places
        release_broker()
        assert pickle.loads(handle) is places
    finally:
        release_broker()


def test_a_handle_whose_home_has_ended_is_an_error():
    """Not a hang: a ResourceError that says what to do."""
    places = Semaphore(1)
    handle = pickle.dumps(places)
    release_broker()
    program = (
        f"import pickle; places = pickle.loads({handle!r})\n"
        "try: places.acquire()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("ResourceError the process that made this breaker, limiter")


def test_a_fork_of_the_launcher_has_copies_of_its_own():
    """What a forked child of the launcher does with a semaphore does not reach the launcher, nor its broker."""
    places = Semaphore(2)
    held = places.acquire()
    pickle.dumps(places)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                mine = places.acquire()
                held.__del__()
                os._exit(0 if places.free == 0 and mine else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert places.free == 1
        assert pickle.loads(pickle.dumps(places)) is places
        held.release()
    finally:
        release_broker()


LAUNCHER = """
import sys, threading, time
from canobatch import *
from tests.support.branches import mark

places, model_place = Semaphore(1), sys.argv[1]

def branch(ctx, item):
    if item == 0:
        permit = places.acquire()
        mark(model_place, "holds")
        time.sleep(100000)
    mark(model_place, "waits")
    places.acquire()

flow = Workflow("w").register_map("s", branch, range(2), JoinConfig(JoinStrategy.all(), "end")).add_exit_state("end")
pool = WorkerPool(2)
run = flow.start("s", pool=pool)
threading.Event().wait()
"""


def test_nothing_outlives_a_launcher_that_is_killed(start_script, tmp_path):
    """SIGKILL of the launcher while one worker holds a place and another waits for it: both end, and so does all."""
    script = start_script(LAUNCHER, tmp_path)
    await_marks(tmp_path, "holds", "waits")
    assert len(script.survivors()) >= 3
    script.process.kill()
    script.process.wait(30)
    assert script.survivors(within=3.0) == {}


def test_a_failed_join_kills_who_waits_by_hand(tmp_path):
    """fail_fast kills a branch that waits for a place; nothing of it is left at home."""
    places = Semaphore(1)
    held = places.acquire()

    def branch(ctx, item):
        if item == 0:
            mark(tmp_path, "waits")
            places.acquire()
        await_marks(tmp_path, "waits")
        raise OSError

    with WorkerPool(2) as pool:
        with pytest.raises(JoinError):
            over(branch, range(2), fail_fast=True).orchestrate("s", pool=pool)
        assert_works(pool)
        held.release()
        await_that(lambda: places.free == 1, "nobody should have it")
