"""What crosses between processes: values, errors, definitions, and the errors when something cannot."""

from __future__ import annotations

import decimal
import enum
import fractions
import functools
import pickle
import sys
import textwrap
import threading
import types
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canobatch import Task
from canobatch.effects import dumps, entry_of, loads, rebuild_error, record_error
from canobatch.errors import PayloadError, RemoteError, StoreKeyError, TaskError
from canobatch.packing import DRAG_LIMIT, mains_in, pack_definition, pack_mains, register_mains

BIG = b"x" * (2 * DRAG_LIMIT)


def there_and_back(value):
    """Return what arrives of a value."""
    return loads(dumps(value))


# -- values

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(plain)
def test_plain_data_arrive_as_they_were(value):
    """What is made of None, numbers, text, bytes and containers comes back equal and of the same type."""
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


class Colour(enum.Enum):
    """An importable enum."""

    RED = 1


@dataclass
class Point:
    """An importable dataclass."""

    x: int


def test_what_can_be_imported_goes_by_name():
    """Functions, classes and enum members of modules are the same objects after the way there and back."""
    for value in (Colour, Colour.RED, Point, plain_function, len, enum.auto):
        assert there_and_back(value) is value
    assert there_and_back([Point(3), Colour.RED]) == [Point(3), Colour.RED]


def plain_function():
    """Used above."""


def test_what_has_no_name_goes_by_value():
    """Lambdas, closures and classes made in functions travel too."""
    factor = 3

    class Local:
        def triple(self, n):
            return factor * n

    assert there_and_back(lambda n: n * factor)(5) == 15
    assert there_and_back(Local().triple)(5) == 15


def test_what_arrives_is_a_copy():
    """Changing what arrived leaves what was sent as it was."""
    sent = {"a": [1]}
    there_and_back(sent)["a"].append(2)
    assert sent == {"a": [1]}


class Refuses:
    """Does not pickle, with a reason of its own."""

    def __reduce__(self):
        raise RuntimeError("I stay here\nfor good")


class UglyRefuses(Refuses):
    """Cannot even be shown."""

    def __repr__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (threading.Lock(), ("lock", "cannot pickle '_thread.lock' object")),
        ([1, threading.Lock()], ("list", "cannot be pickled")),
        ((n for n in [1]), ("generator", "cannot be pickled")),
        (Refuses(), ("Refuses", "RuntimeError: I stay here")),
        (UglyRefuses(), ("UglyRefuses",)),
    ],
    ids=["lock", "list", "generator", "own reason", "no repr"],
)
def test_what_does_not_pickle_is_described(value, words):
    """A value that does not pickle is a PayloadError, a TypeError, with the value in short and the reason."""
    with pytest.raises(PayloadError) as caught:
        dumps(value)
    assert all(word in str(caught.value) for word in words)
    assert isinstance(caught.value, TypeError)
    assert len(str(caught.value)) < 400


def test_deep_nesting_is_an_error_like_others():
    """A value too deep for pickle is a PayloadError that names the recursion."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PayloadError, match=r"(?i)recursion"):
        dumps(deep)
    while deep:  # freeing it recursively would overflow as well
        deep = deep[0]


# -- store entries


@pytest.mark.parametrize(
    ("value", "category"),
    [
        ([], "list"),
        ([1], "list"),
        (3, "number"),
        (3.5, "number"),
        (2j, "number"),
        (fractions.Fraction(1, 3), "number"),
        (decimal.Decimal("0.1"), "number"),
        (True, ""),
        ((), ""),
        ("text", ""),
        (None, ""),
        ({}, ""),
    ],
)
def test_an_entry_knows_what_may_be_done_to_it(value, category):
    """Lists can be appended to, numbers added to; a bool is no number here."""
    entry = entry_of(value)
    assert (entry.category, entry.type_name) == (category, type(value).__name__)
    assert loads(entry.data) == value


def test_a_subclass_of_list_is_a_list():
    """What is a list by inheritance can be appended to."""

    class Names(list):
        pass

    assert entry_of(Names()).category == "list"


# -- errors


def caught(function, *args):
    """Return what a call raises."""
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def travelled(error):
    """Return what arrives of an error."""
    return rebuild_error(tuple(record_error(error)))


class TwoArgumentsError(Exception):
    """The classic: pickles, does not load."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code


class UnprintableError(Exception):
    """str() of it raises."""

    def __str__(self):
        raise ZeroDivisionError("no text")


