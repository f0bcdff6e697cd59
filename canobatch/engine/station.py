"""What a run keeps at the pool: its lanes, and what was shared with the workers."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from canobatch import logs, wire, worker
from canobatch import segments as shared_memory
from canobatch.definition import label
from canobatch.effects import Placed, dumps, pack, stream_of
from canobatch.errors import PayloadError
from canobatch.packing import functions_of_main, mains_in, pack_definition, pack_mains
from canobatch.pool.backend import Header
from canobatch.segments import crossing
from canobatch.snapshot import encode_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from canobatch.effects import Data
    from canobatch.join import SplitResult
    from canobatch.pool import Backend, Event, LaneHandle
    from canobatch.resources import Resources
    from canobatch.segments import Segments
    from canobatch.snapshot import Layer, Snapshot


#: How many places are kept that are no longer the launcher's.
_PLACES = 8


class Shelf:
    """What all runs of a workflow share at one pool: task sets, and the classes of ``__main__``.

    Thread-safe. Dropped with the workflow.
    """

    def __init__(self, backend: Backend, workflow: str, resources: Resources) -> None:
        self._backend = backend
        self._workflow = workflow
        self._resources = resources
        self._resources_number: int | None = None
        self._lock = threading.Lock()
        self._task_sets: dict[Any, int] = {}
        #: Class or function of ``__main__``, by name, and the number it was shared under.
        self._mains: dict[str, tuple[Any, int]] = {}
        self._layers: weakref.WeakKeyDictionary[Layer, int] = weakref.WeakKeyDictionary()
        numbers: list[int] = []
        self._numbers = numbers
        # Not at exit: other threads may still be running.
        weakref.finalize(self, backend.forget, numbers).atexit = False

    @property
    def needs(self) -> tuple[int, ...]:
        """The numbers of all classes of ``__main__`` shared so far, and of the workflow's resources."""
        with self._lock:
            mains = tuple(dict.fromkeys(number for _, number in self._mains.values()))
            return mains if self._resources_number is None else (*mains, self._resources_number)

    def share_resources(self) -> None:
        """Share the workflow's resources, if it has any and this is the first time.

        Raises:
            ResourceError: One of them cannot be sent to a worker.
        """
        if not self._resources or self._resources_number is not None:
            return
        packed = self._resources.packed()
        data = dumps(packed)
        for each in packed.values():
            self.share_mains(each or b"", by_value=True)
        self.share_mains(data)
        with self._lock:
            if self._resources_number is None:
                self._resources_number = self._backend.share(worker.RESOURCES, data)
                self._numbers.append(self._resources_number)

    def task_set(self, state: Any, tasks: list[Any], *, is_map: bool) -> int:
        """Return the number of a state's tasks, which are the same for every run."""
        with self._lock:
            number = self._task_sets.get(state)
        if number is None:
            number = self.share_task_set(state, tasks, is_map=is_map)
            with self._lock:
                self._task_sets[state] = number
                self._numbers.append(number)
        return number

    def share_task_set(self, state: Any, tasks: list[Any], *, is_map: bool) -> int:
        """Share tasks and return their number, which the caller forgets.

        Raises:
            PayloadError: A task cannot be sent to a worker.
        """
        task_set = worker.TaskSet(self._workflow, state, tasks, is_map, functions_of_main())
        data = pack_definition(tuple(task_set), f"state {label(state)}")
        self.share_mains(data, by_value=True)
        return self._backend.share(worker.TASKS, shared_memory.default().place_if_large(data))

    def layer(self, layer: Layer, segments: Segments) -> int:
        """Return the number of one layer of a store, which is the same for every run."""
        with self._lock:
            number = self._layers.get(layer)
        if number is None:
            data = encode_layer(layer, segments.place)
            self.share_mains(data)
            for key in layer.entries:
                entry = layer.find(key)
                if entry is not None and isinstance(entry.data, Placed):
                    self.share_mains(entry.data)
            number = self._backend.share(worker.LAYER, data)
            with self._lock:
                self._layers[layer] = number
            weakref.finalize(layer, self._backend.forget, [number]).atexit = False
        return number

    def share_mains(self, data: Data, *, by_value: bool = False) -> bool:
        """Share the classes of ``__main__`` that ``data`` refers to; returns whether there were new ones."""
        names = mains_in(stream_of(data), by_value=by_value)
        if not names:
            return False
        main = vars(sys.modules["__main__"])
        with self._lock:
            # In a notebook a name may mean another class by now.
            known = {name for name in names if name in self._mains and self._mains[name][0] is main[name]}
            fresh = sorted(names - known)
            if not fresh:
                return False
            number = self._backend.share(worker.MAINS, pack_mains(fresh))
            self._numbers.append(number)
            self._mains.update({name: (main[name], number) for name in fresh})
            return True


