"""What tasks log in workers arrives in the launcher's logging, with the attempt that logged it."""

from __future__ import annotations

import logging
import os
import time

import pytest

from canobatch import JoinConfig, JoinStrategy, Retry, TaskConfig, Workflow
from canobatch.errors import TaskError
from tests.support.branches import FOREVER, map_of, ran
from tests.support.watch import await_that

any_, all_ = JoinStrategy.any(), JoinStrategy.all()


def facts(record):
    """Which attempt a record belongs to."""
    return record.state, record.branch, record.attempt


def logged(caplog, name):
    """The records of one logger that came from workers."""
    return [record for record in caplog.records if record.name == name and hasattr(record, "run_id")]


def test_records_keep_level_and_logger_and_carry_their_attempt(shared_pool, caplog):
    """Also those of other loggers than ctx.logger; tracebacks arrive as text."""

    def work(ctx, item):
        ctx.logger.info("by task %d", item)
        try:
            1 / (item - 1)
        except ZeroDivisionError:
            logging.getLogger("lib.part").exception("by library", extra={"size": 7})
        return item

    with caplog.at_level(logging.INFO):
        _, run = ran(map_of(work, range(3), all_), shared_pool)
    own = logged(caplog, "canobatch.test")
    assert sorted((record.getMessage(), *facts(record)) for record in own) == [
        (f"by task {n}", "'split'", n, 1) for n in range(3)
    ]
    assert {record.levelno for record in own} == {logging.INFO}
    assert {record.run_id for record in own} == {run.id}
    (library,) = logged(caplog, "lib.part")
    assert (library.levelname, library.size, *facts(library)) == ("ERROR", 7, "'split'", 1, 1)
    assert "ZeroDivisionError" in caplog.text
    assert library.process != os.getpid()


def test_records_come_before_the_outcome_of_their_call(shared_pool, caplog):
    """When a branch has ended, all it logged has been logged here."""
    seen = {}

    class Watcher:
        def on_event(self, event):
            if event.kind == "branch_finished":
                seen[event.branch] = [r.getMessage() for r in logged(caplog, "t") if r.branch == event.branch]

    def work(ctx, item):
        for number in range(item):
            logging.getLogger("t").warning("%d", number)

    ran(map_of(work, range(20), all_).with_observer(Watcher()), shared_pool)
    assert seen == {item: [str(number) for number in range(item)] for item in range(20)}


def test_a_loser_s_records_arrive(shared_pool, caplog, tmp_path):
    """What a killed task had logged is not lost with it."""

    def work(ctx, item):
        if item:
            logging.getLogger("t").warning("loser")
            (tmp_path / "logged").touch()
            time.sleep(FOREVER)
        await_that((tmp_path / "logged").exists, "the loser should have logged")

    ran(map_of(work, range(2), any_), shared_pool)
    assert [facts(record) for record in logged(caplog, "t")] == [("'split'", 1, 1)]


@pytest.mark.parametrize("how", ["die", "fail"])
def test_a_failed_attempt_s_records_arrive(how, shared_pool, caplog):
    """Of each attempt of a single task too, with no branch."""

    def work(ctx):
        logging.getLogger("t").warning("attempt %d", ctx.attempt)
        if how == "die":
            os._exit(3)
        raise ValueError("no")

    flow = Workflow("test").register("a", work, config=TaskConfig(where="worker", retry=Retry.fixed(1, 0.0)))
    with pytest.raises(TaskError):
        flow.add_exit_state("b").orchestrate("a", pool=shared_pool)
    assert [facts(record) for record in logged(caplog, "t")] == [("'a'", None, 1), ("'a'", None, 2)]


def test_levels_are_the_launcher_s(shared_pool, caplog):
    """What the launcher would not log is not even made in a worker; a level that changed is seen by the next visit."""

    def work(ctx, item):
        return [logging.getLogger(name).isEnabledFor(logging.INFO) for name in ("loud", "quiet.part", "other")]

    flow = map_of(work, [1], all_, into="v")
    logging.getLogger("loud").setLevel(logging.DEBUG)
    logging.getLogger("quiet").setLevel(logging.ERROR)
    try:
        with caplog.at_level(logging.INFO):
            assert ran(flow, shared_pool)[1].store.get("v") == [[True, False, True]]
        assert ran(flow, shared_pool)[1].store.get("v") == [[True, False, False]]
    finally:
        logging.getLogger("loud").setLevel(logging.NOTSET)
        logging.getLogger("quiet").setLevel(logging.NOTSET)
    assert ran(flow, shared_pool)[1].store.get("v") == [[False, False, False]]


