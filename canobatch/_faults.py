"""Named points at which a test can stop or end the process; they cost one comparison otherwise.

Every write, commit and effect has a point before and after it, so that a test can show that a crash there
loses nothing. A name is "what.when"; in the order of a run's life:

==========================  =====================================================================
journal.begin.locked        the new run's lock is held, nothing of it exists
journal.begin.created       its database exists, without a row
journal.begin.done          its first transaction is durable
journal.take.locked         a run that exists was locked by who takes it over
journal.take.loaded         it was read, nothing of it was changed
journal.take.done           the new owner is durable
journal.file.before         a large value is about to be written
journal.file.after          its file is whole, the row that refers to it is not durable
journal.write.before        a transaction is about to begin
journal.write.rows          its rows are written, it is not committed
journal.write.after         it is durable, nobody was told
journal.end.before          the run's end is durable, its database is still in write-ahead mode
journal.end.after           the database is one file, the lock is still held
journal.prune.renamed       a run's directory has lost its name, its files exist
journal.prune.removed       its files are gone
engine.state.entered        a run is in a state of which it has done nothing
engine.accept.before        a branch was accepted, its outcome is about to be recorded
engine.accept.after         it was handed to the journal, and may not be durable
engine.commit.before        the store's changes are known, not durable and not visible
engine.commit.after         they are durable, and not visible
==========================  =====================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: Called with the name of each point that is passed, by the thread that passes it. None: nobody looks.
hook: Callable[[str], None] | None = None


def point(name: str) -> None:
    """Pass a point."""
    if hook is not None:
        hook(name)
