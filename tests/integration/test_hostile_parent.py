"""A launcher may do what it likes with its processes, signals and life: no hang, no stranger hit, nothing left."""

from __future__ import annotations

import os
import re
import signal
import time

import psutil
import pytest

from canobatch import JoinStrategy, WorkerPool
from tests.support.branches import await_marks, mark, split_of

COMMON = """
import atexit, multiprocessing, os, signal, subprocess, sys, tempfile, threading, time, warnings
from pathlib import Path
# From 3.12 on, os.fork() beside threads warns; here that is the point.
warnings.filterwarnings("ignore", message=".*multi-threaded.*", category=DeprecationWarning)
from canobatch import JoinConfig, JoinStrategy, Workflow, WorkerPool
from canobatch.errors import CanobatchError, PoolClosedError, TaskError, WorkerLostError
from tests.support.losers import Loser
from tests.support.watch import Witness

ALL = JoinStrategy.all()

def say(*words):
    print(*words, flush=True)

def squares(pool, n=200):
    join = JoinConfig(ALL, "end", into="v")
    workflow = Workflow("squares").register_map("s", lambda ctx, item: item * item, range(n), join)
    run = workflow.add_exit_state("end").start("s", pool=pool)
    assert run.wait(60) == "end"
    assert run.store.get("v") == [k * k for k in range(n)]

def kills(pool, rounds=3):
    for _ in range(rounds):
        tasks = [lambda: time.sleep(1000), lambda: time.sleep(1000), lambda: 1]
        workflow = Workflow("kills").register_split("s", tasks, JoinConfig(JoinStrategy.any(), "end"))
        assert workflow.add_exit_state("end").start("s", pool=pool).wait(60) == "end"

def deaths(pool):
    join = JoinConfig(ALL, "end", on_failure="end")
    workflow = Workflow("deaths").register_split("s", [lambda: os._exit(3), lambda: 2], join).add_exit_state("end")
    run = workflow.start("s", pool=pool)
    assert run.wait(60) == "end"
    lost, other = run.report().splits["s"]
    assert isinstance(lost.error, WorkerLostError), lost.error
    assert lost.error.exitcode == 3, lost.error
    assert other.value == 2

def hanging(ways):
    place = tempfile.mkdtemp(dir=os.getcwd())
    witness = Witness(Path(place), *ways)
    tasks = [Loser(how, how, place) for how in ways]
    return Workflow("w").register_split("s", tasks, JoinConfig(ALL, "end")).add_exit_state("end"), witness

def running(pool):
    workflow, witness = hanging(["loops_in_c", "daemonises"])
    run = workflow.start("s", pool=pool)
    witness.scene.await_runs(*witness.names)
    return run
"""

REAPERS = {
    "waitpid": """
def reap():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.001)

threading.Thread(target=reap, daemon=True).start()
""",
    "active_children": """
def reap():
    while True:
        multiprocessing.active_children()
        time.sleep(0.0005)

threading.Thread(target=reap, daemon=True).start()
""",
    "SIGCHLD handler": """
def reap(*_):
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return

signal.signal(signal.SIGCHLD, reap)
""",
    "SIGCHLD ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n",
}


def assert_clean(done, code: int = 0) -> None:
    """The script has ended as it should, and nothing was said on stderr."""
    assert (done.returncode, done.stderr) == (code, ""), done.stdout


# -- streams


@pytest.mark.parametrize("closed", ["0", "1", "2", "0, 1, 2"])
def test_a_launcher_with_closed_standard_streams_works(closed, run_script):
    """What a daemon closes matters to no worker, and no socket of ours becomes its standard output."""
    inner = COMMON + "squares(None)\nPath(sys.argv[1]).write_text('done')\n"
    source = f"""
import os, subprocess, sys, tempfile
with tempfile.NamedTemporaryFile("r") as told:
    close = lambda: [os.close(number) for number in ({closed},)]
    subprocess.run([sys.executable, "-c", {inner!r}, told.name], preexec_fn=close, check=True)
    print(told.read())
"""
    done = run_script(source)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# -- reaping


