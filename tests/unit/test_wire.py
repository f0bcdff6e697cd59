"""Frames over a real socket pair: cut anywhere, of any size, in any order of reads and writes."""

from __future__ import annotations

import contextlib
import random
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canobatch import wire


@pytest.fixture
def pair():
    """Two ends of a channel: the first does not block, as the pool's; the second does, as the worker's."""
    with channel() as ends:
        yield ends


@contextlib.contextmanager
def channel():
    """Two connected sockets, closed at the end."""
    one, two = socket.socketpair()
    one.setblocking(False)
    # A test that would hang fails instead.
    two.settimeout(60)
    with one, two:
        yield one, two


def opened(frames):
    """Return frames with their bodies opened."""
    return [(kind, wire.open_body(body)) for kind, body in frames]


def joined(*frames):
    """Return the bytes of frames."""
    return b"".join(part for frame in frames for part in frame)


BODIES = [None, 0, "text", (1, 2.5, b"bytes", [None]), {"a": {"b": (1,)}}, b"", b"x" * 5000, [1] * 3000]


def test_a_frame_is_its_kind_and_body(pair):
    """What is framed is read as the same kind and the same plain data."""
    for kind, body in enumerate(BODIES):
        wire.send_blocking(pair[1], wire.frame(kind, body))
    frames, is_closed = wire.Inbox().receive(pair[0], reads=64)
    assert opened(frames) == list(enumerate(BODIES))
    assert not is_closed


def test_a_body_may_follow_by_other_means(pair):
    """A header and bytes that were never copied into a frame are read as a frame."""
    data = b"\0\1" * 500
    wire.send_blocking(pair[1], [wire.frame_header(7, len(data)), data])
    assert wire.Inbox().receive(pair[0])[0] == [(7, data)]


def test_bodies_open_as_they_were_packed():
    """pack_body and open_body are each other's inverse for plain data."""
    for body in BODIES:
        assert wire.open_body(wire.pack_body(body)) == body


def test_frames_may_be_cut_at_every_byte(pair):
    """Wherever a message is cut, the complete frames are read first and the rest when it comes."""
    frames = [(1, "first"), (2, None), (3, (b"third", 3))]
    data = joined(*(wire.frame(kind, body) for kind, body in frames))
    for cut in range(len(data) + 1):
        inbox, found = wire.Inbox(), []
        for piece in (data[:cut], data[cut:]):
            pair[1].sendall(piece)
            more, is_closed = inbox.receive(pair[0])
            assert not is_closed
            found += more
        assert opened(found) == frames


def test_frames_may_come_byte_by_byte(pair):
    """One byte at a time is as good as all at once."""
    inbox, found = wire.Inbox(), []
    for byte in joined(wire.frame(1, "a"), wire.frame(2, "b")):
        pair[1].sendall(bytes([byte]))
        found += inbox.receive(pair[0])[0]
    assert opened(found) == [(1, "a"), (2, "b")]


LARGE = wire._INLINE


@pytest.mark.parametrize("size", [LARGE - 9, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE + 5, 20_000_000])
def test_large_bodies_arrive_whole(pair, size):
    """A body beyond what is kept inline, and at the border, arrives whole between two small ones."""
    body = random.Random(size).randbytes(size)
    parts = [*wire.frame(1, "before"), wire.frame_header(2, size), body, *wire.frame(3, "after")]
    writer = threading.Thread(target=wire.send_blocking, args=(pair[1], parts))
    writer.start()
    inbox, found = wire.Inbox(), []
    pair[0].setblocking(True)
    pair[0].settimeout(60)
    while len(found) < 3:
        found += inbox.wait(pair[0])
    writer.join()
    assert [kind for kind, _ in found] == [1, 2, 3]
    assert found[1][1] == body
    assert wire.open_body(found[2][1]) == "after"


def test_a_large_body_may_be_cut_in_its_header(pair):
    """A large frame whose first read has only part of the header, or exactly the header, arrives whole."""
    body = bytes(LARGE + 100)
    for cut in (1, 8, 9, 10):
        inbox, data = wire.Inbox(), wire.frame_header(5, len(body)) + body
        pair[1].sendall(data[:cut])
        assert inbox.receive(pair[0]) == ([], False)
        writer = threading.Thread(target=pair[1].sendall, args=(data[cut:],))
        writer.start()
        found = []
        while not found:
            found, is_closed = inbox.receive(pair[0])
            assert not is_closed
        writer.join()
        assert found == [(5, body)]


