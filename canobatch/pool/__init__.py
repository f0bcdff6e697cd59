"""The parent side of the worker processes."""

from canobatch.pool._fleet import WorkerInfo
from canobatch.pool.backend import (
    Backend,
    Began,
    Broken,
    Call,
    Event,
    Finished,
    LaneHandle,
    Logged,
    Lost,
    Progressed,
    Stopped,
)
from canobatch.pool.default import close_default_pool, default_pool
from canobatch.pool.pool import WorkerPool

__all__ = [
    "Backend",
    "Began",
    "Broken",
    "Call",
    "Event",
    "Finished",
    "LaneHandle",
    "Logged",
    "Lost",
    "Progressed",
    "Stopped",
    "WorkerInfo",
    "WorkerPool",
    "close_default_pool",
    "default_pool",
]
