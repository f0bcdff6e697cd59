"""What users get wrong: each mistake is an error that says what, where and what to do, and nothing is lost by it."""

from __future__ import annotations

import enum
import importlib
import os
import threading
from dataclasses import dataclass

import pytest

from canobatch import (
    CanobatchError,
    ConfigurationError,
    JoinConfig,
    JoinError,
    JoinStrategy,
    Retry,
    SharedStore,
    Task,
    TaskConfig,
    TaskError,
    WorkerPool,
    Workflow,
    WorkflowError,
)
from canobatch.errors import PayloadError, PoolClosedError, StoreKeyError, StoreTypeError
from tests.support.branches import Act, RefusalError, contents, map_of, mark, marks, ran, split_of
from tests.support.tasks import assert_works, square

all_ = JoinStrategy.all()
best_effort = {"strategy": JoinStrategy.partial_timeout(), "timeout": 1000.0}
WORKER = TaskConfig(where="worker")
EITHER = pytest.mark.parametrize("where", ["parent", "worker"])


class S(enum.Enum):
    """States."""

    BEGIN = 1
    SPLIT = 2
    END = 3
    FORGOTTEN = 4


@pytest.fixture
def pool(shared_pool):
    """A pool on which, after whatever a test does, the next run works."""
    yield shared_pool
    assert_works(shared_pool)


def refusal(flow, initial, kind, pool=None, **options):
    """Run a workflow that must fail with this kind of error; return the error. Its store must be as it was."""
    store = SharedStore()
    store.put("before", [1])
    flow._store = store
    with pytest.raises(kind) as caught:
        flow.orchestrate(initial, pool=pool, **options)
    assert isinstance(caught.value, CanobatchError)
    assert contents(store) == {"before": [1]}
    return caught.value


def single(task, **options):
    """Return a workflow of one task."""
    return Workflow("test").register(S.BEGIN, task, **options).add_exit_state(S.END)


# -- what does not pickle


def test_an_unpicklable_task_is_refused_at_submission(pool, tmp_path):
    """A split in which one task does not pickle is refused before any branch runs, with state and culprit."""
    guard = threading.Lock()
    tasks = [Act(place=str(tmp_path)), lambda: guard, Act(place=str(tmp_path))]
    flow = Workflow("test").register_split(S.SPLIT, tasks, JoinConfig(all_, S.END)).add_exit_state(S.END)
    error = refusal(flow, S.SPLIT, PayloadError, pool)
    assert "state SPLIT cannot be sent to a worker: 'guard' enclosed by" in str(error)
    assert "create it inside the task" in str(error)
    assert (error.state, error.path) == (S.SPLIT, (S.SPLIT,))
    assert marks(tmp_path) == set()


def test_an_unpicklable_single_task_is_refused_at_submission(pool, tmp_path):
    """A task that has to run in a worker and does not pickle is refused; in the parent it runs."""
    guard = threading.Lock()

    def task(ctx):
        mark(str(tmp_path), os.getpid())
        with guard:
            return S.END

    error = refusal(single(task, config=WORKER), S.BEGIN, PayloadError, pool)
    assert "state BEGIN cannot be sent to a worker: 'guard' enclosed by" in str(error)
    assert error.state is S.BEGIN
    assert marks(tmp_path) == set()
    assert single(task).orchestrate(S.BEGIN) is S.END


def test_an_unpicklable_function_of_a_map_is_refused_at_submission(pool):
    """The function of a map that does not pickle is refused with what it drags."""
    guard = threading.Lock()
    error = refusal(map_of(lambda ctx, item: guard, [1, 2], all_), "split", PayloadError, pool)
    assert "state 'split'" in str(error)
    assert "'guard' enclosed by" in str(error)


def test_something_large_that_a_task_drags_is_refused_at_submission(pool):
    """A function that encloses something large is refused with its name, its size and the cure."""
    table = bytes(3_000_000)
    error = refusal(map_of(lambda ctx, item: table[item], [1, 2], all_), "split", PayloadError, pool)
    assert "state 'split'" in str(error)
    assert "drags 'table' enclosed by" in str(error)
    assert "3.0 MB" in str(error)
    assert "put it in the store" in str(error)