@pytest.mark.parametrize("reaper", list(REAPERS))
def test_a_launcher_that_reaps_all_children_works(reaper, run_script):
    """A launcher that takes the exit status of every child has a pool that runs, kills, loses workers and closes."""
    source = """
stranger = subprocess.Popen(["sleep", "1000"])
for _ in range(2):
    with WorkerPool(3) as pool:
        squares(pool)
        kills(pool)
        deaths(pool)
        squares(pool)
squares(None)
os.kill(stranger.pid, 0)
state = open(f"/proc/{stranger.pid}/stat").read().rpartition(")")[2].split()[0]
assert state == "S", state
stranger.kill()
stranger.wait()
say("done")
"""
    done = run_script(COMMON + REAPERS[reaper] + source)
    assert_clean(done)
    assert done.stdout == "done\n"


@pytest.mark.parametrize("reaper", list(REAPERS))
def test_a_keeper_that_was_reaped_by_others_is_replaced(reaper, run_script):
    """When the keeper is killed and somebody else reaps it, the run fails clearly and the next one works."""
    source = """
pool = WorkerPool(2)
pool.warm_up()
keeper = int(open(f"/proc/{pool.workers[0].pid}/stat").read().rpartition(")")[2].split()[1])
run = running(pool)
os.kill(keeper, signal.SIGKILL)
try:
    run.wait(60)
except WorkerLostError as error:
    assert error.pid == keeper
    say("lost")
squares(pool)
say("done")
"""
    done = run_script(COMMON + REAPERS[reaper] + source)
    assert_clean(done)
    assert done.stdout == "lost\ndone\n"


def test_a_task_may_reap_its_children(run_script):
    """``SIGCHLD`` ignored in the launcher is not ignored in a worker: a task gets its commands' exit status."""
    source = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def task():
    return subprocess.run(["sh", "-c", "exit 7"]).returncode
workflow = Workflow("w").register_split("s", [task], JoinConfig(ALL, "end", into="v")).add_exit_state("end")
with WorkerPool(1) as pool:
    run = workflow.start("s", pool=pool)
    run.wait(60)
    say(run.store.get("v"))
"""
    done = run_script(COMMON + source)
    assert_clean(done)
    assert done.stdout == "[7]\n"


# -- forking


FORKS = {
    "os.fork": """
def in_child(function):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
    # The child ends as the main program would: with atexit, and with what the interpreter tears down.
    "os.fork to the end": """
def in_child(function):
    child = os.fork()
    if child == 0:
        function()
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
""",
    "multiprocessing": """
def in_child(function):
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join()
    assert child.exitcode == 0
""",
}


@pytest.mark.parametrize("how", list(FORKS))
def test_a_forked_child_leaves_its_parents_pool_alone(how, run_script):
    """A child that was forked beside a running pool may end in any way; the pool and its run go on."""
    source = """
with WorkerPool(2) as pool:
    pool.warm_up()
    before = pool.workers
    in_child(lambda: None)
    squares(pool)
    def slow(ctx, item):
        time.sleep(0.001)
        return item
    workflow = Workflow("w").register_map("s", slow, range(300), JoinConfig(ALL, "end", into="v"))
    run = workflow.add_exit_state("end").start("s", pool=pool)
    for _ in range(5):
        in_child(lambda: None)
    assert run.wait(60) == "end"
    assert run.store.get("v") == list(range(300))
    assert [w.pid for w in pool.workers] == [w.pid for w in before]
say("done")
"""
    done = run_script(COMMON + FORKS[how] + source)
    assert_clean(done)
    assert done.stdout == "done\n"


@pytest.mark.parametrize("how", list(FORKS))
def test_a_forked_child_cannot_use_its_parents_pool(how, run_script):
    """In a forked child the parent's pool is a `PoolClosedError` that says what to do, and closing it does nothing."""
    source = """
pool = WorkerPool(1)
pool.warm_up()

def use():
    for action in (lambda: squares(pool), pool.warm_up):
        try:
            action()
        except PoolClosedError as error:
            say(error)
        else:
            say("no error")
    assert pool.workers == ()
    pool.close()
    repr(pool)

in_child(use)
squares(pool)
pool.close()
say("done")
"""
    done = run_script(COMMON + FORKS[how] + source)
    assert_clean(done)
    first, second, last = done.stdout.splitlines()
    assert first == second
    assert "make another after os.fork()" in first
    assert last == "done"


