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


class Earlier:
    """The accepted branches of one visit of a split."""

    def __init__(self, state: Any, run_id: str) -> None:
        self._state = state
        self._run_id = run_id
        self._digests: dict[int, bytes | None] = {}
        #: By branch, the attempts made of those that were between two of them.
        self.attempts: dict[int, int] = {}

    @property
    def end(self) -> int:
        """The number after the last accepted branch."""
        return max(self._digests, default=-1) + 1

    def add(self, index: int, digest: bytes | None) -> None:
        """A branch was accepted whose item had this digest."""
        self._digests[index] = digest

    def has(self, index: int, data: Data | None) -> bool:
        """Return whether a branch was accepted.

        Raises:
            VersionMismatchError: From another item than ``data``.
        """
        if index not in self._digests:
            return False
        check_item(self._digests[index], data, f"state {label(self._state)}, branch {index}", self._run_id)
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
            if index in self._digests:
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
