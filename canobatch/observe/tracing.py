"""TracingObserver: runs, states and branches as spans of OpenTelemetry."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from canobatch.definition import label
from canobatch.effects import first_line
from canobatch.errors import ConfigurationError
from canobatch.join import BranchResult, SplitResult

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from canobatch.observe.events import Event

#: Which span a key names: the run's, its state's, or a branch's.
_Key = tuple[str, str, int | None]


class TracingObserver:
    """Makes a span for each run, in it one for each visit of a state, in that one for each branch.

    Retries, checkpoints and the like are events of the span they belong to. Needs opentelemetry
    (``pip install canobatch[tracing]``) and, as usual, a provider that exports.

    Args:
        tracer: Makes the spans; None: the one called "canobatch" of the global provider.

    Raises:
        ConfigurationError: opentelemetry is not installed.

    Example:
        >>> workflow.with_observer(TracingObserver())                     # doctest: +SKIP
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        try:
            from opentelemetry import trace  # noqa: PLC0415 - not everyone has it
        except ImportError:
            raise ConfigurationError(
                "TracingObserver needs opentelemetry; install it with: pip install canobatch[tracing]"
            ) from None
        self._trace = trace
        self._tracer = trace.get_tracer("canobatch") if tracer is None else tracer
        self._lock = threading.Lock()
        self._spans: dict[_Key, Span] = {}

    def on_event(self, event: Event) -> None:
        """Begin, end, or mark a span."""
        with self._lock:
            self._take(event)

    def _take(self, event: Event) -> None:
        run, state = (event.run_id, "run", None), (event.run_id, "state", None)
        branch = (event.run_id, "branch", event.branch)
        kind = event.kind
        if kind in {"run_started", "run_resumed"}:
            self._begin(run, f"run {event.detail}", None, event, {"workflow": event.detail})
        elif kind == "state_entered":
            self._end(state, event)
            name = label(event.state)
            self._begin(state, f"state {name}", run, event, {"state": name})
        elif kind in {"run_finished", "run_failed", "run_cancelled"}:
            for key in [key for key in self._spans if key[0] == event.run_id][::-1]:
                self._end(key, event)
        elif kind == "branch_started":
            self._begin(branch, f"branch {event.branch}", state, event, {"branch": event.branch})
        elif kind in {"branch_finished", "branch_killed"}:
            self._end(branch, event)
        else:
            span = self._spans.get(branch) or self._spans.get(state)
            if span is not None:
                span.add_event(kind, _facts(event), _nanoseconds(event))

    def _begin(self, key: _Key, name: str, parent: _Key | None, event: Event, facts: dict[str, Any]) -> None:
        above = None if parent is None else self._spans.get(parent)
        context = None if above is None else self._trace.set_span_in_context(above)
        attributes = {f"canobatch.{fact}": value for fact, value in {"run_id": event.run_id, **facts}.items()}
        self._spans[key] = self._tracer.start_span(name, context, attributes=attributes, start_time=_nanoseconds(event))

    def _end(self, key: _Key, event: Event) -> None:
        span = self._spans.pop(key, None)
        if span is None:
            return
        error = event.error
        if error is not None:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, first_line(error)))
        if isinstance(event.detail, BranchResult):
            span.set_attribute("canobatch.status", event.detail.status.value)
            span.set_attribute("canobatch.attempts", event.detail.attempts)
        span.end(_nanoseconds(event))


def _facts(event: Event) -> dict[str, Any]:
    if isinstance(event.detail, SplitResult):
        return dict(event.detail.counts)
    facts = event.to_dict()
    return {
        name: value
        for name, value in facts.items()
        if name not in {"run_id", "seq", "time", "kind", "state"} and isinstance(value, str | int | float)
    }


def _nanoseconds(event: Event) -> int:
    return int(event.time.timestamp() * 1_000_000) * 1000
