"""Node and RouterTask: three phases in one attempt, and a decision."""

from __future__ import annotations

import pytest

from canobatch import Workflow
from canobatch.errors import RetryExhaustedError, TaskError
from canobatch.models import Node, RouterTask
from canobatch.retry import Retry
from canobatch.task import TaskConfig
from tests.support.stage import context


class Phased(Node):
    """Notes its phases, and fails in some of its attempts."""

    def __init__(self, fail=lambda phase, attempt: False, retries=0, retry_on=(Exception,)):
        self.log = []
        self.fail = fail
        self.attempt = 0
        self.config = TaskConfig(retry=Retry.fixed(retries, 0), retry_on=retry_on)

    def _phase(self, name):
        self.log.append(name)
        if self.fail(name, self.attempt):
            raise OSError(f"{name} failed")

    def prep(self, ctx):
        self.attempt = ctx.attempt
        self._phase("prep")
        return 20

    def exec(self, value):
        self._phase("exec")
        return value + 1

    def post(self, ctx, result):
        ctx.store.put("result", result)
        self._phase("post")
        return "end"


def run_of(task, **options):
    """Run a node as the only task of a workflow."""
    return Workflow("test").register("S", task, **options).add_exit_states(["end", "failed"]).start("S")


def test_the_phases_run_in_order_and_hand_values_on():
    """Prep feeds exec, exec feeds post, post decides and writes."""
    node = Phased()
    run = run_of(node)
    assert run.wait(30) == "end"
    assert node.log == ["prep", "exec", "post"]
    assert run.store.get("result") == 21


def test_a_retry_reruns_all_phases():
    """A failed post makes prep and exec run again too."""
    node = Phased(lambda phase, attempt: phase == "post" and attempt == 1, retries=5)
    assert run_of(node).wait(30) == "end"
    assert node.log == ["prep", "exec", "post"] * 2


def test_a_node_is_retried_once_per_allowed_retry_and_no_more():
    """Two retries are three calls, not nine."""
    node = Phased(lambda phase, attempt: phase == "prep", retries=2)
    with pytest.raises(RetryExhaustedError) as caught:
        run_of(node).wait(30)
    assert node.log == ["prep"] * 3
    assert caught.value.attempts == 3
    assert isinstance(caught.value.last_error, OSError)


def test_a_node_without_retries_fails_with_its_own_error():
    """One allowed attempt: the phase's error is the cause, unwrapped."""
    with pytest.raises(TaskError, match="prep failed") as caught:
        run_of(Phased(lambda phase, attempt: phase == "prep")).wait(30)
    assert type(caught.value) is TaskError
    assert isinstance(caught.value.__cause__, OSError)


def test_w29_exec_may_fail():
    """What exec raises fails the attempt, and is retried like any failure."""
    node = Phased(lambda phase, attempt: phase == "exec" and attempt < 3, retries=2)
    assert run_of(node).wait(30) == "end"
    assert node.log == ["prep", "exec"] * 2 + ["prep", "exec", "post"]


def test_w29_a_failed_attempt_of_a_node_leaves_no_trace():
    """What post wrote before it failed is not in the store."""
    run = run_of(Phased(lambda phase, attempt: phase == "post"), on_error="failed")
    assert run.wait(30) == "failed"
    assert not run.store.contains("result")


def test_w29_a_run_method_of_its_own_counts():
    """A node that overrides run is run by it, and needs no phases."""

    class Own(Node):
        def run(self, ctx):
            return "end"

    assert run_of(Own()).wait(30) == "end"


def test_w29_a_node_that_exits_fails_its_attempt_only():
    """SystemExit in a phase is a failed attempt, not the end of the program."""

    class Exits(Node):
        def prep(self):
            raise SystemExit(3)

        def exec(self, value):
            return value

        def post(self, ctx, result):
            return "end"

    with pytest.raises(TaskError, match="SystemExit: 3"):
        run_of(Exits()).wait(30)


def test_phases_may_be_async():
    """A coroutine is run to its end where it is called."""

    class Async(Node):
        async def prep(self, ctx):
            return 1

        async def exec(self, value):
            return value + 1

        async def post(self, ctx, result):
            return "end" if result == 2 else "failed"

    assert run_of(Async()).wait(30) == "end"


def test_a_router_decides():
    """A router returns the next state, whichever way it is registered."""

    class BySize(RouterTask):
        def route(self, ctx):
            return "end" if ctx.params.size > 3 else "failed"

    for method in ("register", "register_router"):
        flow = getattr(Workflow("test"), method)("S", BySize()).add_exit_states(["end", "failed"])
        assert flow.orchestrate("S", params={"size": 4}) == "end"
        assert flow.orchestrate("S", params={"size": 3}) == "failed"


@pytest.mark.parametrize("method", ["register", "register_router"])
def test_a_router_must_not_write(method):
    """A router that writes to the store fails the run, and nothing is written."""

    class Writes(RouterTask):
        def route(self, ctx):
            ctx.store.put("key", 1)
            return "end"

    run = getattr(Workflow("test"), method)("S", Writes()).add_exit_state("end").start("S")
    with pytest.raises(Exception, match="is a router and must not write"):
        run.wait(30)
    assert not run.store.contains("key")


def test_a_node_runs_by_hand():
    """A node's run with a context is its three phases."""
    assert Phased().run(context()) == "end"
