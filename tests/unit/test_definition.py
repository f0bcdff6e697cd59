"""What a definition accepts, and that it names everything that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import pytest

from canobatch import JoinConfig, JoinStrategy, Retry, Task, TaskConfig, Workflow
from canobatch.definition import label
from canobatch.errors import ConfigurationError

ALL = JoinStrategy.all()


class S(Enum):
    """States."""

    START = auto()
    WORK = auto()
    OTHER = auto()
    DONE = auto()


class T(Enum):
    """States with a name that S has too."""

    START = auto()


@dataclass
class Count(Task):
    """A task with a parameter."""

    index: int = 0

    def run(self, ctx):
        return self.index


def go(ctx):
    """A task."""
    return S.DONE


def on_item(ctx, item):
    """What a map calls."""
    return item


def join(state=S.DONE, **settings):
    """Return a join that is in order."""
    return JoinConfig(settings.pop("strategy", ALL), state, **settings)


def workflow(**settings):
    """Return a workflow that can run."""
    return Workflow("test", **settings).register(S.START, go).add_exit_state(S.DONE)


def problems(flow):
    """Return what validate says is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        flow.validate()
    return caught.value.problems


# -- what is in order


def test_a_definition_in_order_validates():
    """validate passes a definition of every kind of handler and returns the workflow."""
    flow = (
        workflow()
        .register_split(S.WORK, [Count(1), go, lambda: 1], join(S.OTHER, on_failure=S.START, on_timeout=S.DONE))
        .register_map(S.OTHER, on_item, [1, 2], join())
    )
    assert flow.validate() is flow


@pytest.mark.parametrize(
    "items", [[1, 2], (1,), {1}, range(3), "key", iter([1]), (n for n in [1]), lambda: [1], lambda ctx: [1], {"a": 1}]
)
def test_items_may_be_any_iterable_a_key_or_a_callable(items):
    """A map takes an iterable, a store key, or a callable with or without a context."""
    workflow().register_map(S.WORK, on_item, items, join()).validate()


@pytest.mark.parametrize(
    "tasks", [[go], (go, go), {go}, iter([go]), (t for t in [go]), lambda: [go], lambda ctx: [go], []]
)
def test_tasks_may_be_any_iterable_or_a_callable(tasks):
    """A split takes tasks as an iterable, or a callable with or without a context."""
    workflow().register_split(S.WORK, tasks, join()).validate()


@pytest.mark.parametrize("state", ["text", 3, 2.5, ("a", 1), frozenset([1]), S.WORK, False, b"x", ""])
def test_anything_hashable_is_a_state(state):
    """States may be of any hashable type, and of different types in one workflow."""
    flow = Workflow("test").register(state, go).add_exit_state(S.DONE)
    assert flow.validate().validate_initial_state(state).states == [state]


def test_every_registering_method_returns_the_workflow():
    """Chaining and statements are the same: each method changes the workflow and returns it."""
    flow = Workflow("test")
    assert flow.register("a", go) is flow
    assert flow.register_router("b", go) is flow
    assert flow.register_split("c", [go], join()) is flow
    assert flow.register_map("d", on_item, [1], join()) is flow
    assert flow.add_exit_state(S.DONE) is flow
    assert flow.add_exit_states([S.DONE, S.OTHER]) is flow
    assert flow.states == ["a", "b", "c", "d"]
    assert flow.exit_states == [S.DONE, S.OTHER]


def test_decorators_register_and_leave_the_function_alone():
    """@task and @map register what they decorate, with the options of register and register_map."""
    flow = Workflow("test").add_exit_state(S.DONE)

    @flow.task(S.START, on_error=S.DONE)
    def first(ctx):
        return S.WORK

    @flow.map(S.WORK, [1, 2], join(), config=TaskConfig(retry=Retry.fixed(1, 0.0)))
    def each(ctx, item):
        return item

    assert first(None) is S.WORK
    assert each(None, 5) == 5
    assert flow.validate().states == [S.START, S.WORK]


def test_exit_states_may_be_added_twice():
    """An exit state added again, or by any iterable, is there once."""
    flow = workflow().add_exit_state(S.DONE).add_exit_states(s for s in (S.DONE, S.OTHER, S.OTHER))
    assert flow.exit_states == [S.DONE, S.OTHER]


