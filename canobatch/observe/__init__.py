"""What happens in a run, for whoever listens."""

from canobatch.observe.events import Event, Observer

__all__ = ["Event", "Observer"]