@settings(max_examples=50)
@given(
    sizes=st.lists(st.one_of(st.integers(0, 50), st.integers(LARGE - 20, LARGE + 20)), min_size=1, max_size=6),
    cuts=st.lists(st.integers(1, 100_000), min_size=1, max_size=20),
)
def test_random_splits_make_no_difference(sizes, cuts):
    """Frames of any sizes written in pieces of any sizes are read in order, each whole and unchanged."""
    bodies = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    data = b"".join(wire.frame_header(number, len(body)) + body for number, body in enumerate(bodies))
    with channel() as (one, two):
        two.setblocking(False)
        inbox, found, at, turn = wire.Inbox(), [], 0, 0
        while at < len(data) or len(found) < len(bodies):
            with contextlib.suppress(BlockingIOError):
                at += two.send(data[at : at + max(cuts[turn % len(cuts)], len(data) // 3000)])
            turn += 1
            frames, is_closed = inbox.receive(one, reads=1 + turn % 3)
            assert not is_closed
            found += frames
    assert [(kind, bytes(body)) for kind, body in found] == list(enumerate(bodies))


def test_a_closed_end_is_seen_after_what_it_sent(pair):
    """Complete frames are still read after the other end has closed; what is cut short is dropped."""
    pair[1].sendall(joined(wire.frame(1, "whole"), wire.frame(2, "cut"))[:-1])
    pair[1].close()
    inbox = wire.Inbox()
    frames, _ = inbox.receive(pair[0])
    assert opened(frames) == [(1, "whole")]
    assert inbox.receive(pair[0]) == ([], True)


def test_an_end_closed_within_a_large_body(pair):
    """A large body that never ends is reported as a closed end, not as a frame."""
    pair[1].sendall(wire.frame_header(1, 10 * LARGE) + bytes(1000))
    pair[1].close()
    inbox = wire.Inbox()
    assert inbox.receive(pair[0], reads=64) == ([], True)


def test_an_empty_channel_is_neither_frame_nor_end(pair):
    """Reading a channel on which nothing came returns at once with nothing."""
    assert wire.Inbox().receive(pair[0]) == ([], False)


def test_draining_says_when_nothing_is_left(pair):
    """drain is over when a read brings nothing more, also in the middle of a frame, and at the closed end."""
    inbox = wire.Inbox()
    pair[1].sendall(joined(wire.frame(1, "a"), wire.frame(2, "b"))[:-1])
    found, rounds, is_over = [], 0, False
    while not is_over:
        frames, is_over = inbox.drain(pair[0])
        found += frames
        rounds += 1
        assert rounds < 10
    assert opened(found) == [(1, "a")]
    pair[1].close()
    assert inbox.drain(pair[0]) == ([], True)


def test_draining_takes_a_large_body_to_its_end(pair):
    """drain is not over while bytes of a large body still come."""
    body = bytes(8 * LARGE)
    writer = threading.Thread(target=wire.send_blocking, args=(pair[1], [wire.frame_header(1, len(body)), body]))
    writer.start()
    inbox, found = wire.Inbox(), []
    while not found:
        found, _ = inbox.drain(pair[0])
    writer.join()
    assert found == [(1, body)]


def test_waiting_ends_with_a_frame_or_the_end(pair):
    """wait blocks until there is a frame; at the closed end it returns nothing."""
    inbox = wire.Inbox()
    one, two = pair[1], pair[0]
    two.setblocking(True)
    two.sendall(joined(wire.frame(1, "a"), wire.frame(2, "b")))
    assert opened(inbox.wait(one)) == [(1, "a"), (2, "b")]
    late = threading.Thread(target=two.sendall, args=(joined(wire.frame(3, "c")),))
    late.start()
    assert opened(inbox.wait(one)) == [(3, "c")]
    late.join()
    two.close()
    assert inbox.wait(one) == []


# -- writing without blocking


def test_a_small_frame_goes_out_at_once(pair):
    """On an idle channel a frame is out when send returns."""
    outbox = wire.Outbox()
    assert outbox.send(pair[0], wire.frame(1, "a"))
    assert not outbox
    assert opened(wire.Inbox().wait(pair[1])) == [(1, "a")]


def test_what_does_not_fit_waits_in_order(pair):
    """A full channel never blocks the writer; what waits goes out in order as the reader makes room."""
    outbox, inbox, count = wire.Outbox(), wire.Inbox(), 60
    is_out = [outbox.send(pair[0], wire.frame(number, bytes(50_000))) for number in range(count)]
    assert is_out[0]
    assert not is_out[-1]
    assert outbox
    found = []
    while len(found) < count:
        outbox.flush(pair[0])
        found += inbox.wait(pair[1])
    assert [kind for kind, _ in found] == list(range(count))
    assert {len(wire.open_body(body)) for _, body in found} == {50_000}
    assert outbox.flush(pair[0])
    assert not outbox


def test_a_huge_frame_leaves_in_pieces(pair):
    """A frame larger than the channel's buffer is written bit by bit and arrives whole, with what came behind it."""
    outbox, inbox = wire.Outbox(), wire.Inbox()
    pair[1].setblocking(False)
    body = random.Random(1).randbytes(5_000_000)
    assert not outbox.send(pair[0], [wire.frame_header(1, len(body)), body])
    assert not outbox.send(pair[0], wire.frame(2, "behind"))
    found = []
    while len(found) < 2:
        outbox.flush(pair[0])
        found += inbox.receive(pair[1], reads=1)[0]
    assert found[0] == (1, body)
    assert opened(found[1:]) == [(2, "behind")]


def test_writing_to_a_closed_end_is_no_error(pair):
    """A reader that is gone swallows what is written: its death is noticed elsewhere."""
    pair[1].close()
    outbox = wire.Outbox()
    assert outbox.send(pair[0], wire.frame(1, "a"))
    assert outbox.send(pair[0], wire.frame(2, bytes(100_000)))
    assert not outbox


def test_an_end_that_closes_while_much_waits_drops_it(pair):
    """What still waits when the reader goes is dropped, and the writer is free."""
    outbox = wire.Outbox()
    assert not outbox.send(pair[0], wire.frame(1, bytes(5_000_000)))
    pair[1].close()
    assert outbox.flush(pair[0])
    assert not outbox
