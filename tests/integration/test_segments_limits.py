"""What happens when there is no room: spill, or an error that says so; never a signal, a hang, or a lost value."""

from __future__ import annotations

import pytest

from tests.support.memory import CANNOT

#: What every script here begins with, after its own ``confine(...)``.
BEGIN = """
import faulthandler, gc, os, resource, sys
faulthandler.enable()
import numpy as np
from canobatch import JoinError, JoinStrategy, SharedStore, TaskConfig, WorkerPool, segments
from canobatch.errors import StoreError, StoreFullError
from tests.support import values
from tests.support.branches import map_of, ran, split_of
from tests.support.memory import Directory, bytes_of, descriptors
from tests.integration.test_segments_limits import *

ALL = JoinStrategy.all()
MB = 1_000_000
places = Directory(os.getpid(), "/dev/shm"), Directory(os.getpid(), os.environ.get("TMPDIR", "/"))

def array(n, elements=200_000):
    return np.full(elements, n, dtype=np.float64)
"""


def done(run_script, confine, source, *args, kind="memfd", timeout=100.0):
    """Run a script in a machine of its own, and return what it printed."""
    head = f"from tests.support.memory import confine\nconfine({confine})\n"
    ended = run_script(head + BEGIN + source, *args, env={"CANOBATCH_SEGMENTS": kind}, timeout=timeout)
    if ended.stdout.startswith(CANNOT):
        pytest.skip(CANNOT)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert ended.stderr == ""
    return ended.stdout.splitlines()


# -- tasks


def put_many(ctx, count):
    """Put arrays of 1.6 MB under names of the branch's own, and read them back."""
    import numpy as np

    for number in range(count):
        ctx.store.put(f"{ctx.branch}-{number}", np.full(200_000, number))
    return sum(float(ctx.store.get(f"{ctx.branch}-{number}")[7]) for number in range(count))


def put_too_much(ctx, elements):
    """Put more than there is room for; say what came of it, and go on."""
    import numpy as np

    from canobatch.errors import StoreFullError

    ctx.store.put("before", np.full(200_000, 1.0))
    try:
        ctx.store.put("huge", np.ones(elements))
    except StoreFullError as error:
        assert not ctx.store.contains("huge")
        ctx.store.put("after", np.full(200_000, 2.0))
        return str(error)
    return "there was room"


def return_too_much(ctx, elements):
    """Return more than there is room for, or with 0 elements something small."""
    import numpy as np

    return np.ones(elements) if elements else "small"


# -- a quota


@pytest.mark.parametrize("kind", ["memfd", "shm"])
def test_what_is_over_the_quota_spills(kind, run_script):
    """Values of the launcher, of workers, items and results beyond ``max_bytes`` lie on disk, and all are right."""
    source = """
store = SharedStore(max_bytes=8 * MB)
for n in range(10):
    store.put(f"own-{n}", array(n))
    assert store.segments.used <= 8 * MB
with WorkerPool(2) as pool:
    _, run = ran(map_of(put_many, [6] * 3, ALL, into="sums", workflow={"store": store}), pool)
    assert store.get("sums") == [15.0] * 3
    assert store.segments.used <= 8 * MB
    items = [array(n) for n in range(12)]
    _, run = ran(map_of(values.give_back, items, ALL, into="all", workflow={"store": store}), pool)
    assert all((one == other).all() for one, other in zip(store.get("all"), items, strict=True))
    assert store.segments.used <= 8 * MB
    assert bytes_of(os.getpid(), *(worker.pid for worker in pool.workers)) <= 9 * MB
    assert places[0].used() <= 9 * MB
    assert places[1].used() >= 20 * MB
assert all((store.get(f"own-{n}") == n).all() for n in range(10))
assert all((store.get(f"{b}-{n}") == n).all() for b in range(3) for n in range(6))
del run
store.clear()
gc.collect()
assert store.segments.used == 0
assert [place.used() for place in places] == [0, 0]
"""
    done(run_script, "shm=300_000_000, disk=300_000_000", source, kind=kind)