def test_registered_states_are_those_with_a_handler():
    """states lists what is registered, in order, and no mere exits."""
    flow = workflow().register(S.OTHER, go).register_split(S.WORK, [go], join())
    assert flow.states == [S.START, S.OTHER, S.WORK]


# -- what is refused at once


def test_a_state_is_registered_once():
    """Registering a state twice is an error that names it and the cure."""
    with pytest.raises(ConfigurationError, match="state START is registered already; pass replace=True"):
        workflow().register(S.START, go)


@pytest.mark.parametrize(
    "again",
    [
        lambda flow, **options: flow.register(S.START, lambda: S.OTHER, **options),
        lambda flow, **options: flow.register_router(S.START, lambda: S.OTHER, **options),
        lambda flow, **options: flow.register_split(S.START, [go], join(), **options),
        lambda flow, **options: flow.register_map(S.START, on_item, [1], join(), **options),
    ],
)
def test_replace_takes_the_place_of_a_handler(again):
    """With replace=True any kind of handler takes another's place; without it none does."""
    with pytest.raises(ConfigurationError, match="registered already"):
        again(workflow())
    assert again(workflow(), replace=True).validate().states == [S.START]


def test_replaced_is_what_runs():
    """After replace=True the new handler runs, not the old one."""
    flow = workflow().add_exit_state(S.OTHER).register(S.START, lambda: S.OTHER, replace=True)
    assert flow.orchestrate(S.START) is S.OTHER


def test_replace_of_nothing_registers():
    """replace=True says that the state may be there, not that it must."""
    workflow().register(S.WORK, go, replace=True).validate()


@pytest.mark.parametrize("state", [None, [], {}, [S.START], ([],), ("a", [1])])
def test_what_cannot_be_a_state_is_refused(state):
    """None and what has no hash cannot be a state, neither registered nor an exit."""
    for attempt in (
        lambda: Workflow("test").register(state, go),
        lambda: Workflow("test").add_exit_state(state),
        lambda: Workflow("test").add_exit_states([state]),
        lambda: Workflow("test").register_split(state, [go], join()),
    ):
        with pytest.raises(ConfigurationError, match="cannot be a state; use an Enum member"):
            attempt()


@pytest.mark.parametrize("tasks", [None, 5, Count()])
def test_tasks_that_are_no_iterable_are_refused(tasks):
    """A split of something that cannot be iterated over is an error that says what to give."""
    with pytest.raises(ConfigurationError, match="must be an iterable or a callable"):
        workflow().register_split(S.WORK, tasks, join())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": ""}, "name must be a non-empty string, got ''"),
        ({"name": None}, "got None"),
        ({"params": 5}, "params must be a dataclass, got 5; decorate it with @dataclass"),
        ({"params": int}, "params must be a dataclass"),
        ({"params": Count()}, "params must be a dataclass"),
        ({"total_timeout": 0}, "total_timeout must be above 0 seconds, got 0"),
        ({"total_timeout": -3}, "got -3"),
        ({"total_timeout": float("nan")}, "total_timeout"),
        ({"total_timeout": "soon"}, "total_timeout"),
        ({"default_config": 3}, "default_config"),
        ({"store": {}}, "store must be a SharedStore or a MemoryStore, got {}"),
    ],
)
def test_impossible_workflow_settings_are_refused(settings, words):
    """A setting of the workflow itself that cannot work is an error that names it."""
    with pytest.raises(ConfigurationError) as caught:
        Workflow(**{"name": "test", **settings})
    assert words in str(caught.value)


# -- what validate finds


def test_a_name_is_not_many_exit_states():
    """One string where several states are meant would be one state for each letter."""
    with pytest.raises(ConfigurationError, match=r"call add_exit_state\('done'\)"):
        Workflow("test").add_exit_states("done")


def test_an_empty_workflow_has_two_problems():
    """Without any state and without an exit both are said, each with its cure."""
    first, second = problems(Workflow("test"))
    assert first == "no state is registered; add one with register(state, task)"
    assert "no exit state" in second
    assert "add_exit_state" in second


