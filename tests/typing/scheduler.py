"""How the scheduler is used, as a type checker sees it; each ignored error must be one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import assert_type

from canobatch import Run, Workflow
from canobatch.scheduler import (
    BackoffPolicy,
    Cron,
    FlowHome,
    FlowInfo,
    FlowRecord,
    FlowStatus,
    Interval,
    RunningScheduler,
    Scheduler,
)


def build(workflow: Workflow) -> Scheduler:
    """Register every kind of flow."""
    scheduler = (
        Scheduler(Path("home"))
        .every("a", workflow, "start", timedelta(minutes=5), mode="fixed_delay", overlap="queue_one", jitter=3)
        .every_seconds("b", workflow, "start", 5, start="after_interval", backoff=BackoffPolicy.with_trip(3))
        .every_minutes("c", workflow, "start", 5, catchup="all", catchup_window=timedelta(hours=1))
        .every_hours("d", workflow, "start", 5, pause_on_failure=True, ping_url="https://example.org/d")
        .cron("e", workflow, "start", "0 9 * * *", "Europe/London", timeout=60)
        .manual("f", workflow, "start", params={"day": "today"})
    )
    scheduler.every("g", workflow, "start", 5, overlap="sometimes")  # type: ignore[arg-type]
    scheduler.every("h", workflow, "start", 5, mode="slow")  # type: ignore[arg-type]
    scheduler.manual("i", workflow, "start", overlapp="skip")  # type: ignore[call-arg]
    assert_type(scheduler, Scheduler)
    return scheduler


def live(scheduler: Scheduler) -> None:
    """Use what runs."""
    with scheduler.start() as running:
        assert_type(running, RunningScheduler)
        assert_type(running.trigger("f", {"day": "tomorrow"}), Run)
        assert_type(running.status("f"), FlowInfo)
        assert_type(running.status("f").status, FlowStatus)
        assert_type(running.status("f").next_run, datetime | None)
        assert_type(running.list(), Sequence[FlowInfo])
        assert_type(running.history("f"), Sequence[FlowRecord])
        assert_type(running.serve(timeout=5), int | None)
    with FlowHome("home") as home:
        assert_type(home.trigger("f"), str)


def foresee() -> None:
    """Ask schedules."""
    assert_type(Cron("@daily").preview(datetime.now(UTC), 3), list[datetime])
    assert_type(Interval(5).next_after(datetime.now(UTC)), datetime | None)
