"""The launcher in processes of its own: run to its end, watched, signalled, on a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from tests.support.watch import NEVER, await_that

#: What a shell would call.
PROGRAM = (sys.executable, "-m", "canobatch")

#: Of tasks that say by files how far they are, so that tests need not wait by the clock.
WORK = """
import os, pathlib, time
from canobatch import JoinConfig, JoinStrategy, Retry, TaskConfig, Workflow

HERE = pathlib.Path(__file__).parent

def told(name):
    (HERE / f"{name}.told").write_text(str(os.getpid()))

def hold(name):
    told(name)
    while not (HERE / f"{name}.go").exists():
        time.sleep(0.01)
"""


class Place:
    """A directory in which the launcher is used, with a home beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home = path / "home"
        self.program: tuple[str, ...] = PROGRAM
        self.started: list[subprocess.Popen] = []
        self.screens: list[Screen] = []

    def write(self, name: str, source: str) -> None:
        """Write a target, with `told` and `hold`."""
        (self.path / name).write_text(WORK + source)

    def env(self, **more: str) -> dict[str, str]:
        """Return the environment of the launcher."""
        kept = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR"}}
        return {**kept, "CANOBATCH_HOME": str(self.home), "PYTHONPATH": os.getcwd(), "COLUMNS": "150", **more}

    def run(self, *args: object, stdin: str | None = None, timeout: float = 90.0, **env: str):
        """Run a command to its end."""
        return subprocess.run(
            [*self.program, *map(str, args)],
            cwd=self.path,
            env=self.env(**env),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *args: object, **options) -> subprocess.Popen:
        """Start a command."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(
            [*self.program, *map(str, args)], cwd=self.path, env=self.env(), text=True, **options
        )
        self.started.append(process)
        return process

    def await_told(self, name: str) -> int:
        """Wait until a task has told, and return its pid."""
        path = self.path / f"{name}.told"
        await_that(lambda: path.exists() and path.read_text(), f"{name} should be told")
        return int(path.read_text())

    def release(self, name: str) -> None:
        """Let a task that holds go on."""
        (self.path / f"{name}.go").touch()

    def close(self) -> None:
        """Kill what is left."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for screen in self.screens:
            screen.close()


class Screen:
    """A pseudo-terminal with a command on it."""

    def __init__(self, place: Place, *args: object, preexec_fn=None, **env: str) -> None:
        self._master, slave = pty.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            [*place.program, *map(str, args)],
            cwd=place.path,
            env=place.env(**{"TERM": "xterm-256color", **env}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=preexec_fn,  # noqa: PLW1509 - pytest has no thread that holds a lock then
        )
        place.started.append(self.process)
        place.screens.append(self)
        os.close(slave)

    def wait_for(self, *words: str) -> str:
        """Read until all of these words have been on the screen."""
        deadline = time.monotonic() + NEVER
        while not all(word in self.text for word in words):
            assert self.read(), f"the terminal ended without {words}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {words}:\n{self.text}"
        return self.text

    def read(self) -> bool:
        """Read what there is; returns False at the end."""
        if not select.select([self._master], [], [], NEVER)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def end(self) -> int:
        """Read to the end and return the exit code."""
        while self.read():
            pass
        return self.process.wait(NEVER)

    def close(self) -> None:
        """Take the terminal away."""
        os.close(self._master)
