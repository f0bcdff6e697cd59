"""What tests of the launcher share: a directory of targets, and the command line without a process of its own."""

from __future__ import annotations

import os
import sys

import pytest
from click.testing import CliRunner

from canobatch.cli.app import app


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty current directory; what is imported from it is forgotten at the end."""
    for name in list(os.environ):
        if name.startswith("CANOBATCH_") and "TEST" not in name:
            monkeypatch.delenv(name)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CANOBATCH_HOME", str(tmp_path / "home"))
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield place
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def run(workplace):
    """Run the command line in this process."""

    def invoke(*args, **options):
        return CliRunner().invoke(app, [str(arg) for arg in args], **options)

    return invoke