@pytest.mark.parametrize("how", list(FORKS))
def test_a_forked_child_does_not_wait_for_its_parents_run(how, run_script):
    """It would wait for ever: the run's thread is not in it. The parent's run goes on."""
    source = """
place = tempfile.mkdtemp(dir=os.getcwd())
def branch(ctx, item):
    while not os.path.exists(place + "/go"):
        time.sleep(0.001)

run = Workflow("w").register_map("s", branch, [1], JoinConfig(ALL, "end")).add_exit_state("end").start("s")

def wait():
    try:
        run.wait()
    except CanobatchError as error:
        say(str(error).replace(run.id, "R"))

in_child(wait)
Path(place, "go").touch()
say(run.wait(60))
"""
    done = run_script(COMMON + FORKS[how] + source)
    assert_clean(done)
    assert done.stdout == "run R goes on in the process that began it; wait for it there\nend\n"


@pytest.mark.parametrize("how", list(FORKS))
def test_a_forked_child_can_have_a_pool_of_its_own(how, run_script):
    """A forked child makes a pool, or uses the default one, and nothing of it outlives the child."""
    source = """
squares(None)
pool = WorkerPool(1)
squares(pool)

def own():
    with WorkerPool(3) as mine:
        squares(mine)
        kills(mine, 1)
    squares(None)
    say("child done")

in_child(own)
squares(pool)
squares(None)
say("done")
"""
    done = run_script(COMMON + FORKS[how] + source)
    assert_clean(done)
    assert done.stdout == "child done\ndone\n"


def test_forks_at_any_moment_do_no_harm(run_script):
    """Forks while other threads start pools, run and close them: each child ends, each run is right."""
    source = (
        FORKS["os.fork"]
        + """
errors = []
def work():
    try:
        for _ in range(3):
            with WorkerPool(3) as pool:
                squares(pool, 2000)
                kills(pool, 1)
    except BaseException as error:
        errors.append(error)
        raise

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
forks = 0
while any(thread.is_alive() for thread in threads):
    in_child(lambda: None)
    forks += 1
    time.sleep(0.01)
assert not errors and forks
say("done")
"""
    )
    done = run_script(COMMON + source)
    assert_clean(done)
    assert done.stdout == "done\n"


# -- exiting


EXITS = {
    "end": ("", 0),
    "sys.exit": ("sys.exit(5)", 5),
    "os._exit": ("os._exit(6)", 6),
    "exception": ("raise ValueError('the end')", 1),
    "exit in atexit": ("atexit.register(lambda: sys.stdout.write('bye'))", 0),
    "daemon threads": ("[threading.Thread(target=time.sleep, args=(1000,), daemon=True).start() for _ in range(5)]", 0),
}


@pytest.mark.parametrize("what", ["idle", "unused", "running", "default", "starting", "with"])
@pytest.mark.parametrize("how", list(EXITS))
def test_a_launcher_may_exit_with_a_pool(how, what, run_script):
    """A launcher that ends, in whatever way, with a pool in whatever state, ends at once and leaves nothing."""
    statement, code = EXITS[how]
    states = {
        "idle": "pool = WorkerPool(2)\npool.warm_up()\n",
        "unused": "pool = WorkerPool(2)\n",
        "running": "pool = WorkerPool(2)\nrun = running(pool)\n",
        "default": "squares(None)\n",
        "starting": "pool = WorkerPool(2)\nthreading.Thread(target=squares, args=(pool,), daemon=True).start()\n",
        "with": "pool = WorkerPool(2).__enter__()\nsquares(pool)\n",
    }
    done = run_script(COMMON + states[what] + statement, timeout=40.0)
    assert done.returncode == code, done.stderr
    if what == "starting":
        return  # the thread may say that its pool was closed
    if how == "exception":
        assert done.stderr.count("Traceback") == 1
        assert done.stderr.endswith("ValueError: the end\n")
    else:
        assert done.stderr == ""


