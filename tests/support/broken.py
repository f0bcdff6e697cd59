"""Classes that do not survive a pickle, where a worker and the test can both import them."""

from __future__ import annotations

import os


class PicklesNotError(Exception):
    """Cannot be pickled."""

    def __reduce__(self):
        raise RuntimeError("this exception does not like to travel")


class UnpicklesNotError(Exception):
    """The classic: pickles, but its constructor wants more than its args."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code


class UnpicklesNot:
    """Pickles, but does not unpickle in any process."""

    def __reduce__(self):
        return _refuse, ("this value cannot be rebuilt",)


def _refuse(message):
    raise RuntimeError(message)


class UnpicklesNotInThisProcess:
    """Pickles, and unpickles everywhere but in the process with this pid."""

    def __init__(self, pid, how="raise"):
        self.pid = pid
        self.how = how

    def __reduce__(self):
        return _refuse_in, (self.pid, self.how)


def _refuse_in(pid, how):
    if os.getpid() == pid:
        if how == "exit":
            raise SystemExit(3)
        raise RuntimeError("not here")
    return UnpicklesNotInThisProcess(pid, how)


class ExitsWhenUnpickledError(Exception):
    """Ends whoever unpickles it, if they let it."""

    def __reduce__(self):
        return exit, (7,)


class HasNoTextError(Exception):
    """Its text cannot be had."""

    def __str__(self):
        raise RuntimeError("no text")


class PicklesForever:
    """Its pickle is deeper than any stack."""

    def __reduce__(self):
        return PicklesForever, (), {"next": PicklesForever()}
