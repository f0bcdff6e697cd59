"""Large values of every shape, how they should come back, and the tasks that they go through."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MIB = 1 << 20
N = 1_200_000


class Record(NamedTuple):
    """A class of a user's with an array in it."""

    name: str
    data: Any


class Counted:
    """Marks in a file each time that it is loaded, with the process that does."""

    def __init__(self, path: str, payload: list[int]) -> None:
        self.path = path
        self.payload = payload

    def __reduce__(self) -> Any:
        return _load_counted, (self.path, self.payload)


def _load_counted(path: str, payload: list[int]) -> Counted:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    return Counted(path, payload)


def _noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def _structured() -> Any:
    array = np.zeros(100_000, dtype=[("id", "<i4"), ("point", "<f8", (2,)), ("name", "S5")])
    array["id"] = np.arange(100_000)
    array["name"] = b"abc"
    return array


def _grid() -> Any:
    return np.arange(400 * 500, dtype=np.float64).reshape(400, 500)


#: By name: what makes a value of 1 MiB or more.
LARGE: dict[str, Callable[[], Any]] = {
    "array": lambda: np.arange(200_000, dtype=np.float64),
    "one MiB": lambda: np.frombuffer(bytes(range(256)) * 4096, dtype=np.uint8),
    "C order": _grid,
    "Fortran order": lambda: np.asfortranarray(_grid()),
    "transposed": lambda: _grid().T,
    "every other": lambda: np.arange(600_000, dtype=np.float64)[::2],
    "backwards": lambda: np.arange(300_000, dtype=np.float64)[::-1],
    "a corner": lambda: np.arange(4_000_000, dtype=np.int64).reshape(2000, 2000)[100:900, 7:900],
    "structured": _structured,
    "big-endian": lambda: np.arange(300_000, dtype=">f8"),
    "booleans": lambda: np.arange(2 * MIB) % 3 == 0,
    "complex": lambda: np.arange(100_000) * (1 + 2j),
    "dates": lambda: np.datetime64("2020-01-01", "s") + np.arange(200_000).astype("timedelta64[s]"),
    "text": lambda: np.array([f"word {n}" for n in range(40_000)]),
    "high-dimensional": lambda: np.arange(2**18, dtype=np.int64).reshape((2,) * 18),
    "objects": lambda: np.array(["x" * 20_000, None, {"a": [1, 2]}] * 40, dtype=object),
    "bytes": lambda: _noise(N),
    "bytearray": lambda: bytearray(_noise(N)),
    "str": lambda: "äöü€" * (N // 4),
    "memoryview": lambda: memoryview(_noise(N)),
    "memoryview of doubles": lambda: memoryview(np.arange(40_000 * 5, dtype=np.float64).reshape(40_000, 5)),
    "memoryview with steps": lambda: memoryview(_noise(2 * N))[::2],
    "list": lambda: list(range(400_000)),
    "nested": lambda: {
        "arrays": [np.arange(200_000) + n for n in range(3)],
        "deep": ({"small": np.arange(5), "large": np.ones((600, 600))}, None),
        "raw": bytearray(_noise(N)),
    },
    "named": lambda: Record("r", np.arange(200_000)),
    "the same twice": lambda: [shared := np.arange(200_000), shared],
    "masked": lambda: np.ma.masked_less(np.arange(300_000, dtype=np.float64), 1000),
}

#: By name: what makes a small or an empty value that takes the same ways.
SMALL: dict[str, Callable[[], Any]] = {
    "nothing": lambda: np.zeros(0),
    "nothing in three dimensions": lambda: np.zeros((4, 0, 3), dtype=np.int32),
    "a scalar": lambda: np.array(7.5),
    "small": lambda: np.arange(10),
    "no bytes": lambda: b"",
    "small memoryview": lambda: memoryview(b"abc"),
    "below one MiB": lambda: np.zeros(MIB - 1, dtype=np.uint8),
    "small objects": lambda: np.array([1, "a", None], dtype=object),
}

#: Arrays that are read in place; dates are none of them, as numpy gives no buffer of these.
IN_PLACE = [
    "array",
    "one MiB",
    "C order",
    "Fortran order",
    "transposed",
    "every other",
    "backwards",
    "a corner",
    "structured",
    "big-endian",
    "booleans",
    "complex",
    "text",
    "high-dimensional",
]


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in type, shape and content."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ma.MaskedArray):
        return bool((one.mask == other.mask).all() and (one.compressed() == other.compressed()).all())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, memoryview):
        return (one.format, one.shape) == (other.format, other.shape) and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


