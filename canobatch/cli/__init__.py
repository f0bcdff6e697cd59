"""The launcher: ``canobatch`` on the command line, and the only door to click.

Nothing is imported before it is needed: ``--help`` loads click and this package's table of commands, no more.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from canobatch.cli.app import main
    from canobatch.cli.bridge import click_command, commands

__all__ = ["click_command", "commands", "main"]

if not TYPE_CHECKING:
    _HOME_OF = {
        "click_command": "canobatch.cli.bridge",
        "commands": "canobatch.cli.bridge",
        "main": "canobatch.cli.app",
    }

    def __getattr__(name: str) -> Any:
        if name in _HOME_OF:
            return getattr(importlib.import_module(_HOME_OF[name]), name)
        raise AttributeError(f"module 'canobatch.cli' has no attribute {name!r}")