def test_an_unpicklable_task_made_at_run_time(pool):
    """Tasks that a callable makes are refused in the same way."""
    error = refusal(split_of(lambda: [Act(value=threading.Lock())], all_), "split", PayloadError, pool)
    assert "state 'split'" in str(error)
    assert "Act.value" in str(error)


def test_an_unpicklable_item_fails_its_branch_only(pool, tmp_path):
    """An item that does not pickle never reaches a worker: its branch fails, named, and the others run."""

    def work(ctx, item):
        mark(str(tmp_path), ctx.branch)
        return item

    final, run = ran(map_of(work, [1, threading.Lock(), 3], into="v", **best_effort), pool)
    assert final == "joined"
    assert run.store.get("v") == [1, 3]
    assert marks(tmp_path) == {"0", "2"}
    error = run.report().splits["split"][1].error
    assert isinstance(error, PayloadError)
    assert "state 'split', branch 1, attempt 1: its item cannot be sent to a worker: lock" in str(error)
    assert (error.state, error.branch, error.path) == ("split", 1, ("split",))
    error = refusal(map_of(work, [threading.Lock()], all_), "split", JoinError, pool)
    assert isinstance(error.result[0].error, PayloadError)
    assert "branch 0" in str(error)


def test_an_unpicklable_item_is_not_retried(pool):
    """Another attempt cannot mend an item."""
    config = TaskConfig(retry=Retry.fixed(3, 1000.0))
    error = refusal(map_of(square, [threading.Lock()], all_, config=config), "split", JoinError, pool)
    assert error.result[0].attempts <= 1


def test_an_unpicklable_parameter_is_named(pool):
    """A parameter that does not pickle is refused with its name when something has to run in a worker."""
    error = refusal(
        map_of(square, [1], all_), "split", PayloadError, pool, params={"size": 3, "handle": threading.Lock()}
    )
    assert "state 'split'" in str(error)
    assert "handle" in str(error)


@EITHER
def test_an_unpicklable_value_for_the_store_is_named(where, pool):
    """Putting what does not pickle fails the task, with state and key."""

    def put(ctx):
        ctx.store.put("handle", threading.Lock())
        return S.END

    error = refusal(single(put, config=TaskConfig(where=where)), S.BEGIN, TaskError, pool)
    assert "state BEGIN" in str(error)
    assert "'handle'" in str(error)


@EITHER
def test_a_context_in_an_update_function(where, pool):
    """An update function may use what ctx knows of the attempt; its store is not there, and the error says so."""

    def update(ctx):
        ctx.store.update("k", lambda value: [*value, ctx.attempt], default=[])
        return S.END

    def misuse(ctx):
        ctx.store.update("before", lambda value: ctx.store.get("other"))
        return S.END

    config = TaskConfig(where=where)
    run = single(update, config=config).start(S.BEGIN, pool=pool)
    assert run.wait(60) is S.END
    assert run.store.get("k") == [1]
    error = refusal(single(misuse, config=config), S.BEGIN, WorkflowError, pool)
    assert "update of key 'before' by its task cannot be committed" in str(error)
    assert "ctx.store works only while its task runs" in str(error)


def test_an_unpicklable_initial_value_of_reduce_is_named(pool):
    """The value that a reduce begins with must pickle; if not, the error says so and names the state."""
    flow = map_of(square, [1], all_, into="v", reduce=(lambda total, value: total, threading.Lock()))
    error = refusal(flow, "split", CanobatchError, pool)
    assert "split" in str(error)
    assert "reduce" in str(error)


def test_an_unpicklable_folded_value_is_named(pool):
    """When what a reduce made does not pickle, the error names state and key."""
    flow = map_of(square, [1], all_, into="total", reduce=(lambda total, value: threading.Lock(), 0))
    error = refusal(flow, "split", CanobatchError, pool)
    assert "state 'split'" in str(error)
    assert "'total'" in str(error)


def test_an_unpicklable_initializer_is_refused_at_once():
    """A pool whose initializer does not pickle is not made."""
    guard = threading.Lock()
    with pytest.raises(PayloadError, match="the pool's initializer cannot be sent to a worker: 'guard' enclosed by"):
        WorkerPool(1, initializer=lambda: guard)


class FailsToLoad:
    """Pickles; does not load in a worker, only in the process that made it."""

    def __reduce__(self):
        return load_here_only, (os.getpid(),)


