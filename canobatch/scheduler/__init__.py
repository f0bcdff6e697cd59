"""Flows: workflows that run by interval, by cron, or by hand, and never overlap unless asked to."""

from canobatch.scheduler.schedules import Cron, Interval, Manual, Schedule

__all__ = ["Cron", "Interval", "Manual", "Schedule"]
