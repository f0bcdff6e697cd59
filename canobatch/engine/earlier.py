"""Earlier: which branches of a visit an earlier life of the run accepted, and what they were made from.

An outcome counts for the item that it was made from, and for no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from canobatch.definition import LATER, label
from canobatch.effects import pack
from canobatch.engine.scribe import check_item
from canobatch.errors import VersionMismatchError

if TYPE_CHECKING:
    from canobatch.effects import Data, Place
    from canobatch.engine.branches import Branches


class _Accepted:
    """The branches that an earlier life accepted, with the digests of their items: there may be millions."""

    _SIZE = 16

    def __init__(self) -> None:
        #: For each branch 0: not accepted; 1: without an item; 2: with one.
        self._marks = bytearray()
        self._digests = bytearray()

    def add(self, index: int, digest: bytes | None) -> None:
        """Take one."""
        if index >= len(self._marks):
            more = index + 1 - len(self._marks)
            self._marks.extend(bytes(more))
            self._digests.extend(bytes(more * self._SIZE))
        self._marks[index] = 1 if digest is None else 2
        if digest is not None:
            self._digests[index * self._SIZE : (index + 1) * self._SIZE] = digest

    def __contains__(self, index: int) -> bool:
        return index < len(self._marks) and self._marks[index] > 0

    def __len__(self) -> int:
        """Return one more than the last of them."""
        return len(self._marks)

    def digest(self, index: int) -> bytes | None:
        """Return the digest of the item that one of them had, None if it had none."""
        return bytes(self._digests[index * self._SIZE : (index + 1) * self._SIZE]) if self._marks[index] > 1 else None


class Earlier:
    """The accepted branches of one visit of a split."""

    def __init__(self, state: Any, run_id: str) -> None:
        self._state = state
        self._run_id = run_id
        self._accepted = _Accepted()
        #: By branch, the attempts that count of those that were begun and not accepted.
        self.attempts: dict[int, int] = {}

    @property
    def end(self) -> int:
        """The number after the last branch that is known."""
        return max(len(self._accepted), max(self.attempts, default=-1) + 1)

    def add(self, index: int, digest: bytes | None) -> None:
        """A branch was accepted whose item had this digest."""
        self._accepted.add(index, digest)

    def has(self, index: int, data: Data | None) -> bool:
        """Return whether a branch was accepted.

        Raises:
            VersionMismatchError: From another item than ``data``.
        """
        if index not in self._accepted:
            return False
        where = f"state {label(self._state)}, branch {index}"
        check_item(self._accepted.digest(index), data, where, self._run_id)
        return True

    def check_total(self, total: int) -> None:
        """Check that all that were accepted are among ``total`` branches.

        Raises:
            VersionMismatchError: There were more.
        """
        check_count(self.end, total, f"state {label(self._state)}: branch", self._run_id)

    def check_all(self, branches: Branches, place: Place) -> None:
        """Check what was accepted, where nothing is left to be done that would come upon it.

        Raises:
            VersionMismatchError: It was made from other items, or more of them.
        """
        if branches.total is not None:
            self.check_total(branches.total)
        for index in range(self.end) if branches.is_map else ():
            try:
                item = branches.item(index)
            except StopIteration:
                self.check_total(index)
            if item is LATER:
                return
            if index in self._accepted:
                self.has(index, pack(item, place))


def check_count(known: int, total: int, what: str, run_id: str) -> None:
    """Refuse to go on with ``total`` branches or items where an earlier life had at least ``known``.

    Raises:
        VersionMismatchError: They are fewer.
    """
    if known > total:
        raise VersionMismatchError(
            f"{what} {known - 1} was recorded, and there are only {total} now; a resumed run needs the same items in "
            "the same order",
            run_id=run_id,
        )