def test_a_launcher_may_exit_in_a_pools_with_block(run_script):
    """An exception that leaves the ``with`` block of a pool ends the run in it, and is the one that is seen."""
    done = run_script(COMMON + "with WorkerPool(2) as pool:\n    running(pool)\n    raise ValueError('the end')\n")
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: the end\n")
    assert done.stderr.count("Traceback") == 1


def test_a_launcher_may_exit_while_results_arrive(run_script):
    """A launcher that ends while many outcomes are on their way ends without a word."""
    source = """
pool = WorkerPool(2)
pool.warm_up()
items = iter(range(10**9))
join = JoinConfig(ALL, "end", into="v", reduce=(lambda a, b: a + b, 0))
workflow = Workflow("w").register_map("s", lambda ctx, item: ctx.progress(1) or item, items, join).add_exit_state("end")
run = workflow.start("s", pool=pool)
while next(items) < 1000:
    time.sleep(0.001)
"""
    for _ in range(4):
        assert_clean(run_script(COMMON + source))


@pytest.mark.parametrize("how", ["sys.exit()", "os._exit(0)"])
def test_a_launcher_may_exit_at_any_moment_of_start_up(how, run_script):
    """A launcher that ends while its pool starts, at any moment of that, leaves nothing and does not hang."""
    source = """
pool = WorkerPool(3)
join = JoinConfig(ALL, "end")
workflow = Workflow("w").register_split("s", [lambda: time.sleep(1000)] * 3, join).add_exit_state("end")
run = workflow.start("s", pool=pool)
time.sleep(float(sys.argv[1]))
"""
    for step in range(8):
        assert_clean(run_script(COMMON + source + how, step * 0.04))


def test_a_task_that_exits_the_launcher_is_only_a_failed_task(run_script):
    """``sys.exit`` in a task that runs in the parent is a failed attempt of that task."""
    source = """
try:
    Workflow("w").register("s", lambda: sys.exit(4)).add_exit_state("end").orchestrate("s")
except TaskError as error:
    say(repr(error.__cause__))
"""
    done = run_script(COMMON + source)
    assert_clean(done)
    assert done.stdout == "SystemExit(4)\n"


