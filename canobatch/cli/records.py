"""Log records on the terminal: a line each, above what is live there."""

from __future__ import annotations

import logging

import click

from canobatch.cli.command import is_verbose


class _Lines(logging.Handler):
    """Writes to whatever standard error is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            click.echo(self.format(record), err=True)
        except Exception:  # noqa: BLE001 - as handlers do
            self.handleError(record)


class _Short(logging.Formatter):
    """Without tracebacks: they are for ``-v``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        error = record.exc_info[1] if record.exc_info else None
        return line if error is None else f"{line}: {error}"


def show_records() -> None:
    """Show warnings and errors, with ``-v`` the rest and tracebacks; a target that sets up logging has its own."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = _Lines()
    if is_verbose():
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root.setLevel(logging.INFO)
    else:
        handler.setFormatter(_Short())
    root.addHandler(handler)
