"""Warm starts, with an engine that needs no Prefect."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import psutil
import pytest

from dispatcher.prefect_api import schemas
from executors import errors
from executors.process import ProcessExecutor, ProcessJobConfiguration
from executors.process import launch as launching
from executors.process.cold import cold_process
from executors.process.warm import warm_process as warm_start
from tests import waiting, warm

SECONDS = 20.0
FLOW_RUN = schemas.FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4())

# What a process can find out about itself.
DUMP = """
import faulthandler, gc, json, os, resource, signal, sys, threading
main = sys.modules["__main__"]
mask = os.umask(0o22)
seen = {
    "environ": dict(os.environ),
    "cwd": os.getcwd(),
    "path": sys.path,
    "argv": sys.argv,
    "orig_argv": sys.orig_argv,
    "flags": str(sys.flags),
    "descriptors": sorted(
        (int(name), os.readlink(f"/proc/self/fd/{name}"))
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    ),
    "signals": {int(n): str(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals()},
    "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "threads": [thread.name for thread in threading.enumerate()],
    "tasks": len(os.listdir("/proc/self/task")),
    "main": sorted(set(vars(main)) - {"main", "mask", "seen"}),
    "file": main.__file__,
    "spec": main.__spec__.name,
    "package": main.__package__,
    "gc": [gc.isenabled(), gc.get_threshold()],
    "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
    "umask": mask,
    "leads": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
    "buffering": [sys.stdout.line_buffering, sys.stdout.encoding, sys.stderr.errors],
    "faulthandler": faulthandler.is_enabled(),
    "marks": sorted(
        entry
        for entry in open("/proc/self/environ").read().split("\\0")
        if entry.startswith(("DISPATCHER_JOB_ID=", "PREFECT__FLOW_RUN_ID="))
    ),
}
with open(os.environ["REPORT"], "w") as report:
    json.dump(seen, report)
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[warm.Servers]:
    with warm.servers() as kept:
        yield kept


@pytest.fixture(params=["cold", "warm"])
def started_how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Run = Callable[..., int]


@pytest.fixture
def run(servers: warm.Servers, tmp_path: Path, started_how: str) -> Run:
    """Runs code as the main program of a job, and returns its exit status."""

    def run_code(code: str, **changes: Any) -> int:
        launch = new_launch(tmp_path, code, **changes)
        process = start(servers, launch) if started_how == "warm" else cold_process.start(launch)
        status = process.wait()
        process.reap()
        return status

    return run_code


def new_launch(
    directory: Path, code: str, *, stream_output: bool = True, **env: str
) -> launching.Launch:
    job_id = uuid.uuid4().hex
    marks = {"DISPATCHER_JOB_ID": job_id, "PREFECT__FLOW_RUN_ID": str(FLOW_RUN.id)}
    environment = warm.environment(
        **{"REPORT": str(directory / "report"), "TEST_CODE": textwrap.dedent(code), **marks, **env}
    )
    argv = (sys.executable, "-m", warm.ENGINE)
    return launching.Launch(job_id, argv, directory, environment, stream_output)


def start(servers: warm.Servers, launch: launching.Launch) -> warm_start.WarmProcess:
    process = servers.starts().start_warm(launch, "warm")
    assert process is not None
    return process


def configuration(code: str, **env: str) -> ProcessJobConfiguration:
    return ProcessJobConfiguration(
        command=warm.COMMAND,
        env={"PYTHONPATH": str(warm.ENGINES), "TEST_CODE": textwrap.dedent(code), **env},
    )


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(*pids: int) -> None:
    waiting.wait_for(lambda: not any(map(is_alive, pids)), seconds=SECONDS, what=f"{pids} are gone")


def numbers(report: Path, count: int) -> list[int]:
    """Wait for so many numbers in a report."""

    def read() -> list[int]:
        found = [int(line) for line in report.read_text().split()] if report.exists() else []
        return found if len(found) >= count else []

    return waiting.wait_for(read, seconds=SECONDS, what=f"{count} numbers in the report")


# The same as a new program


def test_a_warm_job_finds_what_a_cold_one_finds(servers: warm.Servers, tmp_path: Path) -> None:
    seen = {}
    launch = new_launch(tmp_path, DUMP, TZ="Asia/Tokyo", ONLY_HERE="1")
    for how in (cold_process.start, lambda each: start(servers, each)):
        process = how(launch)
        assert process.wait() == 0
        process.reap()
        seen[how is cold_process.start] = json.loads((tmp_path / "report").read_text())

    assert seen[False] == seen[True]
    assert seen[False]["marks"] == sorted(
        f"{name}={launch.environment[name]}"
        for name in ("DISPATCHER_JOB_ID", "PREFECT__FLOW_RUN_ID")
    )


def test_a_warm_job_imports_little_that_a_cold_one_does_not(
    servers: warm.Servers, tmp_path: Path
) -> None:
    code = "import os, sys; print(*sys.modules, file=open(os.environ['REPORT'], 'w'))"
    process = start(servers, new_launch(tmp_path, code))
    process.wait()
    process.reap()

    found = (tmp_path / "report").read_text().split()

    foreign = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    # What a package manager has hooked into every start of this Python is none of ours.
    assert not {"executors", "dispatcher", "psutil", "pydantic", "celery"} & foreign


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("", 0),
        ("raise SystemExit", 0),
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit(-1)", 255),
        ("import sys; sys.exit('words')", 1),
        ("exit(0)", 0),
        ("raise ValueError('x')", 1),
        ("import os; os._exit(7)", 7),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 15)", -15),
        ("raise KeyboardInterrupt", -2),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT); input()", -2),
        ("import os; os.kill(os.getpid(), 13)", 0),
        ("import os; os.abort()", -6),
        ("import sys; sys.stdout = open('/dev/full', 'w'); print('x')", 120),
    ],
)
def test_the_exit_status_is_that_of_an_interpreter(run: Run, code: str, status: int) -> None:
    assert run(code) == status


