"""Death within a process: from some point on nothing more happens."""

from __future__ import annotations

from canobatch.errors import JournalError, WorkflowError


class Crash(BaseException):
    """What a point raises in place of the process's death."""


#: How it arrives at who waits for the run: from outside of any state, from the journal, or from a state.
DEATHS = (Crash, JournalError, WorkflowError)


class Dying:
    """From its n-th point on, nothing more happens: no call of the journal gets through."""

    def __init__(self, number=None):
        self.number = number
        self.passed = []

    @property
    def is_dead(self):
        """Whether that point was reached."""
        return self.number is not None and len(self.passed) >= self.number

    def __call__(self, name):
        """Pass a point."""
        self.passed.append(name)
        if self.is_dead:
            raise Crash(name)


class Mortal:
    """A journal, and each of its runs, whose calls do not get through any more when the process is dead.

    For journals without points of their own; letting go of a run is what the kernel does.
    """

    def __init__(self, journal, death):
        self._journal = journal
        self._death = death

    def __getattr__(self, name):
        value = getattr(self._journal, name)
        if not callable(value) or name == "close":
            return value

        def call(*arguments, **keywords):
            if self._death.is_dead:
                raise Crash(name)
            answer = value(*arguments, **keywords)
            if name == "begin":
                return Mortal(answer, self._death)
            return (Mortal(answer[0], self._death), answer[1]) if name == "take_over" else answer

        return call