def load_here_only(pid):
    """Raise in any other process."""
    if os.getpid() != pid:
        raise RefusalError("not at home")
    return FailsToLoad()


def test_an_item_that_does_not_load_fails_its_branch_only(pool):
    """An item that cannot be unpacked in the worker fails its branch, which is named, and hurts no other."""
    final, run = ran(map_of(lambda ctx, item: 1, [1, FailsToLoad(), 3], into="v", **best_effort), pool)
    assert final == "joined"
    assert run.store.get("v") == [1, 1]
    error = run.report().splits["split"][1].error
    assert isinstance(error, PayloadError)
    assert "branch 1" in str(error)
    assert "cannot be unpacked in a worker: RefusalError: not at home" in str(error)


def test_a_task_that_does_not_load_fails_with_its_reason(pool):
    """A task object that cannot be unpacked in the worker fails its run with the reason."""
    error = refusal(split_of([Act(value=FailsToLoad())], all_), "split", JoinError, pool)
    assert "the task cannot be unpacked in a worker: RefusalError: not at home" in str(error)


# -- what a task returns


class Unshowable:
    """Its repr raises."""

    def __repr__(self):
        raise RefusalError("no repr")


@EITHER
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ("returned None, which is not a state of workflow 'test'", "must return the next state")),
        ("END", ("returned 'END', which is not a state", "BEGIN, END")),
        (3, ("returned 3,", "add it as an exit state")),
        (S.FORGOTTEN, ("returned FORGOTTEN,", "register it, add it as an exit state, or return one of BEGIN, END")),
        (True, ("returned True,",)),
        ({"next": S.END}, ("which is not a state",)),
        ([S.END], ("which is not a state", "register_split")),
        ([S.END, S.BEGIN], ("use register_split or register_map to run many tasks",)),
        ((S.END, S.BEGIN), ("register_split",)),
        ({S.END}, ("register_split",)),
        ((S.END, [1]), ("which is not a state",)),
        ([], ("register_split",)),
    ],
    ids=repr,
)
def test_what_is_no_state_is_refused(where, value, words, pool):
    """A task that returns no state fails the run: state, value and cure are named, and it wrote nothing."""

    def task(ctx):
        ctx.store.append("before", "not accepted")
        return value

    error = refusal(single(task, config=TaskConfig(where=where)), S.BEGIN, WorkflowError, pool)
    assert "state BEGIN returned " in str(error)
    assert all(word in str(error) for word in words)
    assert (error.state, error.path) == (S.BEGIN, (S.BEGIN,))


def test_what_cannot_even_be_shown_is_refused():
    """A value whose repr raises is refused like any other."""
    error = refusal(single(lambda ctx: Unshowable()), S.BEGIN, WorkflowError)
    assert "state BEGIN returned" in str(error)


def test_a_wrong_return_is_no_matter_of_retries(tmp_path):
    """A task that returns no state is not tried again, and on_error is not entered: the definition is wrong."""

    def task(ctx):
        mark(str(tmp_path), ctx.attempt)

    flow = single(task, config=TaskConfig(retry=Retry.fixed(3, 0.0)), on_error=S.END)
    refusal(flow, S.BEGIN, WorkflowError)
    assert marks(tmp_path) == {"1"}


def test_a_state_without_handler_is_refused_on_the_way():
    """Going to a state that is neither registered nor an exit fails the run, with the states there are."""
    flow = Workflow("test").register("a", lambda: "b").register("b", lambda: "c").add_exit_state("end")
    error = refusal(flow, "a", WorkflowError)
    assert "state 'b' returned 'c'" in str(error)
    assert "'a', 'b', 'end'" in str(error)
    assert error.path == ("a", "b")


# -- keys and types


@EITHER
def test_a_missing_key_is_named(where, pool):
    """Reading a key that is not there fails the task, with state, key and the keys there are."""
    error = refusal(
        single(lambda ctx: ctx.store.get("befor"), config=TaskConfig(where=where)), S.BEGIN, TaskError, pool
    )
    assert "state BEGIN, attempt 1: StoreKeyError: no key 'befor' in the store; keys: 'before'" in str(error)
    assert isinstance(error.__cause__, StoreKeyError)
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.key == "befor"


