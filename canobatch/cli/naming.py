"""Names of runs: two of one name do not overlap, whichever processes they are in.

The truth is a kernel lock, free at once when its holder ends in whatever way. The file beside it says which run that
is: nothing if it is remembered nowhere, and what it said before until a new holder has written it.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from canobatch import _clock
from canobatch._locks import FileLock
from canobatch.cli import exits
from canobatch.cli.command import Failure, say

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What to do when a name is held.
POLICIES = ("fail", "skip", "wait", "cancel-old", "kill-old")

_LOOK = 0.1


@contextmanager
def exclusive(home: Path, name: str | None, run_id: str, on_overlap: str) -> Iterator[bool]:
    """Hold a name; without one do nothing.

    Args:
        home: Whose names they are.
        name: The name.
        run_id: The run that it is for; "": one that is remembered nowhere.
        on_overlap: What to do when it is held: one of `POLICIES`.

    Returns:
        Whether it is ours; False only for "skip".

    Raises:
        Failure: It is held, its run cannot be ended, or the home cannot be written to.
    """
    if name is None:
        yield True
        return
    # A name may be anything, a file's name may not.
    path = home / "names" / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.lock"
    holder = path.with_suffix(".run")
    lock = FileLock(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not lock.acquire():
            if on_overlap == "fail":
                raise Failure(f"a run named {name!r} is going on; wait for its end", exits.BUSY) from None
            if on_overlap == "skip":
                yield False
                return
            if on_overlap == "wait":
                say(f"waiting for the end of the run named {name}")
                lock.acquire(waits=True)
            else:
                _take_over(lock, holder, home, name, kills=on_overlap == "kill-old")
        _describe(holder, run_id)
    except OSError as error:
        lock.release()
        raise Failure(f"cannot take the name {name!r} in {home}: {error.strerror}") from error
    try:
        yield True
    finally:
        lock.release()


def _describe(holder: Path, run_id: str) -> None:
    """Write down whose the name is: whole or not at all, as who reads it may be about to kill."""
    new = holder.with_suffix(".new")
    try:
        new.write_text(run_id)
        new.rename(holder)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _take_over(lock: FileLock, holder: Path, directory: Path, name: str, *, kills: bool) -> None:
    """End the runs of a name, one after the other if there are more, until it is ours."""
    from canobatch.cli.cancel import end_run  # noqa: PLC0415 - seldom needed
    from canobatch.cli.home import Home  # noqa: PLC0415

    home = Home(directory)
    ended: set[str] = set()
    while not lock.acquire():
        run_id = holder.read_text() if holder.exists() else None
        if run_id == "":
            raise Failure(f"the run named {name!r} keeps no journal and cannot be ended; wait for it", exits.BUSY)
        if run_id is not None and run_id not in ended and home.is_running(run_id):
            ended.add(run_id)
            end_run(home, home.find(run_id), kills=kills)
        _clock.sleep(_LOOK)
