"""The bytes and digests of rows.

A database does not notice when a disk gives back other bytes than were written. So each row has a digest of
its own, and the sum of them all, kept beside, shows that none is missing.
"""

from __future__ import annotations

import marshal
import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from zlib import crc32

if TYPE_CHECKING:
    from canobatch.effects import Flat

#: Version 2 writes the same bytes for equal values, and every Python reads it.
_VERSION = 2

#: Sums of digests stay below this, so that they are integers of SQLite.
MODULUS = 1 << 62


def pack(facts: Any) -> bytes:
    """Return plain data as bytes."""
    try:
        return marshal.dumps(facts, _VERSION)
    except ValueError:
        return marshal.dumps(_plain(facts), _VERSION)


def _plain(data: Any) -> Any:
    """Return tuples, lists and strings as such, without their subclasses, which `marshal` refuses."""
    if isinstance(data, tuple):
        return tuple(_plain(part) for part in data)
    if isinstance(data, list):
        return [_plain(part) for part in data]
    if isinstance(data, str):
        return str.__str__(data)
    return data


def unpack(data: bytes) -> Any:
    """Return what `pack` packed. Only for bytes whose digest was checked."""
    return marshal.loads(data)  # noqa: S302 - checked against its digest


def digest(*columns: Any) -> int:
    """Return the digest of a row, its table's name among the columns."""
    data = blake2b(marshal.dumps(columns, _VERSION), digest_size=8).digest()
    return int.from_bytes(data, "little") % MODULUS


def content_digest(data: Flat) -> bytes:
    """Return what a row keeps of a file: its length and checksum, found faster than a disk writes."""
    return struct.pack("<QI", len(data), crc32(data))


def text_bytes(text: str) -> bytes:
    """Return any string, half a surrogate pair included, as bytes of a key."""
    return text.encode("utf-8", "surrogatepass")


def bytes_text(data: bytes) -> str:
    """Return what `text_bytes` packed."""
    return data.decode("utf-8", "surrogatepass")
