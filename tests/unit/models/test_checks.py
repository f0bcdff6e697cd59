"""What is wrong with a model is found by validate, all at once, each with its cure."""

from __future__ import annotations

import pytest

from canobatch import JoinConfig, JoinStrategy, Retry, Task, TaskConfig, Workflow
from canobatch.errors import ConfigurationError
from canobatch.models import (
    BatchTask,
    CompensatableTask,
    Count,
    Node,
    PollTask,
    Ready,
    RouterTask,
    SteppedTask,
    StreamTask,
    TimerTask,
)

PARENT = TaskConfig(where="parent")


def problems_of(task, *, method="register", config=None, **options):
    """Return what validate finds wrong with a workflow of this task."""
    flow = Workflow("test", **options).add_exit_state("end")
    getattr(flow, method)("S", task, config=config)
    try:
        flow.validate()
    except ConfigurationError as error:
        return list(error.problems)
    return []


class Batch(BatchTask):
    def load(self):
        return []

    def process_item(self, ctx, item):
        return item

    def finish(self, ctx, results):
        return "end"


class Stream(StreamTask):
    def open(self, ctx, cursor):
        return []

    def process_item(self, ctx, item):
        return item, item

    def flush_window(self, ctx, outputs):
        return None

    def on_close(self, ctx, reason):
        return "end"


class Reserve(CompensatableTask):
    def run(self):
        return "end", None

    def compensate(self, ctx, output):
        pass


@pytest.mark.parametrize(
    ("model", "missing"),
    [
        (Node, ["prep(self, ctx)", "exec(self, value)", "post(self, ctx, result)"]),
        (RouterTask, ["route(self, ctx)"]),
        (PollTask, ["poll(self, ctx)"]),
        (TimerTask, ["wait(self, ctx)", "after_wait(self, ctx)"]),
        (BatchTask, ["load(self, ctx)", "process_item(self, ctx, item)", "finish(self, ctx, results)"]),
        (SteppedTask, ["step(self, ctx, cursor)"]),
        (
            StreamTask,
            [
                "open(self, ctx, cursor)",
                "process_item(self, ctx, item)",
                "flush_window(self, ctx, outputs)",
                "on_close(self, ctx, reason)",
            ],
        ),
        (CompensatableTask, ["run(self, ctx)", "compensate(self, ctx, output)"]),
    ],
)
def test_w17_every_missing_phase_is_named(model, missing):
    """A model without its phases is refused before anything runs, not tried again and again."""

    class Empty(model):
        pass

    assert problems_of(Empty()) == [f"state 'S': Empty does not define {phase}" for phase in missing]


def test_a_phase_with_the_wrong_arguments_is_named():
    """A phase that cannot be called as it will be is refused with what it must take."""

    class Wrong(SteppedTask):
        def step(self, cursor):
            return None

    (problem,) = problems_of(Wrong())
    assert "Wrong.step(cursor) must take (ctx, cursor)" in problem


@pytest.mark.parametrize(
    ("method", "word"),
    [
        ("register_stepped", "register_stepped takes a SteppedTask, got Other"),
        ("register_stream", "register_stream takes a StreamTask, got Other"),
        ("register_with_compensation", "register_with_compensation takes a CompensatableTask, got Other"),
    ],
)
def test_a_method_made_for_a_model_takes_no_other(method, word):
    """Registering another kind of task by it is a problem that names both."""

    class Other(Task):
        def run(self):
            return "end"

    (problem,) = problems_of(Other(), method=method)
    assert word in problem


@pytest.mark.parametrize(
    ("task", "method"),
    [
        (Stream(), "register_stream"),
        (Reserve(), "register_with_compensation"),
        (Stream(), "register"),
        (Reserve(), "register"),
        (Batch(), "register"),
    ],
)
def test_w19_a_model_may_be_registered_either_way(task, method):
    """There is one meaning of a model, whichever method registers it."""
    assert problems_of(task, method=method) == []


@pytest.mark.parametrize(
    ("base", "setting", "value", "words"),
    [
        (Batch, "concurrency", 0, "concurrency must be a whole number of at least 1, got 0"),
        (Batch, "concurrency", "two", "concurrency"),
        (Batch, "item_retry", 3, "item_retry must be a Retry such as"),
        (Stream, "concurrency", -1, "concurrency"),
        (Stream, "window", 100, "window must be a Window such as Count(100)"),
        (Stream, "on_item_error", "skip", "on_item_error must be an ErrorPolicy such as ErrorPolicy.skip()"),
        (Stream, "dead_letters", None, "dead_letters must be a str"),
        (Reserve, "compensates_in_doubt", "yes", "compensates_in_doubt must be a bool"),
    ],
)
def test_w30_impossible_settings_are_refused(base, setting, value, words):
    """A setting that cannot work is found by validate, and says what would."""
    (problem,) = problems_of(type("Model", (base,), {setting: value})())
    assert words in problem


def test_all_problems_are_listed_at_once():
    """Phases, settings and states are reported together."""

    class Bad(BatchTask):
        concurrency = 0
        item_retry = None

        def load(self):
            return []

    assert len(problems_of(Bad())) == 4


def test_items_in_the_parent_run_one_at_a_time():
    """Concurrency and where="parent" exclude each other."""
    many = type("Many", (Batch,), {"concurrency": 2})()
    (problem,) = problems_of(many, config=PARENT)
    assert "concurrency is 2" in problem
    assert problems_of(Batch(), config=PARENT) == []


def test_what_has_to_be_killable_cannot_run_in_the_parent():
    """A compensation timeout bounds only what runs in workers."""
    (problem,) = problems_of(Reserve(), config=PARENT, compensation_timeout=1.0)
    assert 'use where="worker"' in problem


@pytest.mark.parametrize("task", [Stream(), Reserve()])
def test_what_must_not_be_killed_midway_is_no_branch(task):
    """A stream and a compensatable task need states of their own."""
    join = JoinConfig(JoinStrategy.all(), "end")
    flow = Workflow("test").register_split("S", [lambda: 1, task], join).add_exit_state("end")
    with pytest.raises(ConfigurationError, match=r"branch 1: .* needs a state of its own"):
        flow.validate()


@pytest.mark.parametrize("seconds", [0, -1, "soon", float("nan")])
def test_an_impossible_compensation_timeout_is_refused(seconds):
    """It is above 0 seconds."""
    with pytest.raises(ConfigurationError, match="compensation_timeout must be above 0 seconds"):
        Workflow("test", compensation_timeout=seconds)


@pytest.mark.parametrize(
    ("options", "grace"),
    [
        ({}, None),
        ({"total_timeout": 10}, 5),
        ({"total_timeout": 600}, 30),
        ({"total_timeout": 600, "compensation_timeout": 100}, 100),
        ({"compensation_timeout": 7}, 7),
    ],
)
def test_how_long_a_roll_back_may_take(options, grace):
    """What was said; else half of the total timeout, at most 30 s; else as long as it takes."""
    assert Workflow("test", **options).definition.grace == grace


def test_the_graph_knows_where_models_go():
    """States that the phases of a model name are its transitions."""

    class Wait(PollTask):
        def poll(self):
            return Ready("end")

    graph = Workflow("test").register("S", Wait()).add_exit_state("end").graph()
    assert "_S_ --> _end_" in graph


def test_a_window_is_a_setting_of_the_class_or_the_instance():
    """Settings are attributes, wherever they are set."""
    task = Stream()
    task.window = Count(5)
    task.item_retry = Retry.fixed(1, 0)
    assert problems_of(task) == []