def test_a_workflow_needs_an_exit():
    """Without an exit state a run could never end."""
    (problem,) = problems(Workflow("test").register(S.START, go))
    assert "no exit state" in problem


@pytest.mark.parametrize(
    ("register", "words"),
    [
        # targets
        (
            lambda w: w.register(S.WORK, go, on_error=S.OTHER),
            "state WORK: on_error OTHER is neither registered nor an exit",
        ),
        (lambda w: w.register_split(S.WORK, [go], join(S.OTHER)), "state WORK: join_state OTHER is neither"),
        (lambda w: w.register_split(S.WORK, [go], join(None)), "state WORK: join_state None is neither"),
        (lambda w: w.register_split(S.WORK, [go], join(on_failure=S.OTHER)), "on_failure OTHER is neither"),
        (lambda w: w.register_split(S.WORK, [go], join(on_timeout=S.OTHER)), "on_timeout OTHER is neither"),
        (lambda w: w.register_map(S.WORK, on_item, [1], join(S.OTHER)), "state WORK: join_state OTHER is neither"),
        (lambda w: w.register_split(S.WORK, [go], join(["unhashable"])), "join_state ['unhashable'] is neither"),
        (lambda w: w.register_split(S.WORK, [go], join(("a", []))), "join_state ('a', []) is neither"),
        # numbers of arguments
        (lambda w: w.register(S.WORK, lambda a, b: 1), "<lambda>(a, b) must take (ctx) or no argument"),
        (lambda w: w.register_split(S.WORK, [go, on_item], join()), "branch 1: on_item(ctx, item) must take (ctx)"),
        (lambda w: w.register_map(S.WORK, go, [1], join()), "go(ctx) must take (ctx, item)"),
        (lambda w: w.register_map(S.WORK, on_item, lambda a, b: [], join()), "must take (ctx) or no argument"),
        (lambda w: w.register_split(S.WORK, lambda a, b: [], join()), "must take (ctx) or no argument"),
        # what is no task
        (lambda w: w.register(S.WORK, Count), "state WORK: Count is a class; register an instance: Count(...)"),
        (lambda w: w.register_split(S.WORK, [Count], join()), "branch 0: Count is a class; register an instance"),
        (lambda w: w.register(S.WORK, 5), "5 is not a task; give a function or an instance of a Task subclass"),
        (lambda w: w.register(S.WORK, None), "None is not a task"),
        (lambda w: w.register_split(S.WORK, [go, "go"], join()), "branch 1: 'go' is not a task"),
        (lambda w: w.register_map(S.WORK, None, [1], join()), "None is not a task"),
        (lambda w: w.register(S.WORK, Task()), "Task does not define run(self, ctx)"),
        # items
        (lambda w: w.register_map(S.WORK, on_item, 5, join()), "items must be an iterable, a store key or a callable"),
        (lambda w: w.register_map(S.WORK, on_item, None, join()), "items must be an iterable"),
        # joins
        (lambda w: w.register_split(S.WORK, [go], None), "the join must be a JoinConfig, got None"),
        (lambda w: w.register_split(S.WORK, [go], ALL), "the join must be a JoinConfig"),
        (lambda w: w.register_split(S.WORK, [go], join(strategy="all")), "strategy must be a JoinStrategy"),
        (lambda w: w.register_split(S.WORK, [go], join(strategy=JoinStrategy.quorum(2))), "never be met by 1 branch"),
        (lambda w: w.register_map(S.WORK, on_item, [1, 2], join(strategy=JoinStrategy.quorum(3))), "by 2 branches"),
        (lambda w: w.register_split(S.WORK, [], join(strategy=JoinStrategy.any())), "any() needs at least one branch"),
        (lambda w: w.register_split(S.WORK, [go], join(strategy=JoinStrategy.percentage(1.5))), "at most 1, got 1.5"),
        (lambda w: w.register_split(S.WORK, [go], join(strategy=JoinStrategy.partial_timeout())), "needs a timeout"),
        (lambda w: w.register_split(S.WORK, [go], join(bulkhead=0)), "bulkhead must be a whole number of at least 1"),
        (lambda w: w.register_split(S.WORK, [go], join(timeout=-1)), "timeout must be at least 0 seconds, got -1"),
        # configurations
        (lambda w: w.register(S.WORK, go, config=3), "must be a TaskConfig, got 3"),
        (
            lambda w: w.register_split(S.WORK, [go], join(), config=TaskConfig(where="parent")),
            "branches always run in workers",
        ),
        (
            lambda w: w.register_map(S.WORK, on_item, [1], join(), config=TaskConfig(where="parent")),
            "branches always run in",
        ),
    ],
)
def test_each_problem_is_named_with_its_state(register, words):
    """Everything that cannot work is a problem that says where, what, and what to do."""
    (problem,) = problems(register(workflow()))
    assert problem.startswith("state WORK: ")
    assert words in problem


