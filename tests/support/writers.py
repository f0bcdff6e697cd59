"""Tasks that write to the store: losers until they are killed, and one that wins against them."""

from __future__ import annotations

import itertools
import os
import random
import time

from tests.support.watch import Scene


def write_everything(ctx, name: object, size: int = 1000) -> None:
    """Use every operation there is, under keys of its own and of others."""
    ctx.store.put(f"own-{name}", os.urandom(size))
    ctx.store.put("kept", f"by {name}")
    ctx.store.append("list", name)
    ctx.store.add("counter", 1)
    ctx.store.update("updated", lambda value: value + 1, default=0)
    ctx.store.remove("removed?")


def write_until_killed(ctx):
    Scene(ctx.store.get("place")).runs(f"{ctx.run_id}-{ctx.branch}")
    for index in itertools.count():
        write_everything(ctx, index)
        # One of them finishes, so that its outcome races with the winner's.
        if ctx.branch == 2 and index == 200:
            break
    return "loser"


def win_some_time(ctx):
    names = [f"{ctx.run_id}-{branch}" for branch in (0, 1)]
    Scene(ctx.store.get("place")).await_runs(*names)
    time.sleep(random.random() * 0.02)  # the moment, not a wait
    ctx.store.put("winner", ctx.branch)
    ctx.store.append("list", "winner")
    return "winner"