class UnpicklableError(Exception):
    """Holds what does not pickle."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class ExitsError(Exception):
    """Ends the process that loads it."""

    def __reduce__(self):
        return sys.exit, (3,)


class BecomesTextError(Exception):
    """Loads as something that is no exception."""

    def __reduce__(self):
        return str, ("gotcha",)


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), KeyError("k"), OSError(2, "gone", "/x"), SystemExit(3), KeyboardInterrupt(), StopIteration(1)],
    ids=repr,
)
def test_builtin_errors_arrive_as_they_were(error):
    """An error comes back with its class and arguments."""
    back = travelled(error)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)


def test_our_own_errors_keep_their_facts():
    """A StoreKeyError raised in a task arrives with its key."""
    back = travelled(StoreKeyError("no key 'a'", key="a"))
    assert (type(back), back.key, str(back)) == (StoreKeyError, "a", "no key 'a'")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TwoArgumentsError(5, "bad"), "TwoArgumentsError: 5: bad"),
        (UnpicklableError("held"), "UnpicklableError: held"),
        (ExitsError("bye"), "ExitsError: bye"),
        (BecomesTextError("was"), "BecomesTextError: was"),
    ],
    ids=["arguments", "pickle", "exit", "no exception"],
)
def test_a_broken_class_arrives_by_name_and_text(error, text):
    """An error whose class cannot be rebuilt arrives as a RemoteError with its name and text, and hurts nobody."""
    back = travelled(error)
    assert isinstance(back, RemoteError)
    assert str(back).endswith(text)
    assert back.type_name == f"{__name__}.{type(error).__name__}"


def test_an_error_that_cannot_be_shown_arrives():
    """An error whose str() raises is recorded all the same."""
    assert record_error(UnprintableError()).text == "<its str() raises>"
    assert type(travelled(UnprintableError())) is UnprintableError


def chained():
    """Raise a chain with a note on every link."""
    try:
        try:
            raise OSError(5, "disk")
        except OSError as error:
            error.add_note("first")
            raise TwoArgumentsError(1, "broken in the middle") from error
    except TwoArgumentsError as error:
        error.add_note("second")
        last = ValueError("outermost")
        last.add_note("third")
        raise last from error


def test_causes_arrive_link_by_link():
    """Each cause arrives as itself, also on both sides of one whose class is broken."""
    back = travelled(caught(chained))
    assert (type(back), type(back.__cause__), type(back.__cause__.__cause__)) == (ValueError, RemoteError, OSError)
    assert back.__suppress_context__
    assert back.__cause__.__cause__.errno == 5
    assert back.__cause__.__cause__.__cause__ is None


def test_notes_arrive_on_every_link():
    """Notes stay with their error, also where its class is broken."""
    back = travelled(caught(chained))
    assert back.__notes__ == ["third"]
    assert back.__cause__.__notes__ == ["second"]
    assert back.__cause__.__cause__.__notes__ == ["first"]


def test_what_was_being_handled_arrives_as_context():
    """An error raised while another was handled arrives with it as context, not as cause."""

    def fail():
        try:
            {}["missing"]
        except KeyError:
            raise ValueError("while handling")  # noqa: B904

    back = travelled(caught(fail))
    assert back.__cause__ is None
    assert type(back.__context__) is KeyError
    assert not back.__suppress_context__


def test_from_none_hides_the_context():
    """`raise ... from None` shows no context here either."""

    def fail():
        try:
            {}["missing"]
        except KeyError:
            raise ValueError("alone") from None

    back = travelled(caught(fail))
    assert back.__cause__ is None
    assert back.__context__ is None or back.__suppress_context__


def test_a_chain_without_end_arrives_cut():
    """A very long chain, and one that goes round in a circle, arrive with their first links."""
    error: BaseException = ValueError(0)
    for number in range(1, 2000):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    back = travelled(error)
    assert (back.args, back.__cause__.args) == ((1999,), (1998,))
    one, two = ValueError(1), ValueError(2)
    one.__context__, two.__context__ = two, one
    assert travelled(one).__context__.args == (2,)


def test_the_traceback_goes_along_as_text():
    """A record holds the traceback of the whole chain, with the lines of the code that raised."""
    record = record_error(caught(chained))
    assert "in chained" in record.traceback
    assert "OSError: [Errno 5] disk" in record.traceback
    assert record.traceback.rstrip().endswith("third")


def test_a_group_arrives_whole():
    """An ExceptionGroup arrives with the errors in it."""
    back = travelled(ExceptionGroup("both", [ValueError(1), TwoArgumentsError(2, "x")]))
    if isinstance(back, ExceptionGroup):
        assert [type(error) for error in back.exceptions] == [ValueError, TwoArgumentsError]
    else:
        assert "both" in str(back)


def test_an_error_of_a_class_made_in_a_function_arrives():
    """A class that only exists inside a function still arrives as an exception with the same text."""

    class LocalError(Exception):
        pass

    back = travelled(LocalError("here"))
    assert str(back).endswith("here")


def test_a_record_is_plain_data():
    """A record holds only what marshal can carry."""
    import marshal

    record = tuple(record_error(caught(chained)))
    assert marshal.loads(marshal.dumps(record)) == record


# -- definitions


def pack(*tasks):
    """Pack tasks as a driver does."""
    return pack_definition(list(tasks), "state COUNT")


def test_a_definition_arrives():
    """Functions, closures and task objects can be called on the other side."""
    factor = 3

    @dataclass
    class Scale(Task):
        by: int

        def run(self, ctx):
            return self.by * factor

    lambda_, scale = pickle.loads(pack(lambda n: n * factor, Scale(5)))
    assert lambda_(2) == 6
    assert scale.run(None) == 15


@pytest.fixture
def main(monkeypatch):
    """Run source as a script's: in a fresh module that is ``__main__``; return its names."""

    def run(source):
        module = types.ModuleType("__main__")
        monkeypatch.setitem(sys.modules, "__main__", module)
        exec(textwrap.dedent(source), vars(module))
        return module

    return run