def digest(value: Any) -> str:
    """Return a text that tells values apart, and their type, shape and order of bytes."""
    if isinstance(value, np.ma.MaskedArray):
        return f"masked {digest(value.compressed())}"
    if isinstance(value, np.ndarray):
        content = repr(value.tolist()) if value.dtype.hasobject else hashlib.sha256(value.tobytes()).hexdigest()
        return f"array {value.dtype.str} {value.dtype.descr} {value.shape} {content}"
    if isinstance(value, memoryview):
        return f"view {value.format} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, bytes | bytearray):
        return f"{type(value).__name__} {hashlib.sha256(value).hexdigest()}"
    if isinstance(value, dict):
        return f"dict {[(key, digest(part)) for key, part in value.items()]}"
    if isinstance(value, list | tuple):
        parts = map(repr, value) if all(isinstance(part, int) for part in value) else map(digest, value)
        return f"{type(value).__name__} {hashlib.sha256(' '.join(parts).encode()).hexdigest()}"
    return f"{type(value).__name__} {value!r}"


def is_in_place(array: Any) -> bool:
    """Return whether an array is read-only and only looks at memory that is somebody else's."""
    while isinstance(array, np.ndarray):
        if array.flags.owndata or array.flags.writeable:
            return False
        array = array.base
    return True


# -- tasks


def digest_key(ctx: Any) -> str:
    """Return the digest of what is under "value"."""
    return digest(ctx.store.get("value"))


def digest_item(ctx: Any, item: Any) -> str:
    """Return the digest of an item."""
    return digest(item)


def look_at_item(ctx: Any, item: Any) -> bool:
    """Return whether the item, an array, lies in shared memory."""
    return is_in_place(item)


def look_at_key(ctx: Any) -> bool:
    """Return whether the array under "value" lies in shared memory."""
    return is_in_place(ctx.store.get("value"))


def give_back(ctx: Any, item: Any) -> Any:
    """Return the item as it came."""
    return item


def make_array(ctx: Any, item: int) -> Any:
    """Return an array of 1.6 MB full of ``item``."""
    return np.full(200_000, item, dtype=np.float64)


def make_named(ctx: Any, item: str) -> Any:
    """Return a value of `LARGE` or `SMALL` that does not depend on chance, after putting it into the store too."""
    value = made(item)
    ctx.store.put(f"put {item}", value)
    assert digest(ctx.store.get(f"put {item}")) == digest(value)
    return value


def made(name: str) -> Any:
    """Return the value of that name, the same each time and everywhere."""
    return (LARGE | SMALL)[name]()


def spoil_key(ctx: Any) -> str:
    """Change what the store gave out, in every way there is; return how that went."""
    array = ctx.store.get("array")
    try:
        array[0] = 99
        return "could write in place"
    except ValueError:
        pass
    try:
        array.flags.writeable = True
        return "could make it writeable"
    except ValueError:
        pass
    own = array.copy()
    own[:] = -1
    listed = ctx.store.get("list")
    listed[0] = "spoilt"
    raw = ctx.store.get("raw")
    if isinstance(raw, bytearray):
        raw[:4] = b"spoi"
    return "refused"


def append_arrays(ctx: Any) -> None:
    """Append an array of 1.6 MB to a list that all branches append to."""
    ctx.store.append("arrays", np.full(200_000, ctx.branch))


def update_array(ctx: Any) -> None:
    """Add one to an array of 1.6 MB by ``update``."""
    ctx.store.update("sum", _plus_one, default=np.zeros(200_000))


def _plus_one(array: Any) -> Any:
    return array + 1


def add_up(total: Any, array: Any) -> Any:
    """Fold arrays."""
    return total + array


def measure_list(ctx: Any) -> int:
    """Return the length of the list under "counted", which says when it is loaded."""
    return len(ctx.store.get("counted").payload)


def sum_list(ctx: Any) -> int:
    """Return the sum of the list under "list"."""
    return sum(ctx.store.get("list"))


def read_split(ctx: Any) -> list[str]:
    """Return the digests of the values of the split "split"."""
    return [digest(value) for value in ctx.split("split").values]


def marked(place: str, name: object) -> bool:
    """Return whether a mark is there."""
    return Path(place, str(name)).exists()
