"""Large values between processes: by the store, as items and results, by every way; with both kinds of segments."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from canobatch import JoinConfig, JoinStrategy, SharedStore, Task, TaskConfig, WorkerPool, Workflow, segments
from canobatch._procs import available_memory
from tests.support import values
from tests.support.branches import await_marks, map_of, mark, ran, split_of
from tests.support.memory import bytes_of, segments_of
from tests.support.values import IN_PLACE, LARGE, SMALL, digest, is_in_place, is_same
from tests.support.watch import await_that

ALL = JoinStrategy.all()
MB = 1_000_000


@pytest.fixture(autouse=True)
def nothing_kept():
    """Fail a test after which segments are held that were not held before."""
    before = segments_of(os.getpid()).keys()
    yield
    gc.collect()
    # What a workflow shared with its pool is dropped by the pool's thread.
    await_that(lambda: segments_of(os.getpid()).keys() <= before, "segments should be given up")


# -- every shape, every way


def test_values_of_every_shape_reach_a_worker_through_the_store(shared_pool):
    """A worker reads from the store what was put there: value, type, shape, order of bytes."""
    for name in [*LARGE, *SMALL]:
        store = SharedStore()
        value = values.made(name)
        store.put("value", value)
        _, run = ran(split_of([values.digest_key] * 2, ALL, into="digests", workflow={"store": store}), shared_pool)
        assert run.store.get("digests") == [digest(value)] * 2, name


def test_values_of_every_shape_reach_a_worker_as_items(shared_pool):
    """A worker gets each item as it was."""
    names = [*LARGE, *SMALL]
    _, run = ran(map_of(values.digest_item, map(values.made, names), ALL, into="digests"), shared_pool)
    assert dict(zip(names, run.store.get("digests"), strict=True)) == {
        name: digest(values.made(name)) for name in names
    }


def test_values_of_every_shape_come_back_as_results_and_as_writes(shared_pool):
    """What a task returns, and what it puts into the store, arrives as it was."""
    names = [*LARGE, *SMALL]
    _, run = ran(map_of(values.make_named, names, ALL, into="all"), shared_pool)
    found = run.store.get("all")
    results = run.report().splits["split"].values
    for name, one, other in zip(names, found, results, strict=True):
        value = values.made(name)
        assert is_same(one, value), name
        assert is_same(other, value), name
        assert is_same(run.store.get(f"put {name}"), value), name


@pytest.mark.parametrize("way", ["store", "item"])
def test_arrays_are_not_copied_in_a_worker(way, shared_pool):
    """From 1 MiB on, a worker reads arrays in place, read-only, from the store and from its items."""
    for name in IN_PLACE:
        if way == "item":
            workflow = map_of(values.look_at_item, [values.made(name)], ALL, into="answers")
        else:
            store = SharedStore()
            store.put("value", values.made(name))
            workflow = split_of([values.look_at_key], ALL, into="answers", workflow={"store": store})
        _, run = ran(workflow, shared_pool)
        assert run.store.get("answers") == [True], name


@pytest.mark.parametrize("name", IN_PLACE)
def test_arrays_that_come_back_are_not_copied(name, shared_pool):
    """A result, and an `into` list of them, is read in place in the launcher."""
    _, run = ran(map_of(values.make_named, [name], ALL, into="all"), shared_pool)
    assert is_in_place(run.report().splits["split"][0].value)
    assert is_in_place(run.store.get("all")[0])
    assert is_in_place(run.store.get(f"put {name}"))


def test_an_item_that_is_given_back_is_the_same(shared_pool):
    """What lies in the launcher's segment goes back through one of the worker's."""
    items = [np.full(200_000, n) for n in range(5)]
    _, run = ran(map_of(values.give_back, items, ALL, into="all"), shared_pool)
    assert is_same(run.store.get("all"), items)


@pytest.mark.parametrize("ordered", [True, False])
def test_arrays_are_folded(ordered, shared_pool):
    """`reduce` folds large arrays as they come, and keeps none of them."""
    join = {"into": "sum", "reduce": (values.add_up, np.zeros(200_000)), "ordered": ordered}
    _, run = ran(map_of(values.make_array, range(40), ALL, **join), shared_pool)
    assert (run.store.get("sum") == sum(range(40))).all()
    gc.collect()
    assert len(segments_of(os.getpid())) <= 2


def test_a_later_state_reads_the_values_of_a_split(shared_pool):
    """`ctx.split` gives large values to workers, as they were, in place."""
    names = ["array", "Fortran order", "bytes", "nested", "small"]
    workflow = Workflow("w").register_map("split", values.make_named, names, JoinConfig(ALL, "later"))
    workflow.register_split("later", [values.read_split] * 2, JoinConfig(ALL, "end", into="read")).add_exit_state("end")
    run = workflow.start("split", pool=shared_pool)
    assert run.wait(60) == "end"
    assert run.store.get("read") == [[digest(values.made(name)) for name in names]] * 2


def test_branches_append_and_update_large_values(shared_pool):
    """`append` and `update` take large values from many branches; each counts once."""
    _, run = ran(split_of([values.append_arrays] * 6, ALL), shared_pool)
    assert sorted(int(array[0]) for array in run.store.get("arrays")) == list(range(6))
    _, run = ran(split_of([values.update_array] * 6, ALL), shared_pool)
    assert (run.store.get("sum") == 6).all()


# -- whose a value is


def test_a_task_cannot_change_the_store_by_changing_what_it_read(shared_pool):
    """What a task does to an array, a list or a bytearray that it read, or to a copy, is not seen by anybody else."""
    store = SharedStore()
    kept = {"array": np.arange(300_000.0), "list": list(range(300_000)), "raw": bytearray(2 * MB)}
    for key, value in kept.items():
        store.put(key, value)
    _, run = ran(split_of([values.spoil_key] * 4, ALL, into="answers", workflow={"store": store}), shared_pool)
    assert run.store.get("answers") == ["refused"] * 4
    for key, value in kept.items():
        assert is_same(store.get(key), value)


@dataclass
class Sum(Task):
    """A task object with an array in it."""

    array: object

    def run(self):
        try:
            self.array[0] = 1
        except ValueError:
            return float(self.array.sum())
        return "could write"


def test_a_task_object_with_a_large_array_travels_as_a_segment(shared_pool):
    """A large task object that many branches share is sent once to each worker, and memory holds it once."""
    array = np.ones(1_000_000)
    before = bytes_of(os.getpid())
    workflow = split_of([Sum(array)] * 20, ALL, into="sums")
    _, run = ran(workflow, shared_pool)
    held = bytes_of(os.getpid()) - before
    assert set(run.store.get("sums")) in ({1_000_000.0}, {"could write"})
    assert held < 2.5 * array.nbytes


# -- how often, and when, a value is loaded


def test_a_list_that_all_branches_read_is_loaded_once_per_worker(tmp_path):
    """100 branches that read the same list of 10 MB: each worker unpickles it once, not once per branch."""
    store = SharedStore()
    # As strings this is one flat list; what it refers to says how often it was built.
    store.put("list", [str(n) * 10 for n in range(150_000)])
    trace = tmp_path / "loads"
    with WorkerPool(2, initializer=_CountLoads(str(trace))) as pool:
        workflow = split_of([measure_strings] * 100, ALL, into="lengths", workflow={"store": store})
        _, run = ran(workflow, pool)
        workers = {worker.pid for worker in pool.workers}
    assert set(run.store.get("lengths")) == {150_000}
    loaded = [int(line) for line in trace.read_text().split()]
    assert len(loaded) == len(set(loaded))
    assert set(loaded) <= workers


@dataclass
class _CountLoads:
    """Makes a worker note each large value that is unpickled in it."""

    path: str

    def __call__(self):
        from canobatch import snapshot

        real = snapshot.loads

        def loads(data):
            value = real(data)
            if isinstance(value, list) and len(value) == 150_000:
                with Path(self.path).open("a") as file:
                    file.write(f"{os.getpid()}\n")
            return value

        snapshot.loads = loads


def measure_strings(ctx):
    return len(ctx.store.get("list"))


def test_a_version_is_sent_once_and_reading_it_sends_nothing(tmp_path):
    """However often tasks read small values, nothing but their outcomes crosses, and their index comes once."""
    store = SharedStore()
    for number in range(1000):
        store.put(f"k{number}", number)
    trace = tmp_path / "frames"
    with WorkerPool(1, initializer=_CountFrames(str(trace))) as pool:
        _, run = ran(map_of(read_small, range(50), ALL, into="sums", workflow={"store": store}), pool)
        assert run.store.get("sums") == [sum(range(1000))] * 50
    said = trace.read_text().split()
    assert said.count("received-during-a-get") == 0
    assert said.count("sent-during-a-get") == 0
    assert said.count("layer") == 1
    assert said.count("get") == 50 * 1000


@dataclass
class _CountFrames:
    """Makes a worker note what it sends and receives, and when."""

    path: str

    def __call__(self):
        from canobatch import wire, worker
        from canobatch.view import KeyValues

        file = open(self.path, "a", buffering=1 << 16)  # noqa: SIM115 - as long as the worker
        inside = [0]
        real_get, real_send, real_receive = KeyValues.get, wire.send_blocking, wire.Inbox.receive
        real_define = worker.Worker._define

        def get(self, *args, **options):
            inside[0] += 1
            file.write("get ")
            try:
                return real_get(self, *args, **options)
            finally:
                inside[0] -= 1

        def send(sock, parts):
            file.write("sent-during-a-get " if inside[0] else "sent ")
            file.flush()
            return real_send(sock, parts)

        def receive(self, *args, **options):
            file.write("received-during-a-get " if inside[0] else "received ")
            return real_receive(self, *args, **options)

        def define(self, body):
            if body[8] & 0x7F == worker.LAYER:
                file.write("layer ")
            return real_define(self, body)

        KeyValues.get, wire.send_blocking, wire.Inbox.receive = get, send, receive
        worker.Worker._define = define


def read_small(ctx, item):
    return sum(ctx.store.get(f"k{number}") for number in range(1000))


def test_a_new_version_of_a_large_store_costs_little_to_publish(tmp_path):
    """After a change of one of 20 000 keys a worker gets that change, not everything again."""
    store = SharedStore()
    for number in range(20_000):
        store.put(f"k{number}", number)
    trace = tmp_path / "layers"
    workflow = map_of(read_k7, [0], ALL, into="seen", workflow={"store": store})
    with WorkerPool(1, initializer=_MeasureLayers(str(trace))) as pool:
        for number in range(20):
            ran(workflow, pool)
            assert store.get("seen") == [7 if number == 0 else number - 1]
            store.put("k7", number)
    sizes = sorted(map(int, trace.read_text().split()))
    assert sizes[-1] > 100_000
    assert sizes[-2] < 5_000


@dataclass
class _MeasureLayers:
    """Makes a worker note how long each layer is that it gets."""

    path: str

    def __call__(self):
        from canobatch import worker

        real = worker.Worker._define

        def define(self_, body):
            if body[8] & 0x7F == worker.LAYER:
                with Path(self.path).open("a") as file:
                    file.write(f"{len(body)}\n")
            return real(self_, body)

        worker.Worker._define = define


def read_k7(ctx, item):
    return ctx.store.get("k7")


# -- many, and huge


def test_ten_thousand_keys(shared_pool):
    """10 000 keys, every hundredth of them large, are read by workers and written by them."""
    store = SharedStore()
    for number in range(10_000):
        store.put(f"k{number}", number if number % 100 else np.full(140_000, number, dtype=np.float64))
    ran(map_of(sum_keys, range(4), ALL, into="sums", workflow={"store": store}), shared_pool)
    assert store.get("sums") == [sum(range(part, 10_000, 4)) for part in range(4)]
    assert len(store) == 10_001 + 4 * 100
    assert store.get("own-3-99") == 99


def sum_keys(ctx, part):
    total = 0
    for number in range(part, 10_000, 4):
        value = ctx.store.get(f"k{number}")
        total += int(value[-1]) if isinstance(value, np.ndarray) else value
    for number in range(100):
        ctx.store.put(f"own-{part}-{number}", number)
    return total


@pytest.mark.stress
@pytest.mark.skipif(available_memory() < 8_000 * MB, reason="needs 8 GB of free memory")
def test_one_value_of_two_gigabytes(shared_pool):
    """One value beyond 2 GiB goes to a worker and comes back; a single write or read of the kernel's is shorter."""
    size = (1 << 31) + 12_345
    store = SharedStore(max_bytes=7_000 * MB)
    array = np.zeros(size, dtype=np.uint8)
    array[:: 1 << 20] = np.arange(len(array[:: 1 << 20])) % 251
    array[-1] = 77
    total = int(array[:: 1 << 20].sum()) + 77
    store.put("value", array)
    del array
    workflow = split_of([give_huge_back], ALL, into="answers", workflow={"store": store})
    _, run = ran(workflow, shared_pool)
    assert store.get("answers") == [total]
    back = store.get("back")
    assert back.nbytes == size
    assert is_in_place(back)
    assert (int(back[:: 1 << 20].sum()), int(back[-1])) == (total - 77, 77)
    # The store is the last to hold it.
    del back, run, workflow
    store.clear()
    gc.collect()
    assert store.segments.used == 0


