"""Resources in the parent: their order, their rollback, who shares them, and what is looked up."""

from __future__ import annotations

import logging
import pickle
import threading
from datetime import timedelta

import cloudpickle
import pytest

from canobatch import Counter, MemoryStore, Resource, Resources, Semaphore
from canobatch.errors import ConfigurationError, ResourceError, ResourceLookupError
from canobatch.resources import Health, HealthStatus


class Noted(Resource):
    """Notes what is done with it, and fails where it is told to."""

    def __init__(self, name, notes, fails=()):
        super().__init__()
        self.name, self.notes, self.fails = name, notes, fails

    def _note(self, what):
        self.notes.append(f"{what} {self.name}")
        if what in self.fails:
            raise OSError(f"no {self.name}")

    def setup(self):
        self._note("up")

    def teardown(self):
        self._note("down")


def noted(*names, **fails):
    """Return resources that note into a list, and the list."""
    notes = []
    return Resources({name: Noted(name, notes, fails.get(name, ())) for name in names}), notes


# ---------------------------------------------------------------- the container


def test_a_key_that_is_taken_is_an_error():
    """Inserting twice under one key names the key, and changes nothing."""
    first = Noted("a", [])
    resources = Resources({"a": first})
    with pytest.raises(ConfigurationError, match="there is a resource 'a' already"):
        resources.insert("a", Noted("b", []))
    assert resources["a"] is first


@pytest.mark.parametrize("limit", [0, -1, float("nan"), "60"])
def test_an_impossible_hook_timeout_is_refused(limit):
    """A hook that could never end in time is an error at once, not in a run."""

    class Hasty(Resource):
        hook_timeout = limit

    with pytest.raises(ConfigurationError, match="resource 'a': hook_timeout must be above 0 seconds"):
        Resources({"a": Hasty()})


@pytest.mark.parametrize("limit", [timedelta(seconds=5), 1e300, None])
def test_a_hook_timeout_may_be_any_duration(limit):
    """A timedelta, longer than anybody lives, or no limit."""
    notes = []

    class Patient(Resource):
        hook_timeout = limit

        def setup(self):
            notes.append("set up")

    with Resources({"a": Patient()}).held():
        assert notes == ["set up"]


def test_inserting_chains_and_keeps_the_order():
    """insert returns the resources; they are read in the order in which they came."""
    resources = Resources({"b": Counter()}).insert("a", Counter()).insert("c", Counter())
    assert list(resources) == ["b", "a", "c"]
    assert len(resources) == 3
    assert "a" in resources
    assert "d" not in resources
    assert resources.get("d", 5) == 5


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (None, "resource 'k' cannot be None"),
        (Noted, r"give an instance: Noted\(...\)"),
        (Resource(scope="thread"), """scope must be "run" or "worker", got 'thread'"""),
    ],
)
def test_what_is_no_resource_is_refused(thing, words):
    """A class, nothing, or an unknown scope is a ConfigurationError that names the key."""
    with pytest.raises(ConfigurationError, match=words):
        Resources({"k": thing})


def test_a_lookup_gives_the_very_object():
    """The same object each time, whatever its key's type."""
    thing = Noted("a", [])
    resources = Resources({("db", 1): thing, 7: MemoryStore()})
    assert resources[("db", 1)] is thing
    assert resources.find(("db", 1), Noted) is thing
    assert resources.find(("db", 1), Resource) is thing
    assert isinstance(resources[7], MemoryStore)


def test_w27_errors_name_the_key():
    """A missing key lists the others; a wrong type names both types; both are LookupErrors."""
    resources = Resources({"db": Counter()})
    with pytest.raises(ResourceLookupError, match=r"no resource 'bd'; keys: 'db'") as caught:
        resources.find("bd")
    assert caught.value.key == "bd"
    assert isinstance(caught.value, LookupError)
    with pytest.raises(ResourceLookupError, match=r"resource 'db' is a Counter, not a Semaphore") as caught:
        resources.find("db", Semaphore)
    assert caught.value.key == "db"
    with pytest.raises(ResourceLookupError, match=r"keys: none"):
        Resources()["x"]


def test_the_scope_is_an_attribute_that_the_constructor_overrides():
    """scope="run" unless the class or the constructor says otherwise."""

    class Model(Resource):
        scope = "worker"

    assert Resource().scope == "run"
    assert Model().scope == "worker"
    assert Model(scope="run").scope == "run"


# ---------------------------------------------------------------- setup and teardown


