"""Flows: workflows that run by interval, by cron, or by hand, and never overlap unless asked to."""

from canobatch.scheduler.clock import Clock, SystemClock
from canobatch.scheduler.flows import BackoffPolicy, FlowInfo, FlowStatus, SkipReason
from canobatch.scheduler.ledger import FlowRecord
from canobatch.scheduler.remote import FlowHome
from canobatch.scheduler.running import RunningScheduler
from canobatch.scheduler.scheduler import Scheduler
from canobatch.scheduler.schedules import Cron, Interval, Manual, Schedule
from canobatch.scheduler.spec import FlowOptions

__all__ = [
    "BackoffPolicy",
    "Clock",
    "Cron",
    "FlowHome",
    "FlowInfo",
    "FlowOptions",
    "FlowRecord",
    "FlowStatus",
    "Interval",
    "Manual",
    "RunningScheduler",
    "Schedule",
    "Scheduler",
    "SkipReason",
    "SystemClock",
]