def give_huge_back(ctx):
    array = ctx.store.get("value")
    ctx.store.put("back", array)
    return int(array[:: 1 << 20].sum()) + int(array[-1])


# -- how long a view lasts


def test_views_in_the_launcher_outlive_run_store_and_pool():
    """Results and values that are held stay what they were when the run, its store and the pool are gone."""
    with WorkerPool(1) as pool:
        _, run = ran(map_of(values.make_array, [3, 4], ALL, into="all"), pool)
        one = run.store.get("all")[0]
        other = run.report().splits["split"][1].value
        run.store.clear()
        del run
    gc.collect()
    assert (one == 3).all()
    assert (other == 4).all()
    assert bytes_of(os.getpid()) >= one.nbytes + other.nbytes


@pytest.mark.parametrize("max_bytes", [None, 1], ids=["in memory", "on disk"])
def test_a_view_in_a_worker_outlives_its_key(max_bytes):
    """A task may keep an array from call to call: it does not change when the key is replaced, removed, or freed."""
    store = SharedStore(max_bytes=max_bytes)
    store.put("other", np.full(200_000, 1.0))
    store.put("value", np.full(200_000, 7.0))
    with WorkerPool(1) as pool:
        workflow = split_of([keep_view], ALL, into="kept", workflow={"store": store})
        assert ran(workflow, pool)[1].store.get("kept") == [1_400_000.0]
        store.put("value", np.full(200_000, 9.0))
        store.put("again", np.full(200_000, 9.0))
        gc.collect()
        assert ran(workflow, pool)[1].store.get("kept") == [1_400_000.0]
        store.clear()
        gc.collect()
        assert ran(workflow, pool)[1].store.get("kept") == [1_400_000.0]


