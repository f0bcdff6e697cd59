"""What crosses between processes, and its bytes: values, store operations, errors.

A value is pickled by reference wherever that works, also for what lives in ``__main__``; see `packing`
for how workers come to know those names.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import reprlib
import sys
import traceback
import types
from numbers import Number
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from canobatch.errors import PayloadError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROTOCOL = 5

#: From this many bytes on a value lies in a segment, and a buffer in it is read in place.
LARGE = 1 << 20

# -- values


class Memory(Protocol):
    """Bytes that lie somewhere, and that never change."""

    def view(self) -> memoryview:
        """Return them, read-only, mapped when first asked for."""


class Placed:
    """A packed value whose bytes lie in a segment: its pickle, then the buffers it refers to."""

    __slots__ = ("__weakref__", "segment", "spans")

    def __init__(self, segment: Memory, spans: tuple[tuple[int, int], ...]) -> None:
        self.segment = segment
        #: (offset, length) of the pickle and of each buffer.
        self.spans = spans

    def parts(self) -> list[memoryview]:
        """Return the pickle and the buffers."""
        view = self.segment.view()
        return [view[at : at + length] for at, length in self.spans]

    def stream(self) -> memoryview:
        """Return the pickle."""
        return self.parts()[0]

    def load(self) -> Any:
        """Return the value; its large buffers are views of the segment."""
        stream, *buffers = self.parts()
        return pickle.loads(stream, buffers=buffers)  # noqa: S301 - made by our own processes


class Loadable(Protocol):
    """A packed value that knows how to be unpacked."""

    def load(self) -> Any:
        """Return the value."""


#: Bytes in one piece.
Flat: TypeAlias = bytes | bytearray | memoryview
#: A packed value.
Data: TypeAlias = bytes | bytearray | memoryview | Loadable


class Place(Protocol):
    """Puts the bytes of a large value into a segment."""

    def __call__(self, stream: Sequence[Any], buffers: Sequence[memoryview] = ()) -> Placed:
        """Write the pieces of a pickle, and the buffers it refers to.

        Raises:
            StoreFullError: There is no room.
        """


def pack(value: Any, place: Place | None = None) -> Data:
    """Pickle a value; a large one is put where ``place`` says, without a copy of its buffers in between.

    Raises:
        PayloadError: It cannot be pickled.
        StoreFullError: There is no room for it.
    """
    if place is None or value is None or type(value) in _SMALL:
        return dumps(value)
    opcode = _RAW.get(type(value))  # type: ignore[call-overload]
    if opcode is not None and len(value) >= LARGE:
        return place([opcode + len(value).to_bytes(8, "little"), value, pickle.STOP])
    buffers: list[memoryview] = []
    stream = dumps(value, buffers)
    return place([stream], buffers) if buffers or len(stream) >= LARGE else stream


_BYTES = (bytes, bytearray, memoryview)
_DATA = (Placed, *_BYTES)
#: What is never large.
_SMALL = frozenset({bool, int, float})
#: What is a pickle with a few bytes around it.
_RAW = {bytes: b"\x80\x05" + pickle.BINBYTES8, bytearray: b"\x80\x05" + pickle.BYTEARRAY8}


def dumps(value: Any, buffers: list[memoryview] | None = None) -> bytes:
    """Pickle a value; what has no importable name goes by value.

    Args:
        value: Anything.
        buffers: Takes the large buffers, which are not in the pickle then.

    Raises:
        PayloadError: It cannot be pickled.
    """
    stays = None if buffers is None else _taking(buffers)
    try:
        if stays is None or "numpy" not in sys.modules:
            return pickle.dumps(value, PROTOCOL, buffer_callback=stays)
        plain = io.BytesIO()
        pickler = pickle.Pickler(plain, PROTOCOL, buffer_callback=stays)
        pickler.dispatch_table = _with_arrays()
        pickler.dump(value)
        return plain.getvalue()
    except Exception:  # noqa: BLE001 - whatever a __reduce__ raises; tried again below
        if buffers is not None:
            buffers.clear()
    import cloudpickle  # noqa: PLC0415 - 35 ms, seldom needed

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type | types.FunctionType) and _is_named_in_main(obj):
                # Not as a global: pickle would insist on the very object.
                return _named, ("__main__", obj.__qualname__)
            if isinstance(obj, memoryview):
                flat = pickle.PickleBuffer(obj if obj.c_contiguous else obj.tobytes())
                return _as_view, (flat, obj.format, obj.shape)
            return super().reducer_override(obj)

    buffer = io.BytesIO()
    try:
        Pickler(buffer, PROTOCOL, buffer_callback=stays).dump(value)
    except Exception as error:
        raise PayloadError(f"{_describe(value)} cannot be pickled: {first_line(error)}") from error
    return buffer.getvalue()


def stream_of(data: Data) -> bytes | bytearray | memoryview:
    """Return the pickle of packed data."""
    if isinstance(data, Placed):
        return data.stream()
    assert isinstance(data, _BYTES)
    return data


def loads(data: Data) -> Any:
    """Return the value that `pack` or `dumps` packed."""
    if isinstance(data, _BYTES):
        return pickle.loads(data)  # noqa: S301 - made by our own processes
    return data.load()


def _taking(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    def stays(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < LARGE:
            return True
        buffers.append(raw)
        return False

    return stays


def _with_arrays() -> dict[type, Any]:
    """Return the table of reducers with one for arrays: those not in one piece would travel as a copy otherwise."""
    return {**copyreg.dispatch_table, sys.modules["numpy"].ndarray: _reduce_array}


def _reduce_array(array: Any) -> Any:
    flags = array.flags
    if array.nbytes >= LARGE and not (flags.c_contiguous or flags.f_contiguous) and not array.dtype.hasobject:
        array = array.copy()
    return array.__reduce_ex__(PROTOCOL)


def _as_view(flat: Any, form: str, shape: tuple[int, ...]) -> memoryview:
    return memoryview(flat).toreadonly().cast("B").cast(form, shape)  # type: ignore[call-overload,no-any-return]


#: In a worker: the names of the functions of the launcher's ``__main__``. A task's own copies of them, which
#: came by value, go back by name.
main_functions: set[str] = set()


def _named(module: str, qualname: str) -> Any:
    found: Any = sys.modules[module]
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def _is_named_in_main(obj: Any) -> bool:
    if getattr(obj, "__module__", None) != "__main__":
        return False
    if isinstance(obj, types.FunctionType) and obj.__qualname__ in main_functions:
        # This worker may be the one to read it.
        vars(sys.modules["__main__"]).setdefault(obj.__qualname__, obj)
        return True
    found: Any = sys.modules.get("__main__")
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj


def _describe(value: Any) -> str:
    try:
        text = value.__qualname__ if isinstance(value, type) else reprlib.repr(value)
    except Exception:  # noqa: BLE001 - a user's __repr__
        return f"a {type(value).__name__}"
    return f"{type(value).__name__} {text}"


def describe_error(error: BaseException) -> str:
    """Return type and text of an exception, whose ``__str__`` may itself be broken."""
    return f"{type(error).__name__}: {_text(error)}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's __str__
        return "<its str() raises>"


def first_line(error: BaseException) -> str:
    """Return type and first line of an exception."""
    return f"{type(error).__name__}: {(_text(error).strip() or 'no message').splitlines()[0]}"


# -- store entries and operations


class Entry(NamedTuple):
    """A stored value: packed, "list", "number" or "" for what may be done to it, and its type's name."""

    data: Data
    category: str
    type_name: str


