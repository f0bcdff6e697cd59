"""BatchTask in one piece, as a branch or by hand; in the pool see the integration tests."""

from __future__ import annotations

import pytest

from canobatch import Retry
from canobatch.errors import WorkflowError
from canobatch.models import BatchTask, ItemResult
from tests.support.stage import FakeStage, context


class Squares(BatchTask):
    """Squares numbers; fails at some, as often as it is told."""

    def __init__(self, items, failures=None, retries=0):
        self.items = items
        self.failures = dict(failures or {})
        self.item_retry = Retry.fixed(retries, 0)
        self.log = []

    def load(self):
        self.log.append("load")
        if isinstance(self.items, Exception):
            raise self.items
        return self.items

    def process_item(self, ctx, item):
        self.log.append(item)
        if self.failures.get(item, 0) > 0:
            self.failures[item] -= 1
            raise ValueError(f"at {item}")
        return item * item

    def finish(self, ctx, results):
        self.results = results
        return "next"


def test_results_come_in_the_order_of_the_items():
    """Finish gets one result per item, with its index and value."""
    task = Squares([3, 1, 2])
    assert task.run(context()) == "next"
    assert task.results == [ItemResult(0, 9), ItemResult(1, 1), ItemResult(2, 4)]


def test_a_failing_item_is_data():
    """An item's error is in its own result and stops nothing."""
    task = Squares([1, 2, 3], {2: 9})
    assert task.run(context()) == "next"
    assert [result.value for result in task.results] == [1, None, 9]
    assert isinstance(task.results[1].error, ValueError)
    assert [result.succeeded for result in task.results] == [True, False, True]


def test_an_item_is_retried_by_itself():
    """Two retries recover an item that fails twice, in three calls."""
    task = Squares([1, 2], {2: 2}, retries=2)
    task.run(context())
    assert task.log == ["load", 1, 2, 2, 2]
    assert task.results[1] == ItemResult(1, 4)


def test_no_items_still_finish():
    """An empty load is finished with no results."""
    task = Squares([])
    assert task.run(context()) == "next"
    assert task.results == []


def test_an_error_of_load_is_the_task_s():
    """If load fails finish is not called."""
    task = Squares(OSError("where?"))
    with pytest.raises(OSError, match="where"):
        task.run(context())
    assert not hasattr(task, "results")


def test_load_must_return_items():
    """What cannot be iterated over is refused with what to return."""
    with pytest.raises(WorkflowError, match="load returned None, which cannot be iterated over"):
        Squares(None).run(context())


def test_w14_a_failed_finish_is_retried_without_its_items():
    """Finished items are not done again because finish failed."""

    class Once(Squares):
        tries = 0

        def finish(self, ctx, results):
            self.tries += 1
            if self.tries == 1:
                raise OSError("disk full")
            return super().finish(ctx, results)

    stage = FakeStage(Once([1, 2]), attempts=2)
    assert stage.model.drive(stage) == "next"
    assert stage.model.log == ["load", 1, 2]
    assert stage.model.tries == 2