_kept: list = []


def keep_view(ctx):
    if not _kept:
        _kept.append(ctx.store.get("value"))
    return float(_kept[0].sum())


def test_a_branch_reads_the_version_it_was_given_when_the_store_has_gone_on(tmp_path):
    """A key that is replaced while a branch runs is still there for it, when it is first read after that."""
    store = SharedStore()
    store.put("value", np.full(200_000, 7.0))
    with WorkerPool(1) as pool:
        run = map_of(read_late, [str(tmp_path)], ALL, into="sums", workflow={"store": store}).start("split", pool=pool)
        await_that((tmp_path / "runs").exists, "the branch should run")
        store.put("value", np.full(200_000, 1.0))
        store.snapshot()
        gc.collect()
        (tmp_path / "go").touch()
        assert run.wait(60) == "joined"
    assert store.get("sums") == [1_400_000.0]


def read_late(ctx, place):
    mark(place, "runs")
    await_marks(place, "go")
    return float(ctx.store.get("value").sum())


@pytest.mark.parametrize("how", ["replaced", "removed", "run ends"])
def test_memory_is_free_when_nobody_needs_it(how):
    """What was replaced, removed, or was a run's own, takes no memory afterwards: here, nor in an idle worker."""
    with WorkerPool(2) as pool:
        pool.warm_up()
        everybody = [os.getpid(), *(worker.pid for worker in pool.workers)]
        before = bytes_of(*everybody)
        used = segments.default().used
        workflow = map_of(values.make_array, range(6), ALL, into="all")
        _, run = ran(workflow, pool)
        store = run.store
        if how == "run ends":
            del run, store
        elif how == "replaced":
            store.put("all", None)
            del run
        else:
            store.remove("all")
            del run
        gc.collect()
        # The next call lets a worker drop what it had mapped.
        ran(map_of(values.digest_item, range(4), ALL), pool)
        gc.collect()
        await_that(lambda: bytes_of(*everybody) <= before, "memory should be free", 10.0)
        assert segments.default().used == used