def test_setup_goes_first_to_last_and_teardown_last_to_first():
    """First in, last out."""
    resources, notes = noted("a", "b", "c")
    with resources.held():
        assert notes == ["up a", "up b", "up c"]
    assert notes[3:] == ["down c", "down b", "down a"]


def test_a_failed_setup_tears_down_what_was_set_up_before_it():
    """Of four the third fails: the first two are torn down, in reverse; the third and the fourth never."""
    resources, notes = noted("a", "b", "c", "d", c=("up",))
    with (
        pytest.raises(ResourceError, match=r"resource 'c': setup\(\) failed: OSError: no c") as caught,
        resources.held(),
    ):
        raise AssertionError
    assert notes == ["up a", "up b", "up c", "down b", "down a"]
    assert caught.value.key == "c"
    assert type(caught.value.__cause__) is OSError


def test_a_failed_setup_can_be_tried_again():
    """What failed once leaves nothing behind that would disturb the next run."""
    resources, notes = noted("a", "b", b=("up",))
    with pytest.raises(ResourceError), resources.held():
        raise AssertionError
    resources["b"].fails = ()
    notes.clear()
    with resources.held():
        pass
    assert notes == ["up a", "up b", "down b", "down a"]


def test_a_failed_teardown_stops_nothing_and_is_logged(caplog):
    """The others are torn down all the same, and what failed is named in the log."""
    resources, notes = noted("a", "b", "c", b=("down",))
    with caplog.at_level(logging.WARNING), resources.held():
        notes.clear()
    assert notes == ["down c", "down b", "down a"]
    assert "resource 'b': teardown() failed: OSError: no b" in caplog.text


def test_a_failure_inside_does_not_keep_them_from_being_torn_down():
    """And stays the error that is seen."""
    resources, notes = noted("a", a=("down",))
    with pytest.raises(KeyError), resources.held():
        raise KeyError
    assert notes == ["up a", "down a"]


def test_hooks_may_be_async():
    """A coroutine is run to its end."""
    notes = []

    class Async(Resource):
        async def setup(self):
            notes.append("up")

    with Resources({"a": Async()}).held():
        assert notes == ["up"]


def test_w15_concurrent_runs_share_one_set_up():
    """The first to come sets up, the last to leave tears down; the next sets up again."""
    resources, notes = noted("a")
    with resources.held():
        with resources.held():
            assert notes == ["up a"]
        assert notes == ["up a"]
    assert notes == ["up a", "down a"]
    with resources.held():
        assert notes == ["up a", "down a", "up a"]


def test_w15_a_second_run_waits_until_the_first_has_set_up():
    """Nobody goes on with half of what they need."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Resource):
        is_ready = False

        def setup(self):
            begun.set()
            go_on.wait(60.0)
            self.is_ready = True

    slow = Slow()
    resources, seen = Resources({"slow": slow}), []

    def hold():
        with resources.held():
            seen.append(slow.is_ready)

    threads = [threading.Thread(target=hold) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(60.0)
    assert seen == []
    go_on.set()
    for thread in threads:
        thread.join()
    assert seen == [True] * 3


def test_w15_a_setup_that_hangs_fails_when_its_time_is_over():
    """It is left alone, named with its limit, and rolled back like any other failure."""
    go_on = threading.Event()

    class Hangs(Resource):
        hook_timeout = 0.05

        def setup(self):
            go_on.wait(60.0)

    resources, notes = noted("a")
    resources.insert("hangs", Hangs())
    with pytest.raises(ResourceError, match=r"'hangs': setup\(\) has not ended within 0.05 s"), resources.held():
        raise AssertionError
    go_on.set()
    assert notes == ["up a", "down a"]


def test_w15_a_teardown_that_hangs_holds_nobody_up(caplog):
    """The next one is torn down when its time is over, and the log says so."""
    go_on = threading.Event()

    class Hangs(Resource):
        hook_timeout = 0.05

        def teardown(self):
            go_on.wait(60.0)

    resources, notes = noted("a")
    resources.insert("hangs", Hangs())
    with caplog.at_level(logging.WARNING), resources.held():
        pass
    go_on.set()
    assert notes == ["up a", "down a"]
    assert "'hangs': teardown() has not ended within 0.05 s" in caplog.text


def test_nothing_can_be_added_once_a_run_has_begun():
    """Workers may have got them already."""
    resources, _ = noted("a")
    with resources.held():
        pass
    with pytest.raises(ConfigurationError, match="'b' cannot be added"):
        resources.insert("b", Counter())


def test_things_without_hooks_are_just_there():
    """Any object may be looked up; only a Resource is set up."""

    class Closes:
        def teardown(self):
            raise AssertionError

    thing = Closes()
    resources = Resources({"thing": thing, "data": {"a": 1}})
    with resources.held():
        assert resources["thing"] is thing
    assert resources.health() == {"thing": Health(), "data": Health()}


# ---------------------------------------------------------------- those of workers


class Model(Resource):
    """A worker's resource whose setup makes what does not pickle."""

    scope = "worker"
    made: list = []  # noqa: RUF012 - counts

    def setup(self):
        self.lock = threading.Lock()
        self.made.append("up")

    def teardown(self):
        self.made.append("down")


