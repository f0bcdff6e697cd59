"""Processing models: tasks with phases, which the run's driver calls one by one."""

from canobatch.models.batch import BatchTask
from canobatch.models.compensatable import CompensatableTask
from canobatch.models.item import ItemResult
from canobatch.models.node import Node
from canobatch.models.policy import ErrorPolicy
from canobatch.models.poll import Pending, PollTask, Ready
from canobatch.models.router import RouterTask
from canobatch.models.stepped import Done, More, SteppedTask
from canobatch.models.stream import CloseReason, DeadLetter, StreamTask
from canobatch.models.timer import TimerTask
from canobatch.models.window import Count, Duration, Window

__all__ = [
    "BatchTask",
    "CloseReason",
    "CompensatableTask",
    "Count",
    "DeadLetter",
    "Done",
    "Duration",
    "ErrorPolicy",
    "ItemResult",
    "More",
    "Node",
    "Pending",
    "PollTask",
    "Ready",
    "RouterTask",
    "SteppedTask",
    "StreamTask",
    "TimerTask",
    "Window",
]
