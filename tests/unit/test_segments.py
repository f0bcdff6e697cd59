"""Segments: what is put into shared memory, who may read it, what it costs, and when it is given back."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import pickle
import resource
import signal
import stat

import numpy as np
import pytest

from canobatch import MemoryStore, SharedStore, segments
from canobatch.effects import LARGE, Placed, entry_of, loads, pack
from canobatch.errors import StoreError, StoreFullError
from canobatch.segments import Layout, Quota, Segments, Written, arrived, crossing, fill
from tests.support import values
from tests.support.memory import bytes_of, descriptors, segments_of
from tests.support.values import IN_PLACE, SMALL, is_in_place, is_same

MB = 1_000_000


@pytest.fixture(autouse=True)
def back_to_the_start():
    """Fail a test after which descriptors or segments are held that were not before."""
    # A first use may open something for good.
    loads(Segments().place([pickle.dumps(1)]))
    gc.collect()
    before = segments_of(os.getpid()).keys(), descriptors(), segments.default().used
    yield
    gc.collect()
    assert (segments_of(os.getpid()).keys(), descriptors(), segments.default().used) == before


def through_another(placed):
    """Return packed data as another process would get it."""
    return arrived(crossing(placed))


def regular_files():
    """Return the room on disk of each file that this process has open, by device and inode."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            status = os.fstat(int(name))
            if stat.S_ISREG(status.st_mode) and not segments_like(name):
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found


def segments_like(name):
    """Return whether a descriptor of ours is a memfd."""
    return os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:")


# -- values


@pytest.mark.parametrize("name", [*values.LARGE, *SMALL])
def test_every_value_comes_back_as_it_was(name):
    """Value, type, shape and order of bytes survive, here and for whoever opens the segment."""
    value = values.made(name)
    packed = pack(value, Segments().place)
    assert is_same(loads(packed), value)
    assert is_same(loads(through_another(packed)), value)


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("store", [MemoryStore, SharedStore])
def test_arrays_are_read_in_place(store, name):
    """From 1 MiB on, an array is read-only and looks at the segment, whatever its order of elements was."""
    kept = store()
    kept.put("value", values.made(name))
    first, second = kept.get("value"), kept.get("value")
    assert is_in_place(first)
    # Not two copies either.
    assert np.shares_memory(first, second) or first.base is not None
    with pytest.raises(ValueError, match="read-only"):
        first.flat[0] = first.flat[0]
    with pytest.raises(ValueError, match="WRITEABLE"):
        first.flags.writeable = True


def test_an_array_below_one_mib_is_the_readers_own():
    """A small array is a copy that its reader may change; the store's stays as it was."""
    store = SharedStore()
    store.put("value", np.zeros(LARGE - 1, dtype=np.uint8))
    array = store.get("value")
    array[:] = 1
    assert not store.get("value").any()
    assert store.segments.used == 0 or store.segments is segments.default()


def test_arrays_inside_containers_are_read_in_place():
    """Nested containers are the reader's own; the large arrays in them are not copied."""
    store = SharedStore()
    value = values.made("nested")
    store.put("value", value)
    found = store.get("value")
    assert is_same(found, value)
    assert all(map(is_in_place, found["arrays"]))
    assert is_in_place(found["deep"][0]["large"])
    found["deep"][0]["small"][:] = 7
    found["arrays"].clear()
    found["raw"][:] = b""
    assert is_same(store.get("value"), value)


def test_the_same_array_twice_is_stored_once():
    """A shared array stays shared, and takes its room once."""
    own = Segments()
    placed = pack(values.made("the same twice"), own.place)
    first, second = loads(placed)
    assert first is second
    assert 1_600_000 <= own.used < 1_700_000


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_keep_their_type(kind):
    """Bytes come back as bytes, a bytearray as one that its reader may change."""
    store = SharedStore()
    store.put("value", kind(b"a" * 2 * MB))
    found = store.get("value")
    assert type(found) is kind
    if isinstance(found, bytearray):
        found[0:1] = b"b"
    assert store.get("value") == b"a" * 2 * MB


@pytest.mark.parametrize("value", [b"abc", b"a" * 2 * MB], ids=["small", "large"])
def test_a_memoryview_comes_back_read_only(value):
    """A memoryview comes back as one of the same format and shape that cannot be written to."""
    store = SharedStore()
    store.put("value", memoryview(bytearray(value)))
    found = store.get("value")
    assert isinstance(found, memoryview)
    assert found.readonly
    assert found == value