@pytest.mark.parametrize("kind", ["memfd", "shm"])
def test_when_the_disk_is_full_too_a_put_fails_and_the_rest_is_intact(kind, run_script):
    """With quota and disk full a put raises StoreFullError, in the launcher and in a task; nothing else is harmed."""
    source = """
store = SharedStore(max_bytes=4 * MB)
kept = 0
try:
    while True:
        store.put(f"k{kept}", array(kept))
        kept += 1
except StoreFullError as error:
    assert "no room for a value of 1.6 MB" in str(error), error
    assert "max_bytes" in str(error) and "TMPDIR" in str(error)
# 4 MB of memory and 12 of disk.
assert 7 <= kept <= 9, kept

def check():
    assert store.keys()[: kept] == [f"k{n}" for n in range(kept)]
    assert all((store.get(f"k{n}") == n).all() for n in range(kept))

check()
# A value that is to be replaced is still there when its successor has no room.
try:
    store.put("k0", array(5, 3_000_000))
except StoreFullError:
    check()
else:
    raise AssertionError("there should be no room")
try:
    store.append("more", array(5, 3_000_000))
except StoreFullError:
    check()
else:
    raise AssertionError("there should be no room")
# Room that is given back can be used.
store.remove("k3")
store.remove("k4")
gc.collect()
store.put("k3", array(3))
store.put("k4", array(4))
check()
store.remove("k0")
store.remove("k1")
store.remove("k2")
gc.collect()

def check():
    assert all((store.get(f"k{n}") == n).all() for n in range(3, kept))

with WorkerPool(1) as pool:
    _, run = ran(map_of(put_too_much, [5_000_000], ALL, into="said", workflow={"store": store}), pool)
    (said,) = store.get("said")
    assert "no room for a value of 40.0 MB" in said, said
    assert (store.get("before") == 1).all() and (store.get("after") == 2).all()
    check()
    store.remove("before")
    store.remove("after")
    del run
    gc.collect()
    config = TaskConfig()
    run = map_of(return_too_much, [0, 5_000_000, 0], JoinStrategy.quorum(2), workflow={"store": store})
    run = run.start("split", pool=pool)
    run.wait(60)
    result = run.report().splits["split"]
    check()
    pid = pool.workers[0].pid
    run = map_of(return_too_much, [0, 5_000_000, 0], ALL, workflow={"store": store}).start("split", pool=pool)
    try:
        run.wait(60)
    except JoinError:
        pass
    result = run.report().splits["split"]
    error = result[1].error
    causes = [error, error.__cause__, getattr(error.__cause__, "__cause__", None)]
    assert any(isinstance(cause, StoreFullError) for cause in causes), causes
    assert [str(branch.status) for branch in result] == ["succeeded", "failed", "succeeded"]
    assert pool.workers[0].pid == pid
    check()
    # An item for which there is no room fails as clearly.
    run = map_of(values.digest_item, [array(1, 5_000_000)], ALL, workflow={"store": store}).start("split", pool=pool)
    try:
        run.wait(60)
    except (JoinError, StoreFullError) as error:
        assert "no room" in str(error), error
    else:
        raise AssertionError("there should be no room")
    check()
    _, run = ran(map_of(values.digest_item, [1, 2], ALL, workflow={"store": store}), pool)
"""
    done(run_script, "shm=300_000_000, disk=12_000_000", source, kind=kind)


@pytest.mark.parametrize("disk", [300_000_000, 5_000_000], ids=["room on disk", "none on disk"])
def test_a_small_dev_shm_is_no_signal(disk, run_script):
    """Named blocks in 64 MB of /dev/shm, as containers have: the rest spills, or is StoreFullError; no SIGBUS."""
    source = """
disk = int(sys.argv[1])
store = SharedStore(max_bytes=10_000 * MB)
kept = 0
try:
    while kept < 60:
        store.put(f"k{kept}", array(kept))
        kept += 1
except StoreFullError as error:
    assert "no room" in str(error)
assert kept == 60 if disk > 100 * MB else 37 <= kept <= 44, kept
assert all((store.get(f"k{n}") == n).all() for n in range(kept))
for n in range(20):
    store.remove(f"k{n}")
gc.collect()
with WorkerPool(2) as pool:
    _, run = ran(map_of(put_many, [4] * 2, ALL, into="sums", workflow={"store": store}), pool)
    assert store.get("sums") == [6.0] * 2
    _, run = ran(map_of(put_too_much, [50_000_000], ALL, into="said", workflow={"store": store}), pool)
    assert "no room" in store.get("said")[0]
assert all((store.get(f"k{n}") == n).all() for n in range(20, kept))
del run
store.clear()
gc.collect()
assert [place.used() for place in places] == [0, 0]
"""
    done(run_script, f"shm=64_000_000, disk={disk}", source, disk, kind="shm")


