"""What all tests share: the leak check, the books, and scripts run in processes of their own."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import hypothesis
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from canobatch import WorkerPool

ROOT = Path(__file__).resolve().parent.parent

#: Set in this process, so in all it starts: finds what daemonised or lost its parent.
SESSION_MARK = "CANOBATCH_TEST_SESSION"
#: Set in one script and all it starts.
SCRIPT_MARK = "CANOBATCH_TEST_SCRIPT"

#: Seconds within which everything of a test must be gone.
PATIENCE = 5.0

#: Seconds within which another session's test takes away what it has in /dev/shm under a name without a pid.
STRANGERS_PATIENCE = 60.0

# A deadline per example would fail on a busy machine and say nothing about the code.
hypothesis.settings.register_profile("canobatch", deadline=None)
hypothesis.settings.load_profile("canobatch")


def pytest_configure(config: pytest.Config) -> None:
    """Mark this process, and so all it will start."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        # Not in the tree, then, but somewhere: else most of what a worker does is to compile what it imports.
        cached = os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="canobatch-tests-")
        config.add_cleanup(lambda: shutil.rmtree(cached, ignore_errors=True))
    # What runs in the background may inherit some of a terminal's signals as ignored, and so would its scripts.
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ[SESSION_MARK] = uuid.uuid4().hex


def pytest_collection_finish() -> None:
    """Let collections of garbage pass over what was imported and found: with thousands of tests each took 0.1 s."""
    gc.collect()
    gc.freeze()


#: The keeper of the pool that `shared_pool` holds open.
_keepers: set[int] = set()


def _marked(variable: str, value: str) -> dict[int, str]:
    """Return the command lines, by pid, of all other processes started with this environment variable."""
    entry = f"{variable}={value}".encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if entry in (path / "environ").read_bytes().split(b"\0") and int(path.name) != os.getpid():
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


#: A pid in a name.
_PID = re.compile(r"(?<![0-9a-z])\d+(?![0-9a-z])")

#: What is known to be of other sessions in /dev/shm.
_strangers: set[str] = set()


def _is_a_stranger_s(name: str) -> bool:
    """Return whether the name of something in /dev/shm has the pid of a process that is not of this session."""
    entry = f"{SESSION_MARK}={os.environ[SESSION_MARK]}".encode()
    for number in _PID.findall(name):
        with contextlib.suppress(OSError):
            environ = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
            if int(number) != os.getpid() and entry not in environ:
                # It may leave this behind when it ends.
                _strangers.add(name)
    return name in _strangers


def _footprint() -> dict[tuple[str, object], str]:
    """Return what this process holds, each thing with what else is to be said of it.

    The workers of a shared pool come and go: its own check, at the end of the module, sees to them.
    """
    held: dict[tuple[str, object], str] = {}
    for child in psutil.Process().children(recursive=True):
        # The environment of a zombie is empty, but its parent still holds it.
        with contextlib.suppress(psutil.NoSuchProcess):
            held["process", child.pid] = f"{child.name()} ({child.status()})"
    held.update((("process", pid), line) for pid, line in _marked(SESSION_MARK, os.environ[SESSION_MARK]).items())
    held.update((("thread", thread), thread.name) for thread in threading.enumerate())
    # Standard streams belong to pytest, which changes them at the end of a session.
    for name in set(os.listdir("/proc/self/fd")) - {"0", "1", "2"}:
        with contextlib.suppress(OSError):
            held["descriptor", f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}"] = ""
    held.update(
        (("shared memory", f"/dev/shm/{name}"), "") for name in os.listdir("/dev/shm") if not _is_a_stranger_s(name)
    )
    return {thing: more for thing, more in held.items() if not _is_of_shared_pool(*thing)} if _keepers else held


#: What a pool's descriptors are: channels, pidfds and the supervisor's own, status pages.
_KINDS_OF_A_POOL = ("socket:", "anon_inode:", "/memfd:")


def _is_of_shared_pool(kind: str, which: object) -> bool:
    """Return whether a process or descriptor is a shared pool's; what its workers started is not."""
    if kind == "descriptor":
        return str(which).partition(" -> ")[2].startswith(_KINDS_OF_A_POOL)
    if kind != "process" or which in _keepers:
        return kind == "process"
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        process = psutil.Process(which)  # type: ignore[arg-type]
        if process.ppid() in _keepers:
            # A worker leads its session, or boots in the keeper's; what a dead one left is in neither, as a rule.
            return os.getsid(process.pid) in {process.pid, process.ppid()}
    return False


def _close_default_pool() -> None:
    pool = sys.modules.get("canobatch.pool")
    if pool is not None:
        pool.close_default_pool()