def test_what_does_not_pickle_takes_no_room():
    """A value that fails half-way, after its large arrays were seen, leaves nothing and changes nothing."""
    store = SharedStore(max_bytes=100 * MB)
    store.put("value", np.ones(200_000))
    used = store.segments.used
    with pytest.raises(TypeError, match="generator"):
        store.put("value", [np.zeros(500_000), (n for n in range(3))])
    assert store.segments.used == used
    assert store.get("value").sum() == 200_000


def test_a_value_that_is_put_does_not_change_with_its_source():
    """`put` copies at once: what happens to the array afterwards does not reach the store."""
    store = SharedStore()
    array = np.zeros(300_000)
    store.put("value", array)
    array[:] = 1
    assert not store.get("value").any()


# -- the life of a view


@pytest.mark.parametrize("end", ["removed", "replaced", "cleared", "store dropped"])
@pytest.mark.parametrize("kind", ["array", "memoryview"])
def test_a_view_outlives_its_key(kind, end):
    """A view that is held keeps its bytes, and its charge, when the key and even the store are gone; no longer."""
    store = SharedStore(max_bytes=100 * MB)
    own = store.segments
    value = np.arange(300_000)
    store.put("value", value if kind == "array" else memoryview(value))
    held = store.get("value")
    if end == "removed":
        store.remove("value")
    elif end == "replaced":
        store.put("value", np.zeros(1))
    elif end == "cleared":
        store.clear()
    else:
        del store
    gc.collect()
    assert (np.asarray(held) == value).all()
    assert own.used >= value.nbytes
    part = held[10:20]
    del held
    gc.collect()
    assert list(part) == list(range(10, 20))
    assert own.used >= value.nbytes
    del part
    gc.collect()
    assert own.used == 0


def test_many_large_puts_hold_only_what_is_there():
    """Descriptors and bytes are those of the keys that are there, not of all that ever were."""
    store = SharedStore()
    before = descriptors()
    used = store.segments.used
    for number in range(500):
        store.put(f"k{number % 5}", np.full(140_000, number))
    gc.collect()
    assert descriptors() - before == 5
    assert store.segments.used - used < 6 * MB * 1.2
    assert {int(store.get(f"k{n}")[0]) for n in range(5)} == set(range(495, 500))


# -- what it is made of


def test_a_segment_cannot_be_changed_by_whoever_opens_it():
    """A memfd is sealed: even a process that opens it for writing can neither write, grow nor shrink it."""
    placed = Segments().place([b"x" * 2 * MB])
    path = crossing(placed)[0][0]
    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"y", 100)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 10)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 10 * MB)
    finally:
        os.close(fd)


def test_a_number_that_is_another_segments_by_now_is_not_read():
    """Whoever is late, and finds another segment under the same descriptor, gets an error and not its bytes."""
    own = Segments()
    placed = own.place([b"a" * 2 * MB])
    late = crossing(placed)
    (path, *_), _ = late
    del placed
    gc.collect()
    other = own.place([b"b" * 2 * MB])
    assert crossing(other)[0][0] == path
    with pytest.raises(StoreError, match="given up"):
        arrived(late).load()


def test_a_segment_that_is_gone_is_an_error():
    """Whoever comes when there is nothing any more gets an error that says so."""
    placed = Segments().place([b"a" * 2 * MB])
    late = crossing(placed)
    del placed
    gc.collect()
    with pytest.raises(StoreError, match="cannot be reached"):
        arrived(late).load()


def test_a_mapping_beyond_the_end_is_an_error_and_no_signal():
    """An address that says more than there is, as of a file that was cut, is refused before it is mapped."""
    placed = Segments().place([b"a" * 2 * MB])
    (path, offset, size, uid), spans = crossing(placed)
    with pytest.raises(StoreError, match="given up"):
        arrived(((path, offset, size + 10 * MB, uid), spans)).load()


def test_reading_needs_no_descriptor():
    """However many values are mapped at a time, they hold no descriptors beyond the owner's."""
    own = Segments()
    placed = [own.place([bytes(LARGE)]) for _ in range(20)]
    before = descriptors()
    views = [part.segment.view() for part in placed]
    views += [through_another(part).segment.view() for part in placed]
    assert descriptors() == before
    assert len(views) == 40