class Holder:
    """Holds whatever it is given."""

    def __init__(self, **held):
        vars(self).update(held)

    def __call__(self, ctx):
        return self


def test_an_unpicklable_global_is_named(main):
    """A script's function that uses a lock is refused, with the name of the lock and of the function."""
    module = main("""
        import threading
        guard = threading.Lock()
        def count(ctx):
            with guard:
                return 1
    """)
    with pytest.raises(PayloadError) as error:
        pack(module.count)
    text = str(error.value)
    assert text.startswith("state COUNT cannot be sent to a worker: ")
    assert "global 'guard' of count" in text
    assert "create it inside the task" in text


def test_an_unpicklable_closure_is_named():
    """What a function encloses is named with the function."""
    guard = threading.Lock()
    with pytest.raises(PayloadError, match=r"'guard' enclosed by test_.*<lambda>"):
        pack(lambda ctx: guard)


def test_an_unpicklable_field_is_named():
    """A field of a task is named with its class, also deep inside."""
    for held in (threading.Lock(), [1, threading.Lock()], {"a": {"b": threading.Lock()}}):
        with pytest.raises(PayloadError, match=r"Holder\.handle"):
            pack(Holder(size=3, handle=held))
    with pytest.raises(PayloadError, match=r"Holder\.inner.*|Holder\.deepest"):
        pack(Holder(inner=Holder(deepest=threading.Lock())))


def test_an_unpicklable_default_is_named():
    """A default value of an argument is named with the function."""
    guard = threading.Lock()

    def count(ctx, lock=guard):
        return 1

    with pytest.raises(PayloadError, match=r"'lock'.*count"):
        pack(count)


def test_an_unpicklable_bound_argument_is_named():
    """An argument that functools.partial binds is named."""
    with pytest.raises(PayloadError, match=r"lock"):
        pack(functools.partial(lambda ctx, lock: 1, lock=threading.Lock()))


def test_an_unpicklable_class_attribute_is_named(main):
    """An attribute of a script's class is named with the class."""
    module = main("""
        import threading
        from canobatch import Task
        class Count(Task):
            guard = threading.Lock()
            def run(self, ctx):
                return 1
    """)
    with pytest.raises(PayloadError, match=r"Count.*guard"):
        pack(module.Count())


def test_what_a_called_function_uses_is_named(main):
    """The culprit is found through functions that call functions."""
    module = main("""
        import threading
        guard = threading.Lock()
        def inner():
            return guard
        def outer(ctx):
            return inner()
    """)
    with pytest.raises(PayloadError, match="guard"):
        pack(module.outer)


def test_the_right_one_of_many_is_named():
    """Among tasks that are fine the one that does not pickle is named."""
    guard = threading.Lock()
    with pytest.raises(PayloadError, match="'guard' enclosed by"):
        pack(lambda: 1, Holder(a=1), lambda: guard, lambda: 2)


def test_circles_do_not_hang_the_search():
    """Objects that refer to each other are searched once."""
    one, two = Holder(), Holder(guard=threading.Lock())
    one.two, two.one = two, one
    with pytest.raises(PayloadError, match="guard"):
        pack(one)


def test_a_large_global_is_named(main):
    """A script's function that uses a large global is refused, with its name, its size and the cure."""
    module = main("""
        table = bytes(3_000_000)
        def count(ctx):
            return len(table)
    """)
    with pytest.raises(PayloadError) as error:
        pack(module.count)
    assert "it drags global 'table' of count along, 3.0 MB pickled" in str(error.value)
    assert "put it in the store" in str(error.value)


