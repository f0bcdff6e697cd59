"""A script: lets processes with the run of `whole` die by SIGKILL, one after the other, as often as it is told.

Reads from its argument, as JSON, a list of (place, backend, whether the run fails, kills). For each kill a process
is forked that begins the run, or goes on with it, and kills itself at the n-th fault point; or, of a fraction, after
so many seconds. Prints for each how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress

from canobatch import TaskError, WorkerPool, _faults
from canobatch.errors import RunNotFoundError
from canobatch.testing import InlineBackend
from tests.support.whole import W, parameters, whole


def die():
    """Die."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(when):
    """Let this process die at a point, or after a time."""
    passed = 0

    def pass_by(name):
        nonlocal passed
        passed += 1
        if passed == when:
            os.write(1, f"{name} ".encode())
            die()

    if isinstance(when, float):
        timer = threading.Timer(when, die)
        timer.daemon = True
        timer.start()
    else:
        _faults.hook = pass_by


def live(place, kind, when, *, fails):
    """Begin the run, or go on with it, until this process dies or the run ends."""
    with WorkerPool(2) if kind == "pool" else InlineBackend() as backend:
        if kind == "pool":
            backend.warm_up()
        kill_at(when)
        with suppress(TaskError):
            try:
                whole(place).resume("r", pool=backend)
            except RunNotFoundError:
                whole(place).orchestrate(W.START, pool=backend, run_id="r", params=parameters(place, fails=fails))


def in_child(*arguments, **options):
    """Call ``live`` in a child, and say how that ended."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            live(*arguments, **options)
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    for place, kind, fails, kills in json.loads(sys.argv[1]):
        os.makedirs(place, exist_ok=True)
        for when in kills:
            in_child(place, kind, when, fails=fails)
