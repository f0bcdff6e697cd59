"""MetricsObserver: counts and durations for Prometheus."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from canobatch.definition import label
from canobatch.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from canobatch.observe.events import Event

_OUTCOMES = {"run_finished": "finished", "run_failed": "failed", "run_cancelled": "cancelled"}


@dataclass(slots=True)
class _Run:
    """What is known of a run that goes on."""

    workflow: str
    started: float
    state: str = ""
    entered: float = 0.0


class MetricsObserver:
    """Keeps metrics of all runs it observes; serve them with ``prometheus_client.start_http_server``.

    ``canobatch_runs_total{workflow, outcome}``, ``_runs_active{workflow}``, ``_run_seconds{workflow}``,
    ``_state_seconds{workflow, state}``, ``_branches_total{workflow, state, status}``,
    ``_branches_running{workflow, state}``, ``_branch_seconds{workflow, state}``, ``_retries_total{workflow, state}``,
    ``_compensations_total{workflow, state, outcome}`` and ``_flow_ticks_total{flow, outcome}``.

    Needs prometheus-client (``pip install canobatch[metrics]``).

    Args:
        registry: Where they are registered; None: prometheus-client's own.

    Raises:
        ConfigurationError: prometheus-client is not installed.

    Example:
        >>> workflow.with_observer(MetricsObserver())                     # doctest: +SKIP
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Gauge, Histogram  # noqa: PLC0415 - not everyone has it
        except ImportError:
            raise ConfigurationError(
                "MetricsObserver needs prometheus-client; install it with: pip install canobatch[metrics]"
            ) from None
        to: Any = {"namespace": "canobatch", "registry": REGISTRY if registry is None else registry}
        state = ["workflow", "state"]
        self._ended = Counter("runs", "Runs that ended", ["workflow", "outcome"], **to)
        self._active = Gauge("runs_active", "Runs that go on", ["workflow"], **to)
        self._run_time = Histogram("run_seconds", "How long runs took", ["workflow"], **to)
        self._state_time = Histogram("state_seconds", "How long visits of states took", state, **to)
        self._branches = Counter("branches", "Branches that ended", [*state, "status"], **to)
        self._running = Gauge("branches_running", "Branches that have begun and not ended", state, **to)
        self._branch_time = Histogram("branch_seconds", "How long last attempts of branches took", state, **to)
        self._retries = Counter("retries", "Attempts that were followed by another", state, **to)
        self._compensations = Counter("compensations", "States that were rolled back", [*state, "outcome"], **to)
        self._ticks = Counter("flow_ticks", "What schedulers did with ticks and triggers", ["flow", "outcome"], **to)
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}

    def on_event(self, event: Event) -> None:
        """Count one event."""
        if event.kind == "flow_ended":
            return
        if event.kind.startswith("flow_"):
            self._ticks.labels(event.detail.flow, event.kind.removeprefix("flow_")).inc()
            return
        now = event.time.timestamp()
        with self._lock:
            run = self._runs.setdefault(event.run_id, _Run(str(event.detail), now))
            if event.kind in _OUTCOMES:
                del self._runs[event.run_id]
        if event.kind in {"run_started", "run_resumed"}:
            self._active.labels(run.workflow).inc()
        elif event.kind == "state_entered":
            self._leave(run, now)
            run.state, run.entered = label(event.state), now
        elif event.kind in _OUTCOMES:
            self._leave(run, now)
            self._active.labels(run.workflow).dec()
            self._ended.labels(run.workflow, _OUTCOMES[event.kind]).inc()
            self._run_time.labels(run.workflow).observe(now - run.started)
        else:
            self._count(run.workflow, label(event.state), event)

    def _leave(self, run: _Run, now: float) -> None:
        if run.state:
            self._state_time.labels(run.workflow, run.state).observe(now - run.entered)

    def _count(self, workflow: str, state: str, event: Event) -> None:
        if event.kind == "branch_started":
            self._running.labels(workflow, state).inc()
        elif event.kind in {"branch_finished", "branch_killed"}:
            self._running.labels(workflow, state).dec()
            self._branches.labels(workflow, state, event.detail.status.value).inc()
            if event.detail.duration is not None:
                self._branch_time.labels(workflow, state).observe(event.detail.duration)
        elif event.kind == "retry":
            self._retries.labels(workflow, state).inc()
        elif event.kind == "compensation_finished":
            self._compensations.labels(workflow, state, "undone" if event.detail is None else "failed").inc()