def test_a_large_closure_is_named():
    """A function that encloses something large is refused with the name."""
    table = BIG
    with pytest.raises(PayloadError, match=r"drags 'table' enclosed by .*<lambda> along, 2\.1 MB"):
        pack(lambda ctx: len(table))


def test_what_a_called_function_drags_is_named(main):
    """Something large is found through functions that call functions, and through methods of tasks."""
    module = main("""
        from canobatch import Task
        table = bytes(3_000_000)
        def size():
            return len(table)
        class Count(Task):
            def run(self, ctx):
                return size()
        def count(ctx):
            return size()
    """)
    for task in (module.count, module.Count()):
        with pytest.raises(PayloadError, match="global 'table' of size"):
            pack(task)


def test_a_large_argument_is_no_drag():
    """What a task is given as its own may be large: it was meant."""
    assert len(pack(Holder(data=BIG))) > len(BIG)


def test_what_can_be_imported_is_not_dragged():
    """A function of a module that workers can import goes by name, whatever globals it has."""
    assert len(pack(uses_big)) < 1000


def uses_big(ctx):
    """Used above."""
    return BIG


def test_many_small_things_are_no_drag():
    """A definition that is large only as a sum is sent."""
    small = [b"x" * 1000] * 5
    tasks = [Holder(index=index, text=str(index) * 300) for index in range(2000)]
    assert len(pack(*tasks, lambda: small)) > DRAG_LIMIT


# -- scripts

SCRIPT = """
    import enum, dataclasses
    class S(enum.Enum):
        A = 1
        B = 2
    @dataclasses.dataclass(frozen=True)
    class Point:
        x: int
        def far(self):
            return self.x > limit
    limit = 10
    def helper():
        return S.A
    class Unused: ...
"""


def test_a_script_s_classes_go_by_name(main):
    """States and dataclasses of __main__ are identical and equal after the way there and back."""
    module = main(SCRIPT)
    assert there_and_back(module.S.A) is module.S.A
    assert there_and_back(module.Point(3)) == module.Point(3)
    assert {there_and_back(module.S.B): 1}[module.S.B] == 1
    assert there_and_back(module.helper) is module.helper


def test_a_script_s_classes_go_by_name_beside_what_goes_by_value(main):
    """A class of __main__ inside something that needs cloudpickle is still the same class."""
    module = main(SCRIPT)
    state, function = there_and_back((module.S.A, lambda: 5))
    assert state is module.S.A
    assert function() == 5


def test_names_of_a_script_are_found_in_bytes(main):
    """mains_in says which classes and functions of __main__ a pickle refers to."""
    module = main(SCRIPT)
    assert mains_in(dumps([module.S.A, 5])) == {"S"}
    assert {"S", "Point"} <= mains_in(dumps([module.S.A, module.Point(1)]))
    assert mains_in(dumps(module.helper)) == {"helper"}
    assert "helper" not in mains_in(dumps([module.S.A, "helper"]))
    assert "helper" in mains_in(dumps(["helper", module.S.A, module.helper]))
    assert mains_in(dumps(Point(3))) == frozenset()


def test_a_worker_learns_the_classes_of_a_script(main):
    """With pack_mains and register_mains a pickle by name loads where the script never ran."""
    module = main(SCRIPT)
    sent, definitions = dumps([module.S.B, module.Point(30)]), pack_mains(["S", "Point"])
    module.S.A  # noqa: B018
    elsewhere = main("")
    register_mains(definitions)
    state, point = loads(sent)
    assert (state, point.x) == (elsewhere.S.B, 30)
    assert state is elsewhere.S(2)
    assert point.far()


def test_a_worker_s_answer_is_the_script_s_own(main):
    """What a worker sends back by name is the launcher's object."""
    module = main(SCRIPT)
    definitions = pack_mains(["S"])
    elsewhere = main("")
    register_mains(definitions)
    answer = dumps(elsewhere.S.A)
    sys.modules["__main__"] = module
    assert loads(answer) is module.S.A


def test_what_does_not_pickle_is_left_out_of_the_classes(main):
    """A class of the script that does not pickle keeps none of the others from the worker."""
    module = main("""
        import threading
        class Good: ...
        class Bad:
            guard = threading.Lock()
    """)
    packed = pack_mains(["Good", "Bad", "Missing"])
    elsewhere = main("")
    register_mains(packed)
    assert elsewhere.Good.__name__ == module.Good.__name__
    assert not hasattr(elsewhere, "Bad")


def test_a_task_error_still_pickles_with_whatever_it_holds():
    """An error made by canobatch survives dumps with state, branch, attempt and path."""
    error = there_and_back(TaskError("text", state=Colour.RED, branch=3, attempt=2, path=(Colour.RED,)))
    assert (error.state, error.branch, error.attempt, error.path) == (Colour.RED, 3, 2, (Colour.RED,))
