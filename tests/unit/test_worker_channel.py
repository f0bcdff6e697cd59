"""A worker's end of its channel: what is of little weight never blocks it."""

from __future__ import annotations

import socket
import threading

import pytest

from canobatch import wire
from canobatch.worker_channel import Channel


@pytest.fixture
def ends():
    """Both ends of a channel."""
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


def test_a_full_channel_takes_no_more_of_little_weight(ends):
    """Where nobody reads, try_send says no instead of waiting, and what it has sent is whole."""
    channel = Channel(ends[0])
    sent = 0
    while channel.try_send(wire.LOG, (sent, "x" * 10_000)):
        sent += 1
        assert sent < 1000
    inbox = wire.Inbox()
    received = []
    while len(received) < sent:
        received += inbox.wait(ends[1])
    assert [wire.open_body(body)[0] for _, body in received] == list(range(sent))
    assert channel.try_send(wire.LOG, "again")


def test_what_could_block_half_way_is_not_begun(ends):
    """A frame larger than what is certainly free is refused as a whole."""
    channel = Channel(ends[0])
    assert not channel.try_send(wire.LOG, "x" * 1_000_000)
    assert channel.try_send(wire.LOG, "small")


def test_a_log_in_the_midst_of_a_send_gives_up(ends):
    """A destructor or signal handler that logs while its own thread is sending does not wait for itself."""
    channel = Channel(ends[0])
    with channel._sending:
        assert not channel.try_send(wire.LOG, "hm")
    assert threading.active_count() >= 1
    assert channel.try_send(wire.LOG, "hm")