def test_a_parent_task_cannot_meet_a_total_timeout():
    """A task that must run in the parent is a problem in a workflow with a total timeout."""
    flow = workflow(total_timeout=5.0).register(S.WORK, go, config=TaskConfig(where="parent"))
    (problem,) = problems(flow)
    assert problem.startswith('state WORK: where="parent" cannot be combined with a total_timeout')


def test_a_task_brings_its_problems_along():
    """A configuration on a task that is no TaskConfig is a problem that names the task."""

    class Wrong(Task):
        config = ("retries", 3)

        def run(self):
            return S.DONE

    (problem,) = problems(workflow().register(S.WORK, Wrong()))
    assert "the config of Wrong must be a TaskConfig" in problem


def test_states_must_have_labels_of_their_own():
    """Two states with the same label are a problem, for records tell states apart by it."""
    (problem,) = problems(workflow().register(T.START, go))
    assert "two states are both called START" in problem
    assert "rename one" in problem


def test_equal_states_are_one_state():
    """What compares equal is the same state, however it is written."""
    with pytest.raises(ConfigurationError, match="registered already"):
        Workflow("test").register(1, go).register(1.0, go)


def test_all_problems_are_listed_at_once_with_their_fixes():
    """One error has every problem of every state, numbered, in the order of registration."""
    flow = (
        Workflow("broken")
        .register(S.START, Count, on_error=S.OTHER)
        .register_split(S.WORK, [on_item, go, 5], join(S.DONE, strategy=JoinStrategy.quorum(7), bulkhead=0))
        .register_map(T.START, go, 5, join(S.WORK, timeout=-1))
    )
    with pytest.raises(ConfigurationError) as caught:
        flow.validate()
    found = caught.value.problems
    words = [
        "no exit state",
        "on_error OTHER is neither",
        "Count is a class",
        "quorum(7) can never be met by 3 branches; ask for at most 3",
        "bulkhead must be",
        "join_state DONE is neither",
        "branch 0: on_item",
        "branch 2: 5 is not a task",
        "timeout must be",
        "go(ctx) must take (ctx, item)",
        "items must be",
        "both called START",
    ]
    assert len(found) == len(words)
    for problem, expected in zip(found, words, strict=True):
        assert expected in problem
    text = str(caught.value)
    assert text.startswith("workflow 'broken' has 12 problems:\n  1. ")
    assert all(f"\n  {number}. {problem}" in text for number, problem in enumerate(found, 1))
    assert isinstance(caught.value, ValueError)


def test_one_problem_is_one_line():
    """A single problem stands behind the workflow's name."""
    with pytest.raises(ConfigurationError) as caught:
        Workflow("lonely").register(S.START, go).validate()
    assert str(caught.value).startswith("workflow 'lonely': there is no exit state")


# -- the initial state


def test_a_run_starts_at_a_known_state():
    """A registered state and an exit state can be initial."""
    flow = workflow()
    assert flow.validate_initial_state(S.START) is flow
    assert flow.validate_initial_state(S.DONE) is flow


@pytest.mark.parametrize("state", [S.OTHER, None, "START", T.START, [], ("a", [])])
def test_an_unknown_initial_state_is_named_with_those_there_are(state):
    """Starting anywhere else is an error that lists the states, before anything runs."""
    for attempt in (workflow().validate_initial_state, workflow().start, workflow().orchestrate):
        with pytest.raises(ConfigurationError) as caught:
            attempt(state)
        assert f"initial state {label(state)} is neither registered nor an exit state" in str(caught.value)
        assert "states: START, DONE" in str(caught.value)


