"""Which workers there are, and which there should be: demand, spares, slots. The pool's lock is held."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from canobatch import _procs
from canobatch.pool._handle import DIED, WorkerHandle

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: When so many workers in a row die before they are ready, no more are started.
_BOOT_TRIES = 3


class WorkerInfo(NamedTuple):
    """What one worker does now."""

    pid: int
    slot: int
    busy: bool
    run_id: str | None
    state: Any
    branch: int | None


class Fleet:
    """The workers of a pool.

    At most ``max_workers`` have a slot and at most as many are busy; any more are spares, and take over
    by simply being there when a worker is killed.
    """

    def __init__(self, max_workers: int | None, spares: int | str, launch: Callable[[WorkerHandle], None]) -> None:
        #: None until the keeper has counted the cores.
        self.max_workers = max_workers
        self.idle: dict[WorkerHandle, None] = {}
        self.busy = 0
        self._launch = launch
        self._by_number: dict[int, WorkerHandle] = {}
        self._last_number = 0
        self._is_auto = spares == "auto"
        self._spares = spares if isinstance(spares, int) else 0
        #: Workers that demand has asked for so far; it never shrinks.
        self._wanted = 0
        self._boot_failures = 0
        #: Whether there is a keeper to start workers.
        self.is_open = False

    def __iter__(self) -> Any:
        return iter(list(self._by_number.values()))

    def find(self, number: int) -> WorkerHandle | None:
        """Return the worker with this number, if it is still one of ours."""
        return self._by_number.get(number)

    @property
    def has_capacity(self) -> bool:
        """Whether a worker could be given calls now."""
        return bool(self.idle) and self.busy < (self.max_workers or 0)

    @property
    def is_hopeless(self) -> bool:
        """Whether workers keep dying before they are ready."""
        return self._boot_failures >= _BOOT_TRIES

    @property
    def is_warm(self) -> bool:
        """Whether all workers, and a fixed number of spares, are ready."""
        if self.max_workers is None:
            return False
        ready = sum(1 for handle in self._by_number.values() if handle.is_ready and handle.doom is None)
        return ready >= self.max_workers + (0 if self._is_auto else self._spares)

    def want(self, workers: int) -> None:
        """Ask for this many workers, if there may be so many, and start what is missing."""
        self._wanted = max(self._wanted, min(workers, self.max_workers or 0))
        if not self.idle and self.busy < self._wanted:
            self.hurry()
        self.fill()

    def want_spares(self, count: int) -> None:
        """Ask for spares for as many workers as may be killed; a fixed number stays fixed."""
        if self._is_auto:
            self._spares = max(self._spares, min(count, self.max_workers or 0))

    def hurry(self) -> None:
        """Calls wait: a spare that is on its way is needed now."""
        for handle in self._by_number.values():
            if handle.is_spare and not handle.is_ready and handle.pid:
                handle.is_spare = False
                _procs.match_priority(handle.pid)

    def fill(self) -> None:
        """Start workers until as many live, or are on their way, as are wanted.

        Spares are started one at a time, so that a split that runs meanwhile has the other cores.
        """
        if not self.is_open or self.max_workers is None or self.is_hopeless or not self._wanted:
            return
        living = [handle for handle in self._by_number.values() if handle.doom is None]
        missing = self._wanted - len(living)
        booting = sum(1 for handle in living if not handle.is_ready)
        spares = min(self._spares, missing + self._spares, 1 - booting - max(0, missing))
        for count in range(max(0, missing) + max(0, spares)):
            self._last_number += 1
            handle = WorkerHandle(self._last_number, is_spare=count >= missing)
            self._by_number[self._last_number] = handle
            self._launch(handle)

    def welcome(self, handle: WorkerHandle) -> None:
        """A worker is ready."""
        handle.is_ready = True
        self._boot_failures = 0
        self.idle[handle] = None
        self.assign_slots()

    def remove(self, handle: WorkerHandle) -> None:
        """A worker is dead."""
        if not handle.is_ready and handle.doom == DIED:
            self._boot_failures += 1
        self._by_number.pop(handle.number, None)
        self.idle.pop(handle, None)
        handle.close()
        self.assign_slots()

    def retire(self, handle: WorkerHandle) -> None:
        """A worker was told to end; its slot is free."""
        handle.slot = None
        self.assign_slots()
        self.fill()

    def clear(self) -> None:
        """All workers are gone."""
        for handle in self._by_number.values():
            handle.close()
        self._by_number.clear()
        self.idle.clear()
        self.busy = 0

    def assign_slots(self) -> None:
        """Give free slots to the workers that have waited longest for one."""
        taken = {handle.slot for handle in self._by_number.values()}
        # One by one: however many there may be, few are looked at.
        free = (slot for slot in range(self.max_workers or 0) if slot not in taken)
        for handle in self._by_number.values():
            if handle.slot is None and handle.is_ready and handle.doom is None:
                handle.slot = next(free, None)
                if handle.slot is None:
                    return

    def describe(self) -> tuple[WorkerInfo, ...]:
        """Return what each worker with a slot does, by slot."""
        infos = []
        for handle in self._by_number.values():
            if handle.slot is None or handle.doom is not None:
                continue
            run_id, state = handle.lane.what if handle.lane is not None else (None, None)
            branch = handle.window[0][1].branch if handle.window else None
            infos.append(WorkerInfo(handle.pid, handle.slot, bool(handle.window), run_id, state, branch))
        return tuple(sorted(infos, key=lambda info: info.slot))
