"""``python -m canobatch`` and the command ``canobatch``: the launcher."""

from __future__ import annotations

import signal
from typing import Any


def main() -> Any:
    """Run the command line and exit."""
    # A Ctrl-C while we are being loaded ends us, without a traceback of whatever is just being imported.
    before = signal.getsignal(signal.SIGINT)
    is_ours = before is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from canobatch.cli.app import main as launch  # noqa: PLC0415 - after that

    if is_ours:
        signal.signal(signal.SIGINT, before)
    return launch()


if __name__ == "__main__":
    main()
