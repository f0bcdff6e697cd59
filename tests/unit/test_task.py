"""Task configurations, run parameters, what counts as a task, and how it is called."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import pickle
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from canobatch import Retry, Task, TaskConfig, TaskContext
from canobatch.errors import ConfigurationError
from canobatch.task import Params, arity, arity_problem, bind_params, bound_call, config_of, entry_point, task_name

# -- TaskConfig


def test_by_default_a_task_is_tried_once_without_limits():
    """Nothing is retried and nothing limited unless asked for, and any Exception might be retried."""
    config = TaskConfig()
    assert config.retry == Retry.none()
    assert (config.attempt_timeout, config.memory_limit, config.where) == (None, None, None)
    assert config.retry_on == (Exception,)
    assert config.retry_lost_worker
    assert not config.runs_alone


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attempt_timeout": 0}, "attempt_timeout must be above 0 seconds, got 0"),
        ({"attempt_timeout": -1.5}, "got -1.5"),
        ({"attempt_timeout": float("nan")}, "attempt_timeout"),
        ({"attempt_timeout": timedelta(seconds=-1)}, "attempt_timeout"),
        ({"attempt_timeout": "soon"}, "attempt_timeout"),
        ({"memory_limit": 0}, "memory_limit must be above 0 bytes, got 0"),
        ({"memory_limit": -1}, "memory_limit"),
        ({"memory_limit": "1 GB"}, "memory_limit"),
        ({"where": "here"}, 'where must be "parent" or "worker", got \'here\''),
        ({"retry": 3}, "retry must be a Retry such as Retry.fixed"),
        ({"retry_on": (ValueError, "OSError")}, "retry_on"),
        ({"retry_on": None}, "retry_on"),
        ({"where": "parent", "attempt_timeout": 1}, 'where="parent" cannot have an attempt_timeout'),
        ({"where": "parent", "memory_limit": 1 << 20}, 'use where="worker"'),
    ],
)
def test_impossible_configurations_are_refused(settings, words):
    """A setting that cannot work is a ConfigurationError that names it and says what to do."""
    with pytest.raises(ConfigurationError) as caught:
        TaskConfig(**settings)
    assert words in str(caught.value)


def test_all_problems_of_a_configuration_are_listed_at_once():
    """One error has every impossible setting."""
    with pytest.raises(ConfigurationError) as caught:
        TaskConfig(attempt_timeout=-1, memory_limit=0, where="there", retry="often")
    assert len(caught.value.problems) == 4


def test_what_may_be_killed_by_itself_runs_alone():
    """An attempt with a timeout or a memory limit shares its worker's window with nothing."""
    assert TaskConfig(attempt_timeout=1).runs_alone
    assert TaskConfig(memory_limit=1).runs_alone
    assert TaskConfig(where="worker", attempt_timeout=1).runs_alone


def test_a_configuration_takes_durations_and_classes_as_they_come():
    """A timedelta is seconds, and a single exception class stands for a tuple of it."""
    config = TaskConfig(attempt_timeout=timedelta(minutes=1), retry_on=OSError)
    assert config.attempt_timeout == 60.0
    assert config.retry_on == (OSError,)