def test_a_flood_costs_records_not_the_outcome(shared_pool, caplog):
    """A task that logs without end is cut short and says so; its result counts."""

    def work(ctx, item):
        for number in range(20_000):
            logging.getLogger("t").warning("%d", number)
        return "done"

    _, run = ran(map_of(work, [1], all_, into="v"), shared_pool)
    assert run.store.get("v") == ["done"]
    assert 100 < len(logged(caplog, "t")) < 20_000
    assert "log records of this attempt were dropped" in caplog.text


def test_huge_records_are_cut(shared_pool, caplog):
    """A message of 10 MB neither blocks nor fills the launcher."""
    _, run = ran(
        map_of(lambda ctx, item: logging.getLogger("t").warning("x" * 10_000_000) or 1, [1], all_, into="v"),
        shared_pool,
    )
    assert run.store.get("v") == [1]
    (record,) = logged(caplog, "t")
    assert len(record.getMessage()) < 10_000


def test_a_child_of_a_task_that_logs_disturbs_nobody(shared_pool, caplog):
    """A forked child has no channel; what it logs does not end up in the middle of something."""

    def work(ctx, item):
        pid = os.fork()
        if not pid:
            logging.getLogger("t").warning("child")
            os._exit(0)
        os.waitpid(pid, 0)
        logging.getLogger("t").warning("task")
        return item

    _, run = ran(map_of(work, range(5), all_, into="v"), shared_pool)
    assert run.store.get("v") == list(range(5))
    assert [record.getMessage() for record in logged(caplog, "t")] == ["task"] * 5


def test_a_handler_here_that_fails_fails_no_run(shared_pool, caplog):
    """What the launcher's handlers do is their own affair."""

    class Broken(logging.Handler):
        def handle(self, record):
            raise ValueError("no")

    broken = Broken()
    logging.getLogger("t").addHandler(broken)
    try:
        _, run = ran(
            map_of(lambda ctx, item: logging.getLogger("t").warning("x") or 1, [1], all_, into="v"), shared_pool
        )
    finally:
        logging.getLogger("t").removeHandler(broken)
    assert run.store.get("v") == [1]


SCRIPT = """
import logging, sys
from canobatch import JoinConfig, JoinStrategy, Workflow

def work(ctx, item):
    logging.getLogger("lib").warning("a warning")
    logging.getLogger("lib").info("a remark")
    return len(logging.getLogger().handlers)

if sys.argv[1] == "configured":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(state)s: %(message)s")
flow = Workflow("w").register_map("m", work, [1], JoinConfig(JoinStrategy.all(), "end", into="n")).add_exit_state("end")
run = flow.start("m")
run.wait()
print(run.store.get("n"))
"""


@pytest.mark.parametrize(
    ("how", "handlers", "error"),
    [
        ("plain", "[0]", "a warning\n"),
        ("configured", "[1]", "WARNING lib 'm': a warning\nINFO lib 'm': a remark\n"),
    ],
)
def test_without_handlers_here_workers_are_left_alone(how, handlers, error, run_script):
    """A script that does not configure logging gets what Python does by itself, and workers no handler."""
    ended = run_script(SCRIPT, how)
    assert ended.stdout.strip() == handlers
    assert ended.stderr == error
    assert ended.returncode == 0


def test_states_of_a_join_are_labels(shared_pool, caplog):
    """The state of a record is its label, as everywhere else."""
    flow = Workflow("test").register_split(
        ("a", 1), [lambda: logging.getLogger("t").warning("x")], JoinConfig(all_, "end")
    )
    flow.add_exit_state("end").orchestrate(("a", 1), pool=shared_pool)
    assert facts(logged(caplog, "t")[0]) == ("('a', 1)", 0, 1)