def test_a_missing_key_in_a_branch_is_named(pool):
    """In a split the branch is named too."""
    error = refusal(map_of(lambda ctx, item: ctx.store["befor"], [1], all_), "split", JoinError, pool)
    assert "state 'split', branch 0, attempt 1: StoreKeyError: no key 'befor'" in str(error)
    assert error.result[0].error.__cause__.key == "befor"


def test_a_missing_key_of_items_is_named(pool):
    """A map over a key that is not there fails the run with state and key."""
    error = refusal(map_of(square, "befor", all_), "split", CanobatchError, pool)
    assert "'split'" in str(error)
    assert "no key 'befor'" in str(error)


@EITHER
@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda store: store.get("before", expect=dict), "'before' holds a list, not a dict"),
        (lambda store: store.add("before"), "cannot add to 'before': it holds a list, not a number"),
        (
            lambda store: (store.put("k", "text"), store.append("k", 1)),
            "cannot append to 'k': it holds a str, not a list",
        ),
        (lambda store: store.put(5, 1), "a store key must be a string, got 5"),
    ],
)
def test_a_wrong_type_is_named(where, operation, words, pool):
    """Using a value as what it is not fails the task, with state, key and both types."""

    def task(ctx):
        operation(ctx.store)
        return S.END

    error = refusal(single(task, config=TaskConfig(where=where)), S.BEGIN, TaskError, pool)
    assert "state BEGIN" in str(error)
    assert words in str(error)
    assert isinstance(error.__cause__, StoreTypeError)


@pytest.mark.parametrize(
    ("items", "shown"),
    [(lambda: None, "None"), (lambda ctx: 5, "5"), ("number", "7")],
    ids=["none", "number", "key"],
)
def test_items_that_cannot_be_iterated_over(items, shown, pool):
    """Items that turn out at run time to be no iterable fail the run with the state and the value."""
    flow = (
        Workflow("test")
        .register("put", lambda ctx: ctx.store.put("number", 7) or "split")
        .register_map("split", square, items, JoinConfig(all_, "end"))
        .add_exit_state("end")
    )
    with pytest.raises(WorkflowError, match=f"state 'split': its items are {shown}, which cannot be iterated over"):
        flow.orchestrate("put", pool=pool)


def test_items_that_fail_to_be_iterated_over(pool):
    """What their ``__iter__`` or ``__len__`` raises is the cause of an error that names the state."""

    class Unreadable:
        def __iter__(self):
            raise RefusalError("no items today")

    class Unmeasured(list):
        def __len__(self):
            raise RefusalError("no items today")

    for items in (Unreadable(), lambda: Unmeasured([1])):
        error = refusal(map_of(square, items, all_), "split", TaskError, pool)
        assert str(error) == "state 'split': its items cannot be iterated over: RefusalError: no items today"
        assert isinstance(error.__cause__, RefusalError)


@pytest.mark.parametrize("made", [None, 5, 0.5])
def test_tasks_that_cannot_be_iterated_over(made, pool):
    """A callable that makes no list of tasks fails the run with the state and the value."""
    error = refusal(split_of(lambda: made, all_), "split", CanobatchError, pool)
    assert "state 'split'" in str(error)
    assert repr(made) in str(error)


# -- callables


@pytest.mark.parametrize(
    "flow",
    [
        lambda: single(lambda a, b: 1),
        lambda: split_of([lambda: 1, lambda a, b: 1], all_),
        lambda: split_of(lambda a, b: [], all_),
        lambda: map_of(lambda item: 1, [1], all_),
        lambda: map_of(square, lambda a, b: [], all_),
        lambda: map_of(square, [1], all_, into="v", reduce=(lambda total: total, 0)),
        lambda: map_of(square, [1], all_, into="v", reduce=(lambda: 0, 0)),
    ],
    ids=["single", "branch", "tasks", "map", "items", "reduce", "reduce of none"],
)
def test_a_wrong_number_of_arguments_is_refused_before_the_run(flow, tmp_path):
    """A callable that does not take what it will be given is a ConfigurationError before anything runs."""
    made = flow()
    state = made.states[0]
    error = refusal(made, state, ConfigurationError)
    assert "<lambda>" in str(error)
    assert "must take" in str(error)


def test_an_initializer_that_needs_an_argument_is_refused_at_once():
    """The initializer is called without arguments, which is checked when the pool is made."""
    with pytest.raises(ConfigurationError, match="initializer"):
        WorkerPool(1, initializer=lambda directory: None)