def test_a_configuration_is_a_value():
    """Equal settings are equal, also after pickling, and cannot be changed."""
    config = TaskConfig(retry=Retry.fixed(2, 0.5), attempt_timeout=3.0)
    assert pickle.loads(pickle.dumps(config)) == config == TaskConfig(retry=Retry.fixed(2, 0.5), attempt_timeout=3.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.attempt_timeout = 5.0


# -- parameters


def test_parameters_read_as_a_mapping_and_as_attributes():
    """Without a dataclass the parameters of a run are a mapping whose keys are attributes too."""
    params = bind_params(None, {"size": 3, "name": "x"})
    assert params["size"] == params.size == 3
    assert dict(params) == {"size": 3, "name": "x"}
    assert "size" in params
    assert params.get("missing", 7) == 7
    assert len(params) == 2
    assert params == {"size": 3, "name": "x"}


def test_no_parameters_are_an_empty_mapping():
    """A run without parameters has an empty mapping, not None."""
    assert dict(bind_params(None, None)) == {}


def test_a_missing_parameter_is_named_with_those_there_are():
    """A parameter that was not given is an AttributeError as attribute and a KeyError as key."""
    params = Params({"size": 3})
    with pytest.raises(AttributeError, match="no parameter 'sizes' was given to this run; given: size"):
        _ = params.sizes
    with pytest.raises(KeyError, match="sizes"):
        _ = params["sizes"]
    with pytest.raises(AttributeError, match="given: none"):
        _ = Params({}).sizes


def test_parameters_cannot_be_changed():
    """Parameters are the same for every task: they take no new values, and the caller's mapping is not theirs."""
    given = {"size": 3}
    params = Params(given)
    with pytest.raises(TypeError):
        params["size"] = 4
    with pytest.raises(AttributeError):
        params.size = 4
    given["size"] = 5
    assert params.size == 3


def test_parameters_travel():
    """Parameters survive pickling, and their text shows them."""
    params = Params({"size": 3})
    assert pickle.loads(pickle.dumps(params)) == params
    assert repr(params) == "Params({'size': 3})"
    assert not hasattr(params, "__array__")


@dataclass(frozen=True)
class Settings:
    """Declared parameters."""

    size: int
    names: list[str] = field(default_factory=list)


def test_declared_parameters_are_made_from_a_mapping():
    """A mapping becomes an instance of the declared dataclass, with its defaults."""
    assert bind_params(Settings, {"size": 3}) == Settings(3, [])
    given = Settings(4)
    assert bind_params(Settings, given) is given


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "size"),
        (None, "size"),
        ({"size": 1, "colour": 2}, "colour"),
        ({1: 2}, "Settings(size, names)"),
        (5, "params must be a Settings or a mapping of its fields, got int"),
        ([("size", 1)], "got list"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(given, words):
    """What does not fit the declared dataclass is a ConfigurationError that names the parameter."""
    with pytest.raises(ConfigurationError) as caught:
        bind_params(Settings, given)
    assert words in str(caught.value)


def test_a_dataclass_is_accepted_where_none_was_declared():
    """Without a declaration an instance of any dataclass is taken as it is, anything else but a mapping refused."""
    given = Settings(3)
    assert bind_params(None, given) is given
    with pytest.raises(ConfigurationError, match="must be a mapping or a dataclass, got int"):
        bind_params(None, 5)


# -- what is a task, and how it is called


@dataclass
class Count(Task):
    """A task with a field and a configuration of its own."""

    index: int
    config = TaskConfig(attempt_timeout=1.0)

    def run(self, ctx):
        return ctx, self.index


class Bare(Task):
    """A task that needs no context."""

    def run(self):
        return "bare"


@dataclass
class Tuned(Task):
    """A task whose configuration is a field."""

    config: TaskConfig = field(default_factory=TaskConfig)

    def run(self):
        return "tuned"


class Callee:
    """Not a Task, but callable."""

    def __call__(self, ctx):
        return ctx


def test_what_is_called_is_run_or_the_function_itself():
    """A Task's run is its entry, a function is its own."""
    assert bound_call(entry_point(Count(3)), (1, 0))("ctx") == ("ctx", 3)
    assert bound_call(entry_point(Bare()), (1, 0))("ctx") == "bare"
    assert bound_call(entry_point(lambda: 1), (1, 0))("ctx") == 1
    assert bound_call(entry_point(lambda ctx: ctx), (1, 0))("ctx") == "ctx"
    assert bound_call(entry_point(Callee()), (1, 0))("ctx") == "ctx"


async def coroutine(ctx):
    """Used below."""
    return ctx


def test_async_functions_are_run_to_their_end():
    """A coroutine function gives its result, not a coroutine; so does an async run."""

    class Asked(Task):
        async def run(self):
            return await coroutine("asked")

    assert bound_call(coroutine, (1, 0))("ctx") == "ctx"
    assert bound_call(entry_point(Asked()), (1, 0))("ctx") == "asked"


def with_default(ctx, other=1): ...
def with_star(*args): ...
def needs_two(ctx, item): ...
def keyword_only(*, ctx): ...
def nothing(): ...


@pytest.mark.parametrize(
    ("fn", "accepted", "count"),
    [
        (nothing, (1, 0), 0),
        (with_default, (1, 0), 1),
        (with_default, (2,), 2),
        (with_star, (1, 0), 1),
        (with_star, (2,), 2),
        (needs_two, (2,), 2),
        (functools.partial(needs_two, "ctx"), (1, 0), 1),
        (Count(1).run, (1, 0), 1),
        (Bare().run, (1, 0), 0),
        (print, (1, 0), 1),
        (dict.get, (2,), 2),
    ],
)
def test_as_many_arguments_are_passed_as_fit(fn, accepted, count):
    """A callable gets the first of the accepted numbers of arguments that its signature takes."""
    assert arity(fn, accepted) == count
    assert arity_problem(fn, accepted) is None


@pytest.mark.parametrize(
    ("fn", "result"),
    [
        ([lambda n=n: n for n in range(3)][1], 1),
        (lambda n=5, m=6: (n, m), (5, 6)),
        (functools.partial(lambda n: n, 7), 7),
        (functools.partial(lambda n, m=8: (n, m), 7), (7, 8)),
        (lambda ctx=None: ctx, "ctx"),
        (lambda ctx, n=5: (ctx, n), ("ctx", 5)),
        (lambda *args: args, ("ctx",)),
        (list, []),
    ],
)
def test_bound_values_are_not_replaced_by_the_context(fn, result):
    """`lambda n=n: ...`, as written in loops, keeps its value: what needs no argument gets ctx only by name."""
    assert bound_call(fn, (1, 0))("ctx") == result


@pytest.mark.parametrize(
    ("fn", "accepted", "words"),
    [
        (needs_two, (1, 0), "needs_two(ctx, item) must take (ctx) or no argument"),
        (nothing, (2,), "nothing() must take (ctx, item)"),
        (math.sqrt, (2,), "must take (ctx, item); what takes the item alone is given as lambda ctx, item: f(item)"),
        (keyword_only, (1, 0), "keyword_only(*, ctx) must take"),
        (Count(1).run, (2,), "Count.run(ctx) must take (ctx, item)"),
    ],
)
def test_a_wrong_number_of_arguments_is_named(fn, accepted, words):
    """A callable that fits none of the accepted numbers is described with its name and signature."""
    assert words in arity_problem(fn, accepted)


def test_the_configuration_of_a_task_comes_from_its_class_field_or_default():
    """A class attribute or field named config counts, else the default."""
    default, own = TaskConfig(where="worker"), TaskConfig(memory_limit=1)
    assert config_of(Count(1), default) is Count.config
    assert config_of(Tuned(own), default) is own
    assert config_of(Bare(), default) is default
    assert config_of(nothing, default) is default


def test_tasks_have_names():
    """In messages a task is called by its class or its function."""
    assert task_name(Count(1)) == "Count"
    assert task_name(nothing) == "nothing"
    assert task_name(Callee()) == "Callee"


def test_a_task_without_run_says_so():
    """Task.run itself is an error that names the class and what to define."""

    class Forgotten(Task): ...

    with pytest.raises(NotImplementedError, match=r"Forgotten must define run\(self, ctx\) or run\(self\)"):
        Forgotten().run()


# -- the context


def context(**changed):
    """Return a context as a driver makes it."""
    facts = {
        "store": {},
        "params": Params({}),
        "run_id": "r",
        "state": "S",
        "branch": None,
        "attempt": 1,
        "logger": logging.getLogger("x"),
        "deadline_at": None,
        "split_of": lambda state: f"split of {state}",
        "report": lambda *what: None,
        "is_cancelled": lambda: False,
        "resources": {},
    }
    return TaskContext(**{**facts, **changed})


def test_a_deadline_is_seconds_left():
    """The deadline is None without a limit, never below zero with one."""
    assert context().deadline is None
    assert context(deadline_at=0.0).deadline == 0.0
    assert context(deadline_at=1e12).deadline > 1e6


def test_a_context_passes_on_what_is_asked_of_it():
    """split, progress and cancelled answer with what the run knows."""
    told = []
    ctx = context(report=lambda *what: told.append(what), is_cancelled=lambda: True)
    ctx.progress(1, 2, "half")
    ctx.progress(3)
    assert told == [(1, 2, "half"), (3, None, None)]
    assert ctx.cancelled
    assert ctx.split("A") == "split of A"
