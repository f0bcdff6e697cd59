"""For tests of workflows: no processes, no waiting, every step on record.

Example, with pytest and ``pytest_plugins = ["canobatch.testing.plugin"]`` in the root ``conftest.py``::

    def test_a_flaky_count_is_retried(inline_backend, fake_clock, recording):
        inline_backend.fail("COUNT", OSError("disk"), branch=1, attempts=2)
        workflow.with_observer(recording)

        run = workflow.start(S.START, pool=inline_backend)
        run.wait()

        assert_path(run, ["START", "COUNT", "REPORT", "DONE"])
        assert run.store.get("counts") == [2, 2, 2]
        assert [event.branch for event in recording.of("retry")] == [1, 1]
        assert fake_clock.elapsed > 0        # the back-off, which nobody waited for

`InlineBackend` runs branches in this process, one after the other; `FakeClock` lets waits pass at once;
`RecordingObserver` keeps events for `assert_path`, `assert_compensation_ran`, `assert_all_states_entered` and
`assert_balanced`; `InlineBackend.fail`, `lose`, `time_out` and `failing` let things go wrong. What is about
kills, memory or crashes needs a real `WorkerPool`: nothing here imitates one.
"""

from canobatch.testing.clock import FakeClock
from canobatch.testing.faults import failing
from canobatch.testing.inline import InlineBackend
from canobatch.testing.recording import (
    RecordingObserver,
    assert_all_states_entered,
    assert_balanced,
    assert_compensation_ran,
    assert_path,
)

__all__ = [
    "FakeClock",
    "InlineBackend",
    "RecordingObserver",
    "assert_all_states_entered",
    "assert_balanced",
    "assert_compensation_ran",
    "assert_path",
    "failing",
]