# -- the other kind

#: What holds for both kinds, and takes nothing but a pool.
BOTH = [
    test_values_of_every_shape_reach_a_worker_through_the_store,
    test_values_of_every_shape_reach_a_worker_as_items,
    test_values_of_every_shape_come_back_as_results_and_as_writes,
    test_an_item_that_is_given_back_is_the_same,
    test_a_later_state_reads_the_values_of_a_split,
    test_branches_append_and_update_large_values,
    test_a_task_cannot_change_the_store_by_changing_what_it_read,
    test_ten_thousand_keys,
]

SCRIPT = """
import os, sys
from canobatch import WorkerPool
from tests.integration import test_large_values as tests

with WorkerPool(2) as pool:
    for name in sys.argv[1:]:
        getattr(tests, name)(pool)
        print(name, flush=True)
    for name in tests.IN_PLACE:
        tests.test_arrays_that_come_back_are_not_copied(name, pool)
    for way in ("store", "item"):
        tests.test_arrays_are_not_copied_in_a_worker(way, pool)
    for ordered in (True, False):
        tests.test_arrays_are_folded(ordered, pool)
print("segments of the other kind:", len(tests.segments_of(os.getpid())))
"""


def test_the_same_holds_for_named_blocks(run_script):
    """All of it works with named blocks too, and leaves none of them."""
    ended = run_script(SCRIPT, *(test.__name__ for test in BOTH), env={"CANOBATCH_SEGMENTS": "shm"}, timeout=110.0)
    assert ended.stderr == ""
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[-1] == "segments of the other kind: 0"