# -- frozen


def test_the_first_run_fixes_the_definition():
    """After a run has begun nothing can be registered, and the error says so."""
    flow = workflow()
    assert flow.orchestrate(S.START) is S.DONE
    for change in (
        lambda: flow.register(S.WORK, go),
        lambda: flow.register(S.START, go, replace=True),
        lambda: flow.register_router(S.WORK, go),
        lambda: flow.register_split(S.WORK, [go], join()),
        lambda: flow.register_map(S.WORK, on_item, [1], join()),
        lambda: flow.add_exit_state(S.OTHER),
        lambda: flow.add_exit_states([S.OTHER]),
    ):
        with pytest.raises(ConfigurationError, match=r"workflow 'test' has run and its definition is fixed"):
            change()
    assert flow.states == [S.START]
    assert flow.orchestrate(S.START) is S.DONE


def test_a_failed_validation_fixes_nothing():
    """A definition that was refused can be completed and then runs."""
    flow = Workflow("test").register(S.START, go)
    with pytest.raises(ConfigurationError):
        flow.orchestrate(S.START)
    assert flow.add_exit_state(S.DONE).orchestrate(S.START) is S.DONE


def test_validating_fixes_nothing():
    """validate may be called while the definition is still being made."""
    flow = workflow().validate()
    flow.register(S.WORK, go).validate()


def test_a_list_of_tasks_is_taken_when_it_is_registered():
    """What happens to the caller's list afterwards does not change the workflow."""
    tasks = [go]
    flow = workflow().register_split(S.WORK, tasks, join(strategy=JoinStrategy.quorum(1)))
    tasks.clear()
    flow.validate()


# -- labels and the picture


def test_labels_are_names_of_enums_and_reprs_of_all_else():
    """A state is called by its Enum name, else by its repr."""
    assert [label(state) for state in (S.START, "text", 3, ("a", 1))] == ["START", "'text'", "3", "('a', 1)"]


def test_a_graph_shows_states_and_what_is_known_of_transitions():
    """The Mermaid text has the first state, every known transition with its reason, and the exits."""
    flow = (
        Workflow("test")
        .register(S.START, go, on_error=S.OTHER)
        .register_split(S.WORK, [go, go], join(S.OTHER, on_failure=S.START, on_timeout=S.DONE, timeout=1))
        .register_map(S.OTHER, on_item, "key", join(S.DONE, strategy=JoinStrategy.any()))
        .add_exit_state(S.DONE)
    )
    lines = [line.strip() for line in flow.graph().splitlines()]
    assert lines[0] == "stateDiagram-v2"
    assert set(lines[1:]) == {
        "[*] --> START",
        "START --> DONE",
        "START --> OTHER: on error",
        "WORK --> OTHER: all()",
        "WORK --> START: on failure",
        "WORK --> DONE: on timeout",
        "note right of WORK: 2 branches",
        "OTHER --> DONE: any()",
        "note right of OTHER: many branches",
        "DONE --> [*]",
    }


def test_a_graph_reads_strings_off_the_code_too():
    """Transitions between states that are strings are found where the task returns them."""
    flow = Workflow("test").register("start it", lambda: "all done").add_exit_state("all done")
    lines = flow.graph().splitlines()
    assert any("start" in line and "all" in line and "-->" in line for line in lines)
    assert all(line.count('"') % 2 == 0 and "'" not in line for line in lines)


def test_a_graph_of_a_workflow_that_is_not_finished():
    """A graph can be drawn of anything, be it empty or wrong."""
    assert Workflow("test").graph() == "stateDiagram-v2\n"
    Workflow("test").register(S.START, 5).register_split(S.WORK, [5], join(S.OTHER)).graph()


def test_an_exit_with_a_handler_goes_nowhere_in_the_graph():
    """An exit wins over a handler, so the graph shows no way out of it."""
    flow = Workflow("test").register(S.START, go).register(S.DONE, lambda: S.START).add_exit_state(S.DONE)
    assert "DONE --> START" not in flow.graph()


def test_a_workflow_says_what_it_is():
    """The text of a workflow has its name and size."""
    assert repr(workflow()) == "<Workflow 'test', 1 states>"
    assert workflow().name == "test"