def test_output_is_streamed_with_tracebacks_and_last_words(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    run("import sys; print('out'); print('err', file=sys.stderr); 1 / 0")
    run("import sys; sys.exit('last words')")

    out, err = capfd.readouterr()
    assert out == "out\n"
    assert err.startswith("err\nTraceback")
    assert err.endswith("ZeroDivisionError: division by zero\nlast words\n")


def test_nothing_is_printed_if_it_is_not_wanted(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    run("import sys; print('out'); print('err', file=sys.stderr)", stream_output=False)

    assert capfd.readouterr() == ("", "")


def test_threads_end_exit_functions_run_and_open_files_are_written(
    run: Run, tmp_path: Path
) -> None:
    status = run(
        """
        import atexit, os, threading, time
        report = open(os.environ["REPORT"], "w")
        held = open(os.environ["REPORT"] + ".held", "wb")
        held.write(b"written")
        atexit.register(lambda: report.write(" atexit"))
        def last():
            time.sleep(0.2)
            report.write("thread")
        threading.Thread(target=last).start()
        """
    )

    assert status == 0
    assert (tmp_path / "report").read_text() == "thread atexit"
    assert (tmp_path / "report.held").read_text() == "written"


def test_no_two_jobs_draw_the_same_random_numbers(run: Run, tmp_path: Path) -> None:
    drawn = set()
    for _ in range(3):
        run(
            """
            import os, random, tempfile, uuid
            names = next(tempfile._get_candidate_names())
            print(random.random(), uuid.uuid4(), names, file=open(os.environ["REPORT"], "w"))
            """
        )
        drawn |= set((tmp_path / "report").read_text().split())

    assert len(drawn) == 9


def test_the_time_zone_is_that_of_the_jobs_environment(run: Run, tmp_path: Path) -> None:
    run("import os, time; open(os.environ['REPORT'], 'w').write(time.tzname[0])", TZ="Asia/Tokyo")

    assert (tmp_path / "report").read_text() == "JST"


def test_a_module_beside_the_job_is_found_and_its_changes_are_seen(
    run: Run, tmp_path: Path
) -> None:
    for value in ("1", "22"):
        (tmp_path / "beside.py").write_text(f"value = {value}")
        run("import beside, os; open(os.environ['REPORT'], 'w').write(str(beside.value))")

        assert (tmp_path / "report").read_text() == value


@pytest.mark.parametrize("environment", [{"A": "hunter2\0"}, {"A=B": "hunter2"}])
def test_an_impossible_environment_is_an_error_that_shows_no_value(
    run: Run, environment: dict[str, str]
) -> None:
    with pytest.raises(errors.LaunchError, match="null byte or '='") as raised:
        run("", **environment)
    assert "hunter2" not in str(raised.value)


def test_values_that_are_no_text_and_large_ones_arrive(run: Run, tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff\xfe")

    run(
        "import os; open(os.environ['REPORT'], 'wb').write(os.environb[b'ODD'] + b'%d' %"
        " len(os.environ['LARGE']))",
        ODD=odd,
        LARGE="x" * 120_000,
    )

    assert (tmp_path / "report").read_bytes() == b"\xff\xfe120000"


# How it is started


def test_an_ended_process_keeps_its_pid_until_it_is_reaped(
    servers: warm.Servers, tmp_path: Path
) -> None:
    process = start(servers, new_launch(tmp_path, ""))
    process.wait()
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert process.wait() == 0

    process.reap()

    assert not psutil.pid_exists(process.pid)


def test_the_job_is_a_child_of_the_fork_server_and_leads_a_session_at_once(
    servers: warm.Servers, tmp_path: Path
) -> None:
    process = start(servers, new_launch(tmp_path, "import time; time.sleep(60)"))

    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    assert [psutil.Process(process.pid).ppid()] == servers.ready()
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -9
    process.reap()


def test_many_jobs_start_at_once(servers: warm.Servers, tmp_path: Path) -> None:
    def one(status: int) -> int:
        process = start(servers, new_launch(tmp_path, f"exit({status})"))
        try:
            return process.wait()
        finally:
            process.reap()

    with futures.ThreadPoolExecutor(max_workers=10) as pool:
        assert list(pool.map(one, range(30))) == list(range(30))


def test_fork_servers_carry_no_mark_of_a_job(servers: warm.Servers, tmp_path: Path) -> None:
    run = start(servers, new_launch(tmp_path, ""))
    run.wait()
    run.reap()

    [pid] = servers.ready()
    assert not {"DISPATCHER_JOB_ID", "PREFECT__FLOW_RUN_ID"} & psutil.Process(pid).environ().keys()


# What is preloaded


def test_preloaded_modules_are_imported_once_and_all_others_by_each_job(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    for name in ("kept", "fresh"):
        (modules / f"{name}.py").write_text("import os\npid = os.getpid()")
    environment = warm.environment(PYTHONPATH=f"{warm.ENGINES}:{modules}")
    code = "import os, kept, fresh; print(kept.pid, fresh.pid, file=open(os.environ['REPORT'],'w'))"

    with warm.servers(environment=environment, preload=("kept",)) as servers:
        process = start(servers, new_launch(tmp_path, code, PYTHONPATH=environment["PYTHONPATH"]))
        assert process.wait() == 0
        process.reap()

        assert numbers(tmp_path / "report", 2) == [*servers.ready(), process.pid]


THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
"""


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (THREAD, "starts threads"),
        ("file = open(__file__)", "keeps open"),
        ("raise RuntimeError('as the test wants it')", "RuntimeError: as the test wants it"),
    ],
)
def test_a_module_that_cannot_be_shared_is_left_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], source: str, complaint: str
) -> None:
    (tmp_path / "spoiling.py").write_text(source)
    (tmp_path / "good.py").write_text("")
    environment = warm.environment(PYTHONPATH=f"{warm.ENGINES}:{tmp_path}")
    code = "import sys; exit(3 if 'good' in sys.modules and 'spoiling' not in sys.modules else 4)"

    with warm.servers(environment=environment, preload=("spoiling", "good")) as servers:
        process = start(servers, new_launch(tmp_path, code, PYTHONPATH=environment["PYTHONPATH"]))
        status = process.wait()
        process.reap()

    assert status == 3
    said = capfd.readouterr().err
    assert "DISPATCHER_PRELOAD: spoiling" in said
    assert complaint in said


# Who dies


# Leaves its session without starting another program, so that its environment is the job's.
ESCAPES = """
import os, signal, sys, time
def note():
    with open(os.environ["REPORT"], "a") as report:
        report.write(f"{os.getpid()}\\n")
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    note()
    time.sleep(300)
note()
time.sleep(300)
"""

POOL_CHILD = """
import json, os, sys
from pathlib import Path
from executors.process import launch, starting

given = json.loads(sys.argv[1])
job = launch.Launch(
    given["job_id"], tuple(given["argv"]), Path(given["directory"]), given["environment"]
)
starts = starting.Starts(given["environ"], given["engine"])
with starts.started(job, given["mode"], fresh_directory=True) as process:
    print(process.pid, flush=True)
    process.wait()
    process.reap()
"""


@contextlib.contextmanager
def pool_child(
    servers: warm.Servers, launch: launching.Launch, mode: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that starts a job and waits for it."""
    given = {
        "job_id": launch.job_id,
        "argv": launch.argv,
        "directory": str(launch.directory),
        "environment": launch.environment,
        "environ": {"DISPATCHER_FORK_SERVERS": str(servers.directory)},
        "engine": warm.ENGINE,
        "mode": mode,
    }
    child = subprocess.Popen([sys.executable, "-c", POOL_CHILD, json.dumps(given)])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def test_a_job_and_what_has_left_it_die_with_the_pool_child(
    servers: warm.Servers, tmp_path: Path, started_how: str
) -> None:
    with pool_child(servers, new_launch(tmp_path, ESCAPES), started_how) as child:
        pids = numbers(tmp_path / "report", 2)
        child.kill()

        wait_until_gone(*pids)

    assert len(servers.ready()) == 1


def test_a_job_dies_with_its_fork_server_and_is_restarted_cold_if_it_had_not_begun(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = """
        import os, time
        with open(os.environ["REPORT"], "a") as report:
            report.write(f"{os.getpid()}\\n")
        time.sleep(300 if len(open(os.environ["REPORT"]).read().split()) == 1 else 0)
        """
    identifiers: list[str] = []
    report = tmp_path / "report"
    with warm.servers() as servers, futures.ThreadPoolExecutor(1) as pool:
        executor = ProcessExecutor(servers.starts("auto"))
        ending = pool.submit(
            executor.run, FLOW_RUN, configuration(code, REPORT=str(report)), identifiers.append
        )
        [first] = numbers(report, 1)
        os.kill(servers.ready()[0], signal.SIGKILL)

        result = ending.result(SECONDS)
        replacement = servers.wait_until_ready(but=servers.ready()[0])

    assert result.status_code == 0
    assert [int(each.rpartition(":")[2]) for each in identifiers] == numbers(report, 2)
    assert not is_alive(first)
    assert result.identifier == identifiers[1]
    assert "started cold" in caplog.text
    assert replacement


def test_a_job_that_was_told_to_stop_is_not_restarted(tmp_path: Path) -> None:
    report = tmp_path / "report"
    code = """
        import os, signal, time
        def note(*_):
            open(os.environ["REPORT"], "a").write(f"{os.getpid()}\\n")
        signal.signal(signal.SIGTERM, note)
        note()
        while True:
            time.sleep(300)
        """
    identifiers: list[str] = []
    made = configuration(code, REPORT=str(report))
    with warm.servers() as servers, futures.ThreadPoolExecutor(2) as pool:
        executor = ProcessExecutor(servers.starts())
        ending = pool.submit(executor.run, FLOW_RUN, made, identifiers.append)
        numbers(report, 1)
        stopping = pool.submit(executor.kill_infrastructure, identifiers[0], made, 5.0)
        numbers(report, 2)
        os.kill(servers.ready()[0], signal.SIGKILL)

        assert ending.result(SECONDS).status_code == -9
        stopping.result(SECONDS)

    assert len(identifiers) == 1


WORKER = """
import os, sys, time
from pathlib import Path
from tests import warm
from executors.process.warm import fork_server_keeper

with fork_server_keeper.ForkServerKeeper(
    Path(sys.argv[1]), warm.environment(), engine=warm.ENGINE, guard_only=sys.argv[2] == "cold"
):
    time.sleep(300)
"""


def test_nothing_outlives_a_worker_that_is_killed(tmp_path: Path, started_how: str) -> None:
    directory = tmp_path / "servers"
    directory.mkdir()
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(directory), started_how],
        env={**os.environ, "PYTHONPATH": str(warm.ENGINES.parents[1])},
    )
    servers = warm.Servers(None, directory, warm.ENGINE)  # type: ignore[arg-type]
    try:
        server = servers.wait_until_ready()
        with pool_child(servers, new_launch(tmp_path, ESCAPES), started_how) as child:
            pids = numbers(tmp_path / "report", 2)
            if started_how == "cold":  # a job that is started cold dies with its pool child
                child.kill()
            worker.kill()

            wait_until_gone(*pids, server)
    finally:
        worker.kill()
        worker.wait()
    waiting.wait_for(lambda: not directory.exists(), seconds=SECONDS, what="the directory is gone")