PLACES = {
    "a deleted directory": "place = tempfile.mkdtemp()\nos.chdir(place)\nos.rmdir(place)\nsys.path.insert(0, '')",
    "no standard input": "os.close(0)",
    "no standard output": "os.close(1)",
    "no standard error": "os.close(2)",
    "no standard streams": "os.closerange(0, 3)",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_launcher_may_be_in_a_poor_place(place, run_script, tmp_path):
    """Without a working directory or standard streams runs end as ever, and what tasks print meets no socket."""
    source = f"""
{PLACES[place]}
def loud(ctx, item):
    os.write(1, b"out" * 1000)
    os.write(2, b"err" * 1000)
    return os.getcwd()

join = JoinConfig(ALL, "end", into="v")
run = Workflow("w").register_map("s", loud, range(3), join).add_exit_state("end").start("s")
run.wait(60)
Path({str(tmp_path)!r}, "found").write_text(str(len(run.store.get("v"))))
"""
    run_script(COMMON + source)
    assert (tmp_path / "found").read_text() == "3"


def test_code_that_exits_the_launcher_outside_of_a_task_fails_the_run(run_script):
    """Items, a fold or an update that call ``sys.exit`` fail the run in their state; the script goes on."""
    source = """
def items():
    yield 1
    sys.exit(4)

def flow(items, fold=None):
    join = JoinConfig(ALL, "end", into="v", reduce=fold and (fold, 0))
    return Workflow("w").register_map("s", lambda ctx, item: item, items, join)

flows = [
    flow(items),
    flow(lambda ctx: sys.exit(4)),
    flow([1], lambda folded, value: sys.exit(4)),
    Workflow("w").register("s", lambda ctx: ctx.store.update("k", lambda old: sys.exit(4), 0) or "end"),
]
for each in flows:
    try:
        each.add_exit_state("end").orchestrate("s")
    except CanobatchError as error:
        say("'s'" in str(error), "SystemExit: 4" in str(error))
"""
    done = run_script(COMMON + source)
    assert_clean(done)
    assert done.stdout == "True True\n" * 4


# -- Ctrl-C


@pytest.fixture
def interruptible():
    """Let scripts have the usual SIGINT, also where the tests themselves were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


#: The environment of a script that says at SIGABRT where it hangs.
TELLING = {"PYTHONFAULTHANDLER": "1"}

#: Python drops an interrupt that hits a callback of its import system. Who pressed Ctrl-C presses it again.
DROPPED = re.compile(
    r'Exception ignored .*\nTraceback.*\n  File "<frozen importlib._bootstrap>".*\n(?:    .*\n)*KeyboardInterrupt.*\n'
)

#: How a story of an interrupt ends. From 3.12 on, one that hits the body of an enum has a note.
ENDED = re.compile(r"^KeyboardInterrupt(\nError calling __set_name__ on .*)?\n\Z", re.MULTILINE)


def interrupt(script, timeout: float = 20.0) -> None:
    """Press Ctrl-C: the whole foreground group gets SIGINT."""
    deadline, pressed = time.monotonic() + timeout, 0
    while script.process.poll() is None:
        if pressed == len(DROPPED.findall(script.stderr)):
            os.killpg(script.process.pid, signal.SIGINT)
            pressed += 1
        if time.monotonic() > deadline:
            # With `TELLING` it says where its threads are.
            script.process.send_signal(signal.SIGABRT)
            script.process.wait()
            pytest.fail(f"Ctrl-C did not end the script:\n{script.stdout}\n{script.stderr}")
        time.sleep(0.005)


def assert_interrupted(script) -> None:
    """The script ended by its KeyboardInterrupt, said so once, and left nothing."""
    told = DROPPED.sub("", script.stderr)
    # Python forgets that it was an interrupt, and exits with 1, when another thread happens to exec() a string
    # (dataclasses and namedtuples do, while modules are imported).
    assert script.process.returncode in (-signal.SIGINT, 1), told
    assert script.survivors(within=3.0) == {}
    assert ENDED.search(told), told
    # A chain of interrupts is one story; that of a worker or keeper would be another.
    stories = told.count("Traceback (most recent call last)")
    links = told.count("During handling of the above exception, another exception occurred")
    assert stories == 1 + links, told
    assert "Exception ignored" not in told
    for ours in ("popen_loky_posix", "resource_tracker", "keeper.main", "Worker(sock"):
        assert ours not in told, told


HANGING = """
print("begin", flush=True)
import time
from canobatch import JoinConfig, JoinStrategy, Workflow, WorkerPool
workflow = Workflow("w").register_split("s", [lambda: time.sleep(1000)] * 4, JoinConfig(JoinStrategy.all(), "end"))
workflow.add_exit_state("end")
"""

STARTS = {
    "default pool": "workflow.orchestrate('s')",
    "own pool": "with WorkerPool(4) as pool:\n    workflow.orchestrate('s', pool=pool)",
    "warm up": "with WorkerPool(4) as pool:\n    pool.warm_up()\n    workflow.orchestrate('s', pool=pool)",
}


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", list(STARTS))
def test_ctrl_c_at_any_moment_of_start_up(how, start_script):
    """Ctrl-C at any moment from a script's first line to its running split ends it with KeyboardInterrupt alone."""
    for step in range(20):
        script = start_script(HANGING + STARTS[how], env=TELLING)
        script.wait_for("begin")
        time.sleep(step * 0.025)  # the moment, not a wait
        interrupt(script)
        assert_interrupted(script)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_before_the_script_begins(start_script):
    """Ctrl-C before Python runs the script's first line ends it too."""
    for step in range(5):
        script = start_script(HANGING + STARTS["default pool"], env=TELLING)
        time.sleep(step * 0.004)  # the moment, not a wait
        interrupt(script)
        assert script.process.returncode != 0
        assert script.survivors(within=3.0) == {}


RUNNING = (
    COMMON
    + """
def hang(*ways):
    workflow, witness = hanging(ways or ["loops_in_c", "daemonises"])
    threading.Thread(target=tell, args=(witness,), daemon=True).start()
    return workflow

def tell(witness):
    witness.scene.await_runs(*witness.names)
    say("running")

"""
)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    "statement",
    [
        "hang('daemonises').orchestrate('s')",
        "with WorkerPool(3) as pool: hang().orchestrate('s', pool=pool)",
        "pool = WorkerPool(3); hang().start('s', pool=pool).wait()",
        "pool = WorkerPool(3); hang().start('s', pool=pool); time.sleep(1000)",
    ],
    ids=["default pool", "own pool", "wait", "background"],
)
def test_ctrl_c_during_a_split(statement, start_script):
    """Ctrl-C while branches run ends the script with KeyboardInterrupt, and kills whatever they had started."""
    script = start_script(RUNNING + statement)
    script.wait_for("running")
    interrupt(script)
    assert_interrupted(script)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_can_be_caught_and_the_pool_used_again(start_script):
    """After a caught KeyboardInterrupt the run is cancelled, its processes are dead, and the pool works."""
    source = """
with WorkerPool(3) as pool:
    try:
        hang().orchestrate("s", pool=pool)
    except KeyboardInterrupt:
        assert not any(worker.busy for worker in pool.workers)
        squares(pool)
        say("done")
"""
    script = start_script(RUNNING + source)
    script.wait_for("running")
    interrupt(script)
    assert (script.process.returncode, script.stderr) == (0, "")
    assert script.stdout == "running\ndone\n"
    assert script.survivors(within=3.0) == {}


