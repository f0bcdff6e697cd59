"""Flows: workflows that run by interval, by cron, or by hand, and never overlap unless asked to."""

from canobatch.scheduler.flows import BackoffPolicy, FlowInfo, FlowStatus, SkipReason
from canobatch.scheduler.schedules import Cron, Interval, Manual, Schedule

__all__ = ["BackoffPolicy", "Cron", "FlowInfo", "FlowStatus", "Interval", "Manual", "Schedule", "SkipReason"]
