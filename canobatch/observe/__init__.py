"""What happens in a run, for whoever listens: `Workflow.with_observer`."""

from canobatch.observe.events import Event, Observer
from canobatch.observe.log import LoggingObserver
from canobatch.observe.progress import ProgressObserver, RunProgress, SplitProgress

__all__ = ["Event", "LoggingObserver", "Observer", "ProgressObserver", "RunProgress", "SplitProgress"]