HANDLERS = {
    "exit": ("sys.exit(143)", 143, ["undone"]),
    "alarm": ("(_ for _ in ()).throw(TimeoutError('too long'))", 0, ["TimeoutError too long", "undone"]),
}


@pytest.mark.parametrize("how", HANDLERS)
def test_what_a_signal_handler_raises_cancels_the_run(how, start_script):
    """A ``sys.exit`` waits for the roll-back; another error comes at once, and the run is rolled back all the same."""
    raises, code, said = HANDLERS[how]
    source = f"""
from canobatch.models import CompensatableTask

class Deed(CompensatableTask):
    def run(self):
        return "s", 1
    def compensate(self, ctx, output):
        say("undone")

class Ended:
    def __init__(self):
        self.event = threading.Event()
    def on_event(self, event):
        if event.kind == "run_cancelled":
            self.event.set()

ended = Ended()
signal.signal(signal.SIGUSR1, lambda *_: {raises})
workflow = hang().register("deed", Deed()).with_observer(ended)
try:
    workflow.orchestrate("deed")
except TimeoutError as error:
    say("TimeoutError", error)
    assert ended.event.wait(60)
"""
    script = start_script(RUNNING + source)
    script.wait_for("running")
    os.kill(script.process.pid, signal.SIGUSR1)
    assert script.process.wait(60) == code
    assert script.survivors(within=3.0) == {}
    assert set(script.stdout.splitlines()) == {"running", *said}, script.stderr


