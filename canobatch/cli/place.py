"""Where the home is: as it was typed, else where the platform keeps the state of programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

#: Under which name a context and those below it keep what was typed.
HOME = "canobatch.home"


def home_of(ctx: click.Context) -> Path:
    """Return the home of this invocation; it need not exist."""
    if HOME in ctx.meta:
        return Path(ctx.meta[HOME]).absolute()
    import platformdirs  # noqa: PLC0415 - not when it is given

    return platformdirs.user_state_path("canobatch")
