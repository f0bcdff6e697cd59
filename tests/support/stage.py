"""A stage without a run: phases are called at once, time passes only in waits, and everything is written down."""

from __future__ import annotations

import logging

from canobatch import MemoryStore, TaskContext
from canobatch.errors import ConfigurationError, WorkflowError
from canobatch.models import ItemResult
from canobatch.models.base import perform
from canobatch.resources import Resources


def context(store=None, **facts) -> TaskContext:
    """Return a context whose store is written to directly."""
    given = {"params": {}, "run_id": "r", "state": "S", "branch": None, "attempt": 1, **facts}
    return TaskContext(
        store=MemoryStore() if store is None else store,
        logger=logging.getLogger("test"),
        deadline_at=None,
        split_of=lambda state: None,
        report=lambda *_: None,
        is_cancelled=lambda: False,
        resources=Resources(),
        **given,
    )


class FakeStage:
    """Drives a model: ``retry`` makes up to ``attempts``; clocks begin at 100 (monotonic) and 1000 (epoch)."""

    def __init__(self, model, *, attempts=1) -> None:
        self.model = model
        self.ctx = context()
        self.attempts = attempts
        self.calls: list[tuple] = []
        self.waits: list[float] = []
        self.cursors: list = []
        self.made: list = []
        self.monotonic, self.epoch = 100.0, 1000.0

    def call(self, phase, *args):
        self.calls.append((phase, *args))
        return perform(self.model, phase, self.ctx, args)

    def retry(self, attempt):
        for _ in range(self.attempts - 1):
            try:
                return attempt()
            except Exception as error:
                if not self.forgives(error):
                    raise
        return attempt()

    def forgives(self, error):
        return not isinstance(error, ConfigurationError | WorkflowError)

    def wait(self, seconds):
        self.waits.append(seconds)
        self.monotonic += seconds
        self.epoch += seconds

    def now(self):
        return self.monotonic, self.epoch

    def keep(self, cursor):
        self.cursors.append(cursor)

    def cursor(self):
        return self.cursors[-1] if self.cursors else None

    def once(self, make):
        if not self.made:
            self.made.append(make())
        return self.made[0]

    def process(self, items):
        return [ItemResult(index, self.call("process_item", item)) for index, item in enumerate(items)]

    def refusal(self, text):
        return WorkflowError(text)


class Moments:
    """Raises or returns what it was given, one after the other, the last for ever."""

    def __init__(self, *moments) -> None:
        self.moments = list(moments)
        self.calls = 0

    def __call__(self, *_):
        moment = self.moments[min(self.calls, len(self.moments) - 1)]
        self.calls += 1
        if isinstance(moment, Exception):
            raise moment
        return moment
