"""What happens in a run, for whoever listens: `Workflow.with_observer`."""

from canobatch.observe.events import Event, Observer
from canobatch.observe.log import LoggingObserver
from canobatch.observe.metrics import MetricsObserver
from canobatch.observe.progress import ProgressObserver, RunProgress, SplitProgress, VisitProgress
from canobatch.observe.tracing import TracingObserver

__all__ = [
    "Event",
    "LoggingObserver",
    "MetricsObserver",
    "Observer",
    "ProgressObserver",
    "RunProgress",
    "SplitProgress",
    "TracingObserver",
    "VisitProgress",
]