QUIET = """
import numpy as np
from canobatch import JoinStrategy, SharedStore, WorkerPool
from tests.support import values
from tests.support.branches import map_of, ran, split_of

store = SharedStore()
store.put("value", np.arange(300_000))
held = store.get("value")
with WorkerPool(2) as pool:
    _, run = ran(map_of(values.make_array, range(4), JoinStrategy.all(), into="all", workflow={"store": store}), pool)
    ran(split_of([values.look_at_key] * 2, JoinStrategy.all(), workflow={"store": store}), pool)
    results = store.get("all")
print(held.sum(), len(results))
"""


@pytest.mark.parametrize("end", ["", "del store, held, results, run", "import os; os._exit(0)", "1 / 0"])
@pytest.mark.parametrize("kind", ["memfd", "shm"])
def test_nothing_warns_at_exit(kind, end, run_script):
    """A script that ends with values still held, or in another way, prints no warning of anything."""
    ended = run_script(QUIET + end, env={"CANOBATCH_SEGMENTS": kind, "PYTHONWARNINGS": "error"})
    assert ended.stdout == "44999850000 4\n"
    errors = [line for line in ended.stderr.splitlines() if "Warning" in line or "leaked" in line or "ignored" in line]
    assert errors == []
    assert (ended.stderr == "") == (end != "1 / 0")


TRACKED = """
import os, sys
from multiprocessing import resource_tracker
import numpy as np
from canobatch import JoinStrategy, SharedStore, WorkerPool
from tests.support import values
from tests.support.branches import map_of, ran

heard = []

def listen():
    "In a worker: fail whatever registers something with a resource tracker."
    def refuse(*arguments):
        raise AssertionError(f"registered {arguments}")
    resource_tracker.register = resource_tracker._resource_tracker.register = refuse

listen()
store = SharedStore()
store.put("value", np.arange(300_000))
with WorkerPool(2, initializer=listen) as pool:
    ran(map_of(values.make_named, ["array", "bytes"], JoinStrategy.all(), into="all", workflow={"store": store}), pool)
    ran(map_of(values.digest_item, [np.ones(300_000)] * 2, JoinStrategy.all(), workflow={"store": store}), pool)
print(resource_tracker._resource_tracker._pid, store.get("value").sum(), len(store.get("all")))
"""


@pytest.mark.parametrize("kind", ["memfd", "shm"])
def test_no_resource_tracker_hears_of_a_segment(kind, run_script):
    """Neither the launcher nor a worker registers what it opens: a tracker would remove it under others, or warn."""
    ended = run_script(TRACKED, env={"CANOBATCH_SEGMENTS": kind})
    assert (ended.stdout, ended.stderr) == ("None 44999850000 2\n", "")


@pytest.mark.parametrize("limit", [{"attempt_timeout": 3600.0}, {"memory_limit": 10**10}], ids=["timeout", "memory"])
def test_items_with_a_limit_are_freed_when_they_are_done(limit, shared_pool):
    """Nobody minds the limit of a call that has ended: its item does not stay until the limit is reached."""
    store = SharedStore()
    flow = Workflow("w", store=store, default_config=TaskConfig(**limit))
    items = (np.full(4 << 20, number, np.uint8) for number in range(6))
    join = JoinConfig(JoinStrategy.all(), "end", into="sums")
    flow.register_map("s", lambda ctx, item: int(item[0]), items, join).add_exit_state("end")
    assert flow.orchestrate("s", pool=shared_pool) == "end"
    assert store.get("sums") == list(range(6))
    gc.collect()
    await_that(lambda: store.segments.used == 0, "the items should be freed", 30.0)
