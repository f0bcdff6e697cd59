"""Observers that need what not everyone has: metrics and traces."""

from __future__ import annotations

import sys

import pytest

from canobatch import JoinConfig, JoinStrategy, Retry, TaskConfig, Workflow
from canobatch.errors import ConfigurationError, TaskError
from canobatch.observe import MetricsObserver, TracingObserver
from canobatch.testing import FakeClock, InlineBackend

ALL = JoinStrategy.all()


def flow():
    """A state that takes 2 s, a split of three of which one fails once and one fails, the end."""

    def work(ctx, item):
        if item == 2 or (item == 1 and ctx.attempt == 1):
            raise ValueError("no")

    config = TaskConfig(retry=Retry.fixed(1, 1.0))
    return (
        Workflow("w")
        .register_map("m", work, range(3), JoinConfig(JoinStrategy.quorum(2), "end"), config=config)
        .register("fail", lambda: 1 / 0)
        .add_exit_state("end")
    )


def test_metrics_are_kept():
    """Runs, states, branches and retries are counted and timed, by workflow and state."""
    client = pytest.importorskip("prometheus_client")
    registry = client.CollectorRegistry()
    observer = MetricsObserver(registry)
    workflow = flow().with_observer(observer)
    with FakeClock(), InlineBackend() as pool:
        workflow.orchestrate("m", pool=pool)
        with pytest.raises(TaskError):
            workflow.orchestrate("fail")

    def value(name, **labels):
        return registry.get_sample_value(f"canobatch_{name}", {"workflow": "w", **labels})

    assert value("runs_total", outcome="finished") == 1
    assert value("runs_total", outcome="failed") == 1
    assert value("runs_active") == 0
    assert value("run_seconds_count") == 2
    assert value("state_seconds_sum", state="'m'") == pytest.approx(1.0)
    assert value("branches_total", state="'m'", status="succeeded") == 2
    assert value("branches_running", state="'m'") == 0
    assert value("retries_total", state="'m'") == 2
    assert observer._runs == {}


def test_traces_are_made():
    """A run is a span, its states are below it, branches below their state; errors and retries are on them."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    observer = TracingObserver(provider.get_tracer("test"))
    workflow = flow().with_observer(observer)
    with FakeClock(), InlineBackend() as pool:
        workflow.orchestrate("m", pool=pool)
        with pytest.raises(TaskError):
            workflow.orchestrate("fail")
    spans = memory.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans}
    tree = [(span.name, names.get(span.parent.span_id) if span.parent else None) for span in spans]
    assert ("branch 0", "state 'm'") in tree
    assert ("state 'm'", "run w") in tree
    assert ("run w", None) in tree
    (state,) = [span for span in spans if span.name == "state 'm'"]
    assert state.end_time - state.start_time == 1_000_000_000
    (branch,) = [span for span in spans if span.name == "branch 1"]
    assert [event.name for event in branch.events] == ["retry"]
    assert branch.attributes["canobatch.status"] == "succeeded"
    failed = [span for span in spans if not span.status.is_ok and span.status.description]
    assert {span.name for span in failed} >= {"run w", "state 'fail'"}
    assert observer._spans == {}


@pytest.mark.parametrize(
    ("missing", "observer", "extra"),
    [("prometheus_client", MetricsObserver, "metrics"), ("opentelemetry", TracingObserver, "tracing")],
)
def test_without_their_library_they_say_what_to_do(missing, observer, extra, monkeypatch):
    """The lack of an extra is one clear error."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigurationError, match=rf"pip install canobatch\[{extra}\]"):
        observer()