class Station:
    """One run's side of the pool: shares each thing once, and drops what is its own at the end."""

    def __init__(
        self,
        backend: Backend,
        shelf: Shelf,
        run_id: str,
        params: Any,
        deliver: Callable[[list[Event]], None],
        segments: Segments,
    ) -> None:
        self._backend = backend
        self._segments = segments
        self._shelf = shelf
        self._run_id = run_id
        self._deliver = deliver
        self._lanes: dict[Any, LaneHandle] = {}
        self._made_here: dict[Any, int] = {}
        #: The version that calls read; held, so that its large values are.
        self._snapshot: tuple[Snapshot, tuple[int, ...]] | None = None
        self._splits: tuple[int, int, list[Data]] | None = None
        self._place: tuple[tuple[Any, ...], int] | None = None
        self._old_places: deque[int] = deque()
        shelf.share_resources()
        data = _packed_run(run_id, params)
        shelf.share_mains(data)
        self._run = backend.share(worker.RUN, segments.place_if_large(data))

    def lane(self, state: Any, part: str = "") -> LaneHandle:
        """Return the lane of a state, or of a part of it that runs beside the rest."""
        key = (state, part)
        if key not in self._lanes:
            self._lanes[key] = self._backend.open_lane(self, self._deliver, (self._run_id, state), self._segments)
        return self._lanes[key]

    def header(
        self,
        state: Any,
        tasks: list[Any],
        snapshot: Snapshot,
        splits: Mapping[Any, SplitResult],
        splits_version: int,
        deadline: float | None,
        *,
        is_map: bool,
        is_made_here: bool = False,
        output: tuple[str, int] | None = None,
    ) -> Header:
        """Share what the calls of a visit need and return how they name it.

        ``is_made_here``: the tasks were made for this visit, and may be others at the next.
        ``output``: the directory for what they print, and the number of the visit.

        Raises:
            PayloadError: A task cannot be sent to a worker.
        """
        if is_made_here:
            definition = self._shelf.share_task_set(state, tasks, is_map=is_map)
            if state in self._made_here:
                self._backend.forget([self._made_here[state]])
            self._made_here[state] = definition
        else:
            definition = self._shelf.task_set(state, tasks, is_map=is_map)
        version = self._publish(snapshot)
        ended = self._share_splits(splits, splits_version)
        place = self._share_place(None if output is None else (*output, label(state)))
        return Header((place, *self._shelf.needs), self._run, definition, version, ended, deadline)

    def need_mains(self, data: Data, header: Header) -> Header:
        """Return ``header``, extended by the classes of ``__main__`` that an item refers to."""
        if (type(data) is not bytes or b"__main__" in data) and self._shelf.share_mains(data):
            return header._replace(needs=(header.needs[0], *self._shelf.needs))
        return header

    def close(self) -> None:
        """Drop everything that is this run's own."""
        numbers = [self._run, *self._made_here.values(), *self._old_places]
        numbers += [kept[1] for kept in (self._splits, self._place) if kept is not None]
        for lane in self._lanes.values():
            lane.stop()
        self._lanes.clear()
        self._backend.forget(numbers)
        self._snapshot = self._splits = None

    def _publish(self, snapshot: Snapshot) -> tuple[int, ...]:
        if self._snapshot is None or self._snapshot[0].name != snapshot.name:
            numbers = tuple(self._shelf.layer(layer, self._segments) for layer in snapshot.layers)
            self._snapshot = (snapshot, numbers)
        return self._snapshot[1]

    def _share_splits(self, splits: Mapping[Any, SplitResult], version: int) -> int:
        if not splits:
            return 0
        if self._splits is None or self._splits[0] != version:
            packed = {state: pack(result, self._segments.place) for state, result in splits.items()}
            data = dumps({state: crossing(result) for state, result in packed.items()})
            for each in (data, *packed.values()):
                self._shelf.share_mains(each)
            if self._splits is not None:
                self._backend.forget([self._splits[1]])
            self._splits = (version, self._backend.share(worker.SPLITS, data), list(packed.values()))
        return self._splits[1]

    def _share_place(self, output: tuple[str, int, str] | None) -> int:
        try:
            cwd = os.getcwd()
        except OSError:
            cwd = "/"
        place = ([entry or cwd for entry in sys.path if isinstance(entry, str)], cwd, logs.levels(), output)
        if self._place is None or self._place[0] != place:
            if self._place is not None:
                # Calls that wait may still name it.
                self._old_places.append(self._place[1])
                if len(self._old_places) > _PLACES:
                    self._backend.forget([self._old_places.popleft()])
            self._place = (place, self._backend.share(worker.PLACE, wire.pack_body(place)))
        return self._place[1]


def _packed_run(run_id: str, params: Any) -> bytes:
    try:
        return dumps((run_id, params))
    except PayloadError:
        fields = params if isinstance(params, Mapping) else vars(params)
        for name, value in dict(fields).items():
            try:
                dumps(value)
            except PayloadError as error:
                raise PayloadError(f"parameter {name!r} of the run cannot be sent to a worker: {error}") from error
        raise