def _await_nothing_beyond(before: dict[tuple[str, object], str]) -> list[str]:
    deadline = time.monotonic() + PATIENCE
    while new := {thing: more for thing, more in _footprint().items() if thing not in before}:
        late = time.monotonic() - deadline
        # Nothing says whose these are, and CI runs two sessions at a time.
        may_be_others = all(kind == "shared memory" and not _PID.search(str(which)) for kind, which in new)
        if late > (STRANGERS_PATIENCE if may_be_others else 0.0):
            return [f"{kind} {which} {more}".rstrip() for (kind, which), more in new.items()]
        # A descriptor or mapping may hang in a cycle with a traceback.
        gc.collect()
        time.sleep(0.01)
    return []


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test that leaves a process, thread, descriptor or /dev/shm entry behind; unit tests start none.

    The default pool is closed first. A fixture that holds a pool must have function scope, but for `shared_pool`.
    """
    if Path(__file__).parent / "unit" in request.node.path.parents:
        yield
        return
    before = _footprint()
    yield
    _close_default_pool()
    for record in caplog.get_records("call"):
        # Its traceback holds all that there was; what it says has been written.
        record.exc_info = None
    if left := _await_nothing_beyond(before):
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[WorkerPool]:
    """Four warm workers for all tests of a module; closed at its end, when everything of them must be gone.

    For the many small tests that leave the pool as they found it; what is about pools makes its own.
    """
    from canobatch import WorkerPool

    before = _footprint()
    children = {child.pid for child in psutil.Process().children()}
    with WorkerPool(4) as pool:
        pool.warm_up()
        _keepers.update({child.pid for child in psutil.Process().children()} - children)
        try:
            yield pool
        finally:
            _keepers.clear()
    if left := _await_nothing_beyond(before):
        pytest.fail("the tests of the module left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="session")
def books_dir() -> Path | None:
    """The directory of whole books beside the repository, or None where there is none."""
    books = ROOT.parent / "shared" / "books"
    return books if (books / "index.json").is_file() else None


class Script:
    """A Python script in a process and a session of its own. Its output goes to files: no survivor holds a pipe."""

    def __init__(self, path: Path, args: tuple[object, ...], directory: Path, env: Mapping[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        self._stdout = directory / f"{self.mark}.out"
        self._stderr = directory / f"{self.mark}.err"
        search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(path), *map(str, args)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=directory,
                env={**os.environ, "PYTHONPATH": search, **env, SCRIPT_MARK: self.mark},
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written to stderr so far."""
        return self._stderr.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = 30.0) -> str:
        """Return its output once ``text`` is in it; the script says by that how far it is."""
        deadline = time.monotonic() + timeout
        while text not in (output := self.stdout):
            ended = self.process.poll() is not None and text not in self.stdout
            assert not ended, f"the script ended without {text!r}:\n{output}\n{self.stderr}"
            assert time.monotonic() < deadline, f"no {text!r} after {timeout} s:\n{output}\n{self.stderr}"
            time.sleep(0.005)
        return output

    def survivors(self, within: float = 0.0) -> dict[int, str]:
        """Return, by pid, the command lines of what lives of it besides itself, after waiting for them to end."""
        deadline = time.monotonic() + within
        while left := {pid: line for pid, line in _marked(SCRIPT_MARK, self.mark).items() if pid != self.process.pid}:
            if time.monotonic() >= deadline:
                break
            time.sleep(0.01)
        return left

    def kill(self) -> None:
        """Kill it, its session and everything it started, until nothing is left."""
        with contextlib.suppress(ProcessLookupError):
            # Not reaped yet: the number is still its own.
            if self.process.returncode is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        while left := self.survivors():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class StartScript(Protocol):
    """Starts a script, given as a path or as source."""

    def __call__(self, source_or_path: str | Path, *args: object, env: Mapping[str, str] | None = None) -> Script: ...


class RunScript(Protocol):
    """Runs a script, given as a path or as source, to its end."""

    def __call__(
        self, source_or_path: str | Path, *args: object, timeout: float = 60.0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[StartScript]:
    """Start scripts that the test watches and kills itself; whatever is left is killed at the end."""
    started: list[Script] = []

    def start(source_or_path: str | Path, *args: object, env: Mapping[str, str] | None = None) -> Script:
        if isinstance(source_or_path, Path):
            path = source_or_path.resolve()
        else:
            path = tmp_path / f"script_{len(started)}.py"
            path.write_text(source_or_path)
        started.append(Script(path, args, tmp_path, env or {}))
        return started[-1]

    yield start
    for script in started:
        script.kill()


@pytest.fixture
def run_script(start_script: StartScript) -> RunScript:
    """Run a script to its end; fail, and kill, when it takes too long or leaves a process behind."""

    def run(
        source_or_path: str | Path, *args: object, timeout: float = 60.0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        script = start_script(source_or_path, *args, env=env)
        try:
            code = script.process.wait(timeout)
            left = script.survivors(within=PATIENCE)
        except subprocess.TimeoutExpired:
            script.kill()
            pytest.fail(f"the script ran longer than {timeout} s\n{script.stdout}\n{script.stderr}")
        finally:
            script.kill()
        assert not left, f"the script left processes behind: {left}\n{script.stdout}\n{script.stderr}"
        return subprocess.CompletedProcess(script.process.args, code, script.stdout, script.stderr)

    return run