@dataclass
class Unmade(Task):
    """A task class."""

    index: int = 0

    def run(self):
        return self.index


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (lambda a, b: 1, "must take (ctx) or no argument"),
        (Unmade, "Unmade is a class; register an instance"),
        (5, "5 is not a task"),
        (None, "None is not a task"),
        (Act(config=TaskConfig(where="parent")), "branches always run in workers"),
        (Act(config={"retries": 3}), "must be a TaskConfig"),
        (Task(), "does not define run"),
    ],
)
def test_tasks_made_at_run_time_are_checked_like_others(task, words, pool, tmp_path):
    """What a callable makes is checked before any of it runs: state and branch are named."""
    error = refusal(split_of(lambda: [Act(place=str(tmp_path)), task], all_), "split", ConfigurationError, pool)
    assert "state 'split'" in str(error)
    assert "branch 1" in str(error)
    assert words in str(error)
    assert marks(tmp_path) == set()


def test_a_callable_that_fails_to_make_branches(pool):
    """What the callable raises is the cause of an error that names the state."""

    def fail(ctx):
        raise RefusalError("nothing to do today")

    for flow in (split_of(fail, all_), map_of(square, fail, all_)):
        error = refusal(flow, "split", TaskError, pool)
        assert "state 'split': making its branches failed: RefusalError: nothing to do today" in str(error)
        assert isinstance(error.__cause__, RefusalError)
        assert error.state == "split"


def test_a_generator_that_fails_half_way(pool):
    """What a generator raises on the way fails the run, with the state; the branches that were under way are cut."""

    def items():
        yield 1
        yield 2
        raise RefusalError("the source has dried up")

    def tasks():
        yield Act()
        raise RefusalError("the source has dried up")

    for flow in (
        map_of(square, items, all_, into="v"),
        map_of(square, (n for n in items()), all_),
        split_of(tasks, all_),
    ):
        error = refusal(flow, "split", CanobatchError, pool)
        assert "state 'split'" in str(error)
        assert "the source has dried up" in str(error)
        assert isinstance(error.__cause__, RefusalError)


def test_a_callable_that_writes_while_making_branches(pool):
    """The callable only reads; if it writes, the run fails and nothing is written."""
    error = refusal(map_of(square, lambda ctx: ctx.store.put("before", 1) or [1], all_), "split", WorkflowError, pool)
    assert "state 'split': the callable that makes its branches must not write to the store" in str(error)


# -- pools


def test_a_closed_pool_is_refused():
    """A run on a closed pool fails with the cure, and the workflow runs on another."""
    with WorkerPool(1) as pool:
        pass
    flow = map_of(square, [2], all_)
    refusal(flow, "split", PoolClosedError, pool)
    with WorkerPool(1) as other:
        assert flow.orchestrate("split", pool=other) == "joined"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_workers": 0}, "max_workers must be a whole number of at least 1, got 0"),
        ({"max_workers": -1}, "got -1; leave it out for the default"),
        ({"max_workers": 2.0}, "got 2.0"),
        ({"max_workers": "2"}, "got '2'"),
        ({"max_workers": True}, "got True"),
        ({"spares": -1}, "spares must be"),
        ({"spares": "many"}, "spares must be"),
        ({"threads_per_worker": 0}, "threads_per_worker must be"),
        ({"max_tasks_per_worker": 0}, "max_tasks_per_worker must be"),
        ({"initializer": 5}, "initializer must be callable, got 5"),
        ({"env": "A=1"}, "env must be a mapping of names to values, got 'A=1'"),
        ({"env": {"A": 1}}, "env cannot have 'A': 1"),
        ({"env": {"A=B": "1"}}, "env cannot have 'A=B'"),
        ({"env": {"A": "1\0"}}, "env cannot have 'A'"),
    ],
)
def test_impossible_pools_are_refused(settings, words):
    """A setting of a pool that cannot work is refused when the pool is made, and nothing is started."""
    with pytest.raises(ConfigurationError) as caught:
        WorkerPool(**settings)
    assert words in str(caught.value)


def test_all_problems_of_a_pool_are_listed_at_once():
    """One error has every impossible setting."""
    with pytest.raises(ConfigurationError) as caught:
        WorkerPool(0, spares=-1, threads_per_worker=0, max_tasks_per_worker=-3, initializer="run")
    assert len(caught.value.problems) == 5