def entry_of(value: Any, place: Place | None = None) -> Entry:
    """Pack a value for a store."""
    category = "list" if isinstance(value, list) else "number" if _is_number(value) else ""
    return Entry(pack(value, place), category, type(value).__name__)


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)


def with_data(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return operations, or an entry, in which all packed data is what ``change`` made of it."""
    if isinstance(value, Entry):
        return value._replace(data=change(value.data))
    if isinstance(value, tuple):
        return tuple(with_data(part, change) for part in value)
    return change(value) if isinstance(value, _DATA) else value


#: Operations are plain tuples, so that they cross without a pickle of their own:
#: ("put", key, entry), ("remove", key), ("append", key, data), ("add", key, n),
#: ("update", key, function data, default data or None), ("clear",).
Operation = tuple[Any, ...]


# -- errors


class ErrorRecord(NamedTuple):
    """An exception on its way: what is always known, its pickle where that loads, and what it came from."""

    type_name: str
    text: str
    traceback: str
    data: bytes | None
    notes: list[str]
    cause: tuple[Any, ...] | None
    context: tuple[Any, ...] | None
    suppresses_context: bool


#: Links of a chain of exceptions that travel.
_MOST_LINKS = 8


def record_error(error: BaseException, depth: int = 0) -> ErrorRecord:
    """Pack an exception; its class may be broken in any way."""
    trace = "".join(traceback.format_exception(error)) if depth == 0 else ""

    def link(other: BaseException | None) -> tuple[Any, ...] | None:
        return None if other is None or depth >= _MOST_LINKS else tuple(record_error(other, depth + 1))

    return ErrorRecord(
        f"{type(error).__module__}.{type(error).__qualname__}",
        _text(error),
        trace,
        _loadable(error),
        [str.__str__(note) for note in getattr(error, "__notes__", ()) if isinstance(note, str)],
        link(error.__cause__),
        None if error.__suppress_context__ else link(error.__context__),
        error.__suppress_context__,
    )


def _loadable(error: BaseException) -> bytes | None:
    """Return the exception's pickle if it loads again: one that does not must fail nobody else."""
    try:
        data = dumps(error)
        return data if isinstance(loads(data), BaseException) else None
    except BaseException:  # noqa: BLE001 - a constructor may even exit
        return None


def rebuild_error(record: tuple[Any, ...]) -> BaseException:
    """Return the exception that `record_error` packed, or a `RemoteError` in its place."""
    known = ErrorRecord(*record)
    error: BaseException | None = None
    if known.data is not None:
        try:
            error = loads(known.data)
        except BaseException:  # noqa: BLE001
            error = None
    if not isinstance(error, BaseException):
        error = RemoteError(f"{known.type_name}: {known.text}", type_name=known.type_name)
    for note in known.notes:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    if known.cause is not None:
        error.__cause__ = rebuild_error(known.cause)
    if known.context is not None:
        error.__context__ = rebuild_error(known.context)
    error.__suppress_context__ = known.suppresses_context
    return error