@pytest.mark.parametrize("sizes", list(itertools.product([0, 1, 63, 64, 65, 4096], repeat=2)), ids=str)
def test_pieces_lie_where_the_layout_says(sizes):
    """Each buffer begins at a multiple of 64 bytes, and is what was written there, whatever the lengths."""
    stream = [b"s" * 7, b"t" * sizes[0]]
    buffers = [memoryview(bytes([n]) * size) for n, size in enumerate((*sizes, 3))]
    placed = Segments().place(stream, buffers)
    view = placed.segment.view()
    assert view.readonly
    parts = [bytes(view[at : at + length]) for at, length in placed.spans]
    assert parts == [b"".join(stream), *map(bytes, buffers)]
    assert all(at % 64 == 0 for at, _ in placed.spans)
    assert len(view) == Layout(stream, buffers).size


def test_what_a_writer_wrote_becomes_the_granters():
    """A writer fills by leave of a grant and hands the descriptor over; only then is it a segment of the owner."""
    own = Segments(10 * MB)
    layout = Layout([b"abc" * 500_000])
    grant = own.grant(layout.size)
    assert own.used == layout.size
    uid, fd = fill(grant.ticket, layout)
    written = Written(1, grant.ticket, layout.size, uid, fd)
    assert bytes(Placed(written, layout.spans).stream()) == b"abc" * 500_000
    adopted = own.adopt(grant, uid, fd)
    del grant
    placed = Placed(adopted, layout.spans)
    assert bytes(placed.stream()[:6]) == b"abcabc"
    assert own.used == layout.size
    del adopted, placed, written
    gc.collect()
    assert own.used == 0


@pytest.mark.parametrize("limit", [10 * MB, 1])
def test_a_cancelled_grant_gives_its_room_back(limit):
    """What was reserved for a writer that died is free again, in memory and on disk."""
    own = Segments(limit)
    before = descriptors()
    for _ in range(20):
        grant = own.grant(5 * MB)
        fill(grant.ticket, Layout([bytes(1000)])) if grant.ticket[0] == "file" else None
        grant.cancel()
        del grant
        assert own.used == 0
    assert descriptors() == before


# -- how much there may be


def test_a_quota_counts():
    """What is taken is counted until it is dropped, and no more than the limit can be taken."""
    quota = Quota(100)
    first, second = quota.take(60), quota.take(40)
    assert quota.used == 100
    assert quota.take(1) is None
    assert quota.used == 100
    del first
    assert quota.used == 40
    assert second is not None


def test_beyond_the_limit_values_lie_on_disk():
    """A store over its limit goes on: its values are right and read in place, and memory stays within the limit."""
    store = SharedStore(max_bytes=5 * MB)
    for number in range(10):
        store.put(f"k{number}", np.full(200_000, number))
        assert store.segments.used <= 5 * MB
    assert bytes_of(os.getpid()) <= 5 * MB + 3 * 4096
    for number in range(10):
        found = store.get(f"k{number}")
        assert is_in_place(found)
        assert (found == number).all()
        assert (loads(through_another(store._entries[f"k{number}"].data)) == number).all()


def test_room_in_memory_is_used_again():
    """When values have gone from memory, new ones lie there and not on disk."""
    store = SharedStore(max_bytes=4 * MB)
    for round_ in range(5):
        for number in range(4):
            store.put(f"k{number}", np.full(200_000, round_))
        gc.collect()
        assert 3 * MB < store.segments.used <= 4 * MB
        store.clear()
        gc.collect()
        assert store.segments.used == 0


def test_what_spilled_is_given_back_to_the_disk(tmp_path, monkeypatch):
    """Files for what memory has no room for have no name, and give their room back with their value."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store = SharedStore(max_bytes=1)
    before, others = descriptors(), regular_files()

    def taken():
        return sum(regular_files()[file] for file in regular_files().keys() - others.keys())

    for number in range(8):
        store.put(f"k{number}", np.full(200_000, number))
    assert os.listdir(tmp_path) == []
    assert taken() >= 8 * 1_600_000
    for number in (0, 3, 7, 5):
        store.remove(f"k{number}")
    gc.collect()
    assert taken() < 4 * 1_600_000 + 100_000
    assert (store.get("k6") == 6).all()
    store.clear()
    gc.collect()
    assert taken() == 0
    assert descriptors() == before


@pytest.mark.parametrize("how", ["alone", "with others"])
def test_a_view_of_what_spilled_outlives_its_key(how, tmp_path, monkeypatch):
    """A view that outlives its key on disk shows what it showed, also when its room was given back and taken again."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store = SharedStore(max_bytes=1)
    if how == "with others":
        store.put("other", np.full(200_000, 5))
    store.put("value", np.full(200_000, 1))
    held = store.get("value")
    store.remove("value")
    for number in range(3):
        store.put(f"k{number}", np.full(200_000, 2))
    gc.collect()
    assert (held == 1).all()


