"""A side in a process of its own: `RemoteSide` in the harness, `main` in the process.

One line of JSON each way: the harness asks for a repeat, the side answers with its sample or an error. The side ends
when its standard input does, hence also when the harness is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import traceback
from typing import IO, Any

from benchmarks._row import Options, Row, Sample

#: Seconds a side may take for one answer, and to end.
ANSWER_TIMEOUT = 300.0
END_TIMEOUT = 20.0


class SideError(Exception):
    """A side failed; the text says how."""


class RemoteSide:
    """The harness's end. It leads a session of its own, so that all of it can be ended."""

    def __init__(self, module: str, index: int, options: Options) -> None:
        # As an installed package has it: without cached bytecode, imports and boots would be mostly compilation.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks._remote", module, str(index), json.dumps(dataclasses.asdict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=env,
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe(self._process.stdout), selectors.EVENT_READ)
        self._unread = b""

    def wait_ready(self) -> None:
        """Wait until its pool is up.

        Raises:
            SideError: It could not prepare.
        """
        self._answer()

    def measure(self) -> Sample:
        """Have it make one repeat.

        Raises:
            SideError: The repeat failed.
        """
        stdin = self._pipe(self._process.stdin)
        try:
            stdin.write(b"measure\n")
            stdin.flush()
        except OSError as error:
            raise SideError(f"its process is gone: {error}") from error
        return {str(name): float(value) for name, value in self._answer().items()}

    def close(self) -> str | None:
        """End it, and what it left in its session; return what was wrong about its end."""
        problem = None
        self._selector.close()
        with contextlib.suppress(OSError):
            self._pipe(self._process.stdin).close()
        try:
            code = self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            problem = f"did not end within {END_TIMEOUT:.0f} s and was killed"
        else:
            problem = f"ended with exit code {code}" if code else None
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pipe(self._process.stdout).close()
        return problem

    def _answer(self) -> dict[str, Any]:
        stdout = self._pipe(self._process.stdout)
        while b"\n" not in self._unread:
            if not self._selector.select(ANSWER_TIMEOUT):
                raise SideError(f"no answer within {ANSWER_TIMEOUT:.0f} s")
            got = os.read(stdout.fileno(), 65536)
            if not got:
                raise SideError("its process ended without an answer")
            self._unread += got
        line, self._unread = self._unread.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideError(str(answer["error"]))
        return answer

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe


def main(module: str, index: str, options_text: str) -> None:
    """Be a side: prepare, then make one repeat for every line read."""
    # What the side's libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        row: Row = importlib.import_module(module).ROW
        side = row.sides[int(index)]
        with side.prepare(Options(**json.loads(options_text))) as measure:
            say({})
            while sys.stdin.readline():
                say(dict(measure()))
    except Exception as error:  # noqa: BLE001 - whatever it was, it is this side's answer
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(*sys.argv[1:])