@pytest.mark.usefixtures("interruptible")
def test_the_first_ctrl_c_waits_for_a_task_in_the_parent_and_the_second_does_not(start_script):
    """A task in the parent cannot be killed: the first Ctrl-C asks it to end, by ``ctx.cancelled``."""
    source = """
def patient(ctx):
    say("running")
    while not ctx.cancelled:
        time.sleep(0.001)
    say("cancelled")
    return "end"

def stubborn(ctx):
    say("running")
    while not ctx.cancelled:
        time.sleep(0.001)
    say("cancelled")
    time.sleep(1000)

Workflow("w").register("s", eval(sys.argv[1])).add_exit_state("end").orchestrate("s")
"""
    script = start_script(COMMON + source, "patient")
    script.wait_for("running")
    interrupt(script)
    assert script.stdout == "running\ncancelled\n"
    assert_interrupted(script)

    script = start_script(COMMON + source, "stubborn")
    script.wait_for("running")
    os.killpg(script.process.pid, signal.SIGINT)
    script.wait_for("cancelled")
    assert script.process.poll() is None
    interrupt(script)
    assert_interrupted(script)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_at_any_moment_of_kills_and_closes(start_script):
    """Ctrl-C while a script makes pools, kills losers and closes again ends it, at whatever moment."""
    source = """
say("begin")
while True:
    with WorkerPool(3) as pool:
        squares(pool)
        kills(pool, 2)
"""
    for step in range(12):
        script = start_script(COMMON + source)
        script.wait_for("begin")
        time.sleep(0.3 + step * 0.05)  # the moment, not a wait
        interrupt(script)
        assert script.process.returncode in (-signal.SIGINT, 1), script.stderr
        assert script.survivors(within=3.0) == {}
        assert ENDED.search(DROPPED.sub("", script.stderr)), script.stderr


@pytest.mark.usefixtures("interruptible")
def test_many_ctrl_c_in_a_row_end_the_script_all_the_same(start_script):
    """Someone who leans on Ctrl-C gets rid of the script, and of everything it had started."""
    for _ in range(3):
        script = start_script(RUNNING + "with WorkerPool(3) as pool: hang().orchestrate('s', pool=pool)")
        script.wait_for("running")
        deadline = time.monotonic() + 20
        while script.process.poll() is None:
            os.killpg(script.process.pid, signal.SIGINT)
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert script.process.returncode != 0
        assert script.survivors(within=3.0) == {}


TERMINAL = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP)


@pytest.mark.usefixtures("interruptible")
def test_a_worker_does_not_hear_the_terminal(start_script):
    """A signal to the foreground group of a terminal, which the launcher catches, disturbs neither keeper nor task."""
    source = """
def task():
    for _ in range(400):
        time.sleep(0.001)
    return 1

NUMBERS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP)
for number in NUMBERS:
    signal.signal(number, lambda *_: None)
with WorkerPool(2) as pool:
    workflow = Workflow("w").register_split("s", [task] * 4, JoinConfig(ALL, "end", into="v")).add_exit_state("end")
    run = workflow.start("s", pool=pool)
    say("running")
    while True:
        try:
            run.wait(0.01)
            break
        except TimeoutError:
            pass
# An interpreter that ends takes its handlers back.
for number in NUMBERS:
    signal.signal(number, signal.SIG_IGN)
say(run.store.get("v"))
"""
    script = start_script(COMMON + source)
    script.wait_for("running")
    while script.process.poll() is None:
        for number in TERMINAL:
            if script.process.poll() is None:
                os.killpg(script.process.pid, number)
        time.sleep(0.005)
    assert script.process.returncode == 0, (script.stdout, script.stderr)
    assert script.stdout == "running\n[1, 1, 1, 1]\n"
    assert script.stderr == ""


def test_what_a_service_manager_sends_to_every_process_disturbs_no_task(tmp_path):
    """Only the launcher decides what a signal to the whole service means: keeper and workers live on."""

    def task(ctx):
        mark(tmp_path, f"runs-{ctx.branch}")
        await_marks(tmp_path, "go")
        return 1

    with WorkerPool(2) as pool:
        pool.warm_up()
        before = pool.workers
        run = split_of([task] * 2, JoinStrategy.all(), into="v").start("split", pool=pool)
        await_marks(tmp_path, "runs-0", "runs-1")
        (keeper,) = {psutil.Process(worker.pid).parent() for worker in before}
        for process in (keeper, *keeper.children(recursive=True)):
            for number in TERMINAL:
                process.send_signal(number)
        mark(tmp_path, "go")
        assert run.wait(60) == "joined"
        assert run.store.get("v") == [1, 1]
        assert [worker.pid for worker in pool.workers] == [worker.pid for worker in before]
