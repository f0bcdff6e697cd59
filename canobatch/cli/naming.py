"""Names of runs: two of one name do not overlap, whichever processes they are in.

The truth is a kernel lock, free at once when its holder ends in whatever way.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from canobatch.cli import exits
from canobatch.cli.command import Failure, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def exclusive(home: Path, name: str | None, on_overlap: str) -> Iterator[bool]:
    """Hold a name; without one do nothing.

    Args:
        home: Whose names they are.
        name: The name.
        on_overlap: What to do when it is held: "fail", "skip", or "wait".

    Returns:
        Whether it is ours; False only for "skip".

    Raises:
        Failure: It is held, or the home cannot be written to.
    """
    if name is None:
        yield True
        return
    import filelock  # noqa: PLC0415 - only for runs with a name

    # A name may be anything, a file's name may not.
    path = home / "names" / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.lock"
    lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if on_overlap == "fail":
                raise Failure(f"a run named {name!r} is going on; wait for its end", exits.BUSY) from None
            if on_overlap == "skip":
                yield False
                return
            say(f"waiting for the end of the run named {name}")
            lock.acquire()
    except OSError as error:
        raise Failure(f"cannot take the name {name!r} in {home}: {error.strerror}") from error
    try:
        yield True
    finally:
        lock.release()