def test_no_room_anywhere_is_an_error_that_says_so():
    """A value for which the disk has no room raises StoreFullError, and what was there is intact."""
    own = Segments(1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = SharedStore(max_bytes=1)
    store.put("value", np.full(200_000, 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MB, limit[1]))
    try:
        with pytest.raises(StoreFullError, match=r"no room for a value of 4\.0 MB.*max_bytes.*TMPDIR"):
            store.put("value", np.full(500_000, 2))
        with pytest.raises(MemoryError):
            own.grant(10 * MB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, signal_before)
    assert (store.get("value") == 1).all()
    store.put("value", np.full(500_000, 2))
    assert (store.get("value") == 2).all()


def test_scarce_descriptors_make_values_spill():
    """When this process has few descriptors left, values share one file instead of having one each."""
    store = SharedStore(max_bytes=1000 * MB)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    store.put("first", np.zeros(200_000))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        for number in range(150):
            store.put(f"k{number}", np.full(140_000, number))
        assert descriptors() < 90
        assert all((store.get(f"k{n}") == n).all() for n in range(150))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_error_of_a_full_store_survives_a_pickle():
    """StoreFullError is a StoreError and a MemoryError, also after a pickle."""
    error = pickle.loads(pickle.dumps(StoreFullError("no room")))
    assert isinstance(error, StoreError)
    assert isinstance(error, MemoryError)


def test_an_unknown_kind_is_refused(monkeypatch):
    """A misspelt kind is an error that names the variable and what it may be."""
    monkeypatch.setenv("CANOBATCH_SEGMENTS", "mmap")
    with pytest.raises(StoreError, match='CANOBATCH_SEGMENTS must be "memfd" or "shm", got \'mmap\''):
        Segments().place([b"x" * 2 * MB])


# -- a fork


def test_a_forked_child_holds_no_segment():
    """A child that lives on holds neither descriptors nor the spill file of its parent, and reads of it are errors."""
    store, spilled = SharedStore(max_bytes=50 * MB), SharedStore(max_bytes=1)
    store.put("value", np.ones(300_000))
    before = regular_files()
    spilled.put("value", np.ones(300_000))
    (theirs,) = regular_files().keys() - before.keys()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = "?"
        try:
            said = f"{len(segments_of(os.getpid()))} segments"
            said += f", {len(regular_files().keys() & {theirs})} files"
            for each in (store, spilled):
                try:
                    each.get("value")
                    said += ", read"
                except StoreError:
                    said += ", refused"
            fresh = SharedStore()
            fresh.put("own", np.full(200_000, 3))
            said += f", own {int(fresh.get('own')[7])}"
        except BaseException as error:
            said += repr(error)
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert said == "0 segments, 0 files, refused, refused, own 3"
    assert store.get("value").sum() == spilled.get("value").sum() == 300_000


def test_an_entry_of_a_large_value_says_what_it_is():
    """Category and type name are known without reading a large value."""
    assert entry_of(list(range(400_000)), Segments().place)[1:] == ("list", "list")
    assert entry_of(np.zeros(200_000), Segments().place)[1:] == ("", "ndarray")


def test_a_page_that_the_kernel_looks_at_does_not_fail_a_put(monkeypatch):
    """Where writing cannot be sealed at this instant, the size still is, and the value is there."""
    real, asked = segments.fcntl.fcntl, []

    def busy(fd, command, seals):
        asked.append(seals)
        if seals & 8:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return real(fd, command, seals)

    monkeypatch.setattr(segments.fcntl, "fcntl", busy)
    placed = Segments().place([b"x" * 100])
    assert asked == [15, 7]
    assert bytes(placed.stream()) == b"x" * 100