def test_pools_nest_one_level_deep():
    """A task in a worker may use a pool of its own; a task in a worker of that may not, and is told the cure."""

    def innermost(ctx, item):
        with WorkerPool(1) as third:
            return map_of(lambda ctx, item: item, [item], all_).orchestrate("split", pool=third)

    def inner(ctx, item):
        with WorkerPool(1) as second:
            _, run = ran(
                map_of(innermost if item == "deep" else (lambda ctx, item: item), [item], into="v", **best_effort),
                second,
            )
            return run.store.get("v")

    def failing(ctx, item):
        with WorkerPool(1) as second:
            map_of(innermost, [item], all_).orchestrate("split", pool=second)

    with WorkerPool(1) as pool:
        _, run = ran(map_of(inner, ["flat"], all_, into="v"), pool)
        assert run.store.get("v") == [["flat"]]
        error = refusal(map_of(failing, ["deep"], all_), "split", JoinError, pool)
        assert "one level too deep" in str(error)
        assert "flatten the workflow" in str(error)
        assert_works(pool)


# -- times


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: split_of([Act()], all_, timeout=-1).validate(), "timeout must be at least 0 seconds, got -1"),
        (lambda: split_of([Act()], all_, timeout=float("nan")).validate(), "timeout"),
        (lambda: TaskConfig(attempt_timeout=-1), "attempt_timeout must be above 0 seconds, got -1"),
        (lambda: Workflow("test", total_timeout=-1), "total_timeout must be above 0 seconds, got -1"),
        (lambda: Retry.fixed(1, -1), "delay must be at least 0 seconds, got -1"),
        (lambda: Retry.exponential(1, max_delay=-1), "max_delay must be at least 0 seconds, got -1"),
    ],
)
def test_negative_times_are_refused(make, words):
    """A time below zero is refused with its name and value, before anything runs."""
    with pytest.raises(ConfigurationError, match=words):
        make()


# -- arguments of runs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"params": 5}, "params must be a mapping or a dataclass, got int"),
        ({"pool": 5}, "pool"),
        ({"cancel": "now"}, "cancel"),
        ({"run_id": 7}, "run_id"),
    ],
)
def test_impossible_arguments_of_a_run_are_refused(options, words):
    """An argument of another type than it must have is refused when the run is started, with its name."""
    flow = split_of([Act()], all_)
    with pytest.raises(ConfigurationError, match=words):
        flow.orchestrate("split", **options)


WHILE_IMPORTED = """
from canobatch import JoinConfig, JoinStrategy, Workflow
from canobatch.scheduler import Scheduler

def work(ctx, item):
    return item

workflow = Workflow("words").register_map("begin", work, [1, 2], JoinConfig(JoinStrategy.all(), "end", into="all"))
workflow.add_exit_state("end")

def begin():
    return workflow.orchestrate("begin")

def serve():
    scheduler = Scheduler()
    scheduler.manual("words", workflow, "begin")
    with scheduler.start():
        pass

"""


@pytest.mark.parametrize("what", ["begin", "serve"])
def test_nothing_begins_while_its_module_is_imported(what, tmp_path, monkeypatch):
    """Workers would wait for the import, which waits for them: a run and a scheduler say so instead."""
    name = f"imported_to_{what}"
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / f"{name}.py"
    module.write_text(WHILE_IMPORTED + f"{what}()\n")
    with pytest.raises(ConfigurationError, match=f"while module '{name}' is being imported.*__name__ == '__main__'"):
        importlib.import_module(name)


def test_a_run_may_begin_once_its_module_is_imported(tmp_path, monkeypatch, pool):
    """What the module defines at its top level runs when asked for later."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_for_later.py").write_text(WHILE_IMPORTED)
    module = importlib.import_module("imported_for_later")
    assert module.workflow.orchestrate("begin", pool=pool) == "end"


def test_a_pool_may_be_as_large_as_can_be():
    """Only as many workers are made, and thought of, as there are calls."""
    with WorkerPool(10**20) as pool:
        map_of(lambda ctx, item: item, [1, 2], all_).orchestrate("split", pool=pool)
        assert {worker.slot for worker in pool.workers} <= {0, 1}
