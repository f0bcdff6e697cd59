"""Which module this thread is importing: a run that began there would wait for itself.

What goes to a worker is pickled by name in the run's thread, and looking a name up waits for its module's import; that
import waits for the run.
"""

from __future__ import annotations

import sys

from canobatch.errors import ConfigurationError


def refuse_while_importing(what: str) -> None:
    """Raise `ConfigurationError` if the caller is, however indirectly, the top level of a module on import.

    Args:
        what: What cannot begin now, such as "a run".
    """
    frame = sys._getframe(1)  # noqa: SLF001 - the documented name
    while frame is not None:
        if frame.f_code.co_name == "<module>" and _is_importing(frame.f_globals):
            name = frame.f_globals.get("__name__")
            raise ConfigurationError(
                f"{what} cannot begin while module {name!r} is being imported: workers import it too, and each would "
                "wait for the other; begin it in a function, or under if __name__ == '__main__':"
            )
        frame = frame.f_back  # type: ignore[assignment]


def _is_importing(names: dict[str, object]) -> bool:
    # A script and python -m have no spec, or one that was never imported.
    return bool(getattr(names.get("__spec__"), "_initializing", False))
