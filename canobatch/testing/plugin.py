"""Fixtures for pytest: ``pytest_plugins = ["canobatch.testing.plugin"]`` in the root ``conftest.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from canobatch.testing.clock import FakeClock
from canobatch.testing.inline import InlineBackend
from canobatch.testing.recording import RecordingObserver

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def inline_backend() -> Iterator[InlineBackend]:
    """A backend without processes, for ``pool=``."""
    with InlineBackend() as backend:
        yield backend


@pytest.fixture
def fake_clock() -> Iterator[FakeClock]:
    """A clock that jumps over waits; in force while the test lasts."""
    with FakeClock() as clock:
        yield clock


@pytest.fixture
def recording() -> RecordingObserver:
    """An observer that keeps every event, for `Workflow.with_observer`."""
    return RecordingObserver()