def test_a_task_in_the_parent_gets_a_copy_of_a_worker_s_resource():
    """Set up when first asked for, torn down with the rest; what is sent to workers stays as it was given."""
    Model.made.clear()
    given = Model()
    resources = Resources({"model": given})
    with resources.held():
        assert Model.made == []
        model = resources.find("model", Model)
        assert resources["model"] is model
        assert model is not given
        assert Model.made == ["up"]
        assert set(resources.packed()) == {"model"}
    assert Model.made == ["up", "down"]
    assert not hasattr(given, "lock")


def test_only_what_a_worker_may_use_is_packed():
    """Run-scoped resources stay; a worker knows no more than their keys."""
    resources, _ = noted("db")
    packed = resources.insert("model", Model()).packed()
    assert packed["db"] is None
    assert type(pickle.loads(packed["model"])) is Model


def test_a_worker_s_resource_that_does_not_pickle_is_named():
    """With its key and the cure."""

    class Holds(Resource):
        scope = "worker"

        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(ResourceError, match=r"resource 'held' cannot be sent to a worker: .*lock.*setup\(\)"):
        Resources({"held": Holds()}).packed()


def test_resources_that_a_task_mentions_are_not_dragged_along():
    """They pickle as a stand-in that says what to use instead."""
    resources, _ = noted("db")
    elsewhere = cloudpickle.loads(cloudpickle.dumps(resources))
    with pytest.raises(ResourceError, match=r"use ctx.resource\(key\)"):
        elsewhere.find("db")


# ---------------------------------------------------------------- health


class Patient(Resource):
    """Says what it is told to."""

    hook_timeout = 0.05

    def __init__(self, health):
        super().__init__()
        self._health = health

    def health(self):
        return self._health() if callable(self._health) else self._health


def fails():
    raise OSError("gone")


def test_health_is_reported_for_each():
    """Healthy unless it says otherwise; who raises, hangs or talks nonsense is unhealthy."""
    hang = threading.Event()
    resources = Resources(
        {
            "well": Resource(),
            "slow": Patient(Health.degraded("busy")),
            "broken": Patient(fails),
            "odd": Patient(5),
            "hangs": Patient(lambda: hang.wait(60.0)),
            "count": Counter(),
        }
    )
    health = resources.health()
    hang.set()
    assert list(health) == ["well", "slow", "broken", "odd", "hangs", "count"]
    assert health["well"] == health["count"] == Health(HealthStatus.HEALTHY)
    assert health["slow"] == Health(HealthStatus.DEGRADED, "busy")
    assert "OSError: gone" in health["broken"].reason
    assert "5" in health["odd"].reason
    assert "has not ended" in health["hangs"].reason
    assert {health[key].status for key in ("broken", "odd", "hangs")} == {HealthStatus.UNHEALTHY}


def test_the_worst_health_is_that_of_the_first_of_the_worst():
    """Healthy when there is nothing."""
    assert Resources().worst_health() == Health()
    degraded, worse, worst = Health.degraded("a"), Health.unhealthy("b"), Health.unhealthy("c")
    resources = Resources({n: Patient(health) for n, health in enumerate([Health(), degraded, worse, worst])})
    assert resources.worst_health() == worse


# ---------------------------------------------------------------- counter


def test_a_counter_adds_up():
    """Adding returns the sum."""
    counter = Counter(10)
    assert counter.add() == 11
    assert counter.add(-1.5) == 9.5
    assert counter.value == 9.5


@pytest.mark.parametrize("n", ["1", None, True])
def test_a_counter_takes_numbers(n):
    """Anything else is a ConfigurationError."""
    with pytest.raises(ConfigurationError, match="it takes numbers"):
        Counter().add(n)
    with pytest.raises(ConfigurationError, match="it takes numbers"):
        Counter(n)