def test_a_dev_shm_that_is_filled_by_others_is_no_signal(run_script):
    """/dev/shm that somebody else fills while a block is being used harms nobody: its pages were taken beforehand."""
    source = """
store = SharedStore(max_bytes=10_000 * MB)
store.put("value", array(7, 3_000_000))
with open("/dev/shm/others", "wb") as others:
    try:
        while True:
            others.write(bytes(1 << 20))
            others.flush()
    except OSError:
        pass
    assert (store.get("value") == 7).all()
    store.put("more", array(8, 3_000_000))
    assert (store.get("more") == 8).all()
    with WorkerPool(1) as pool:
        _, run = ran(map_of(put_many, [3], ALL, into="sums", workflow={"store": store}), pool)
        assert store.get("sums") == [3.0]
"""
    done(run_script, "shm=64_000_000, disk=300_000_000", source, kind="shm")


# -- descriptors

FEW = """
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
store = SharedStore(max_bytes=5_000 * MB)
for n in range(400):
    store.put(f"k{n}", np.full(131_072, n, dtype=np.float64))
assert descriptors() < 256
assert all((store.get(f"k{n}") == n).all() for n in range(400))
"""


@pytest.mark.parametrize("kind", ["memfd", "shm"])
def test_few_descriptors_are_enough_for_many_values_of_the_launcher(kind, run_script):
    """With `ulimit -n 256`, 400 values of 1 MiB are put, read here and in a worker, and a task reads them all."""
    source = """
with WorkerPool(1) as pool:
    _, run = ran(map_of(read_all, [400], ALL, into="sum", workflow={"store": store}), pool)
    assert store.get("sum") == [sum(range(400))]
    store.put("new", np.full(131_072, 1.0))
"""
    done(run_script, "disk=900_000_000, shm=900_000_000", FEW + source, kind=kind)


def read_all(ctx, count):
    """Return the sum of one element of each value."""
    held = [ctx.store.get(f"k{number}") for number in range(count)]
    return sum(int(array[-1]) for array in held)


@pytest.mark.parametrize("kind", ["memfd", "shm"])
@pytest.mark.parametrize("way", ["puts", "results", "items"])
def test_few_descriptors_are_enough_for_many_values_of_workers(way, kind, run_script):
    """With `ulimit -n 256`, 400 large values that workers make, or get, arrive; or a clear error says why not."""
    source = """
way = sys.argv[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
store = SharedStore(max_bytes=5_000 * MB)
with WorkerPool(2) as pool:
    if way == "puts":
        _, run = ran(map_of(put_many, [100] * 4, ALL, into="sums", workflow={"store": store}), pool)
        assert store.get("sums") == [4950.0] * 4
        assert all((store.get(f"{b}-{n}") == n).all() for b in range(4) for n in range(100))
    elif way == "results":
        _, run = ran(map_of(values.make_array, range(400), ALL, into="all", workflow={"store": store}), pool)
        assert [int(each[-1]) for each in store.get("all")] == list(range(400))
    else:
        items = (np.full(140_000, n) for n in range(400))
        _, run = ran(map_of(last_of, items, ALL, into="all", workflow={"store": store}), pool)
        assert store.get("all") == list(range(400))
    assert descriptors() < 256
    _, run = ran(map_of(values.digest_item, [1, 2], ALL), pool)
"""
    done(run_script, "disk=1_500_000_000, shm=1_500_000_000", source, way, kind=kind)


def last_of(ctx, item):
    """Return its last element."""
    return int(item[-1])
