"""The job's side of a warm start: a forked process becomes what a new interpreter would be.

Standard library only: whatever is imported here, every job finds imported.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import importlib.util
import io
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from executors.process.cleanup import job_marks
from executors.process.cold import trampoline

# What an interpreter that cannot flush its output exits with.
EXIT_OUTPUT_LOST = 120

_WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


@dataclass(frozen=True)
class Start:
    """What a forked process is to become. ``prepared`` is a pipe that says when it is one."""

    directory: str
    cgroup: str
    environment: Mapping[str, str] = field(repr=False)
    output: int
    errors: int
    prepared: int
    server_pid: int


def become(start: Start, own_marks: job_marks.WritableMarks, engine: str) -> NoReturn:
    """Turn into the job, run the engine, and end as an interpreter does."""
    os.setsid()
    trampoline.die_with(start.server_pid)
    own_marks.write(start.environment)
    os.write(start.prepared, b"\0")
    take_descriptors(start)
    trampoline.settle(start.cgroup)
    reset_interpreter()
    os.chdir(start.directory)
    replace_environment(start.environment)
    reset_modules(engine)
    run(engine)


def take_descriptors(start: Start) -> None:
    """Keep the output alone; the input is the server's, which is empty."""
    os.dup2(start.output, 1)
    os.dup2(start.errors, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def reset_interpreter() -> None:
    """Undo what the server has set: signals, garbage collection, the buffering of its output."""
    faulty = faulthandler.is_enabled()
    faulthandler.disable()
    trampoline.reset_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # as every interpreter does
        signal.signal(ignored, signal.SIG_IGN)
    if faulty:
        faulthandler.enable()
    gc.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=os.isatty(1))


def replace_environment(environment: Mapping[str, str]) -> None:
    """Have this environment and no other."""
    # An interpreter in the C locale sets it for itself; the server has, with the same settings.
    own = {name: os.environ[name] for name in ("LC_CTYPE",) if name in os.environ}
    os.environ.clear()
    os.environ.update({**own, **environment})
    time.tzset()


def reset_modules(engine: str) -> None:
    """Forget the server's own modules and what imported ones remember of the process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "executors"]:
        del sys.modules[name]
    if not getattr(sys.flags, "safe_path", False):  # of Python 3.11
        sys.path[0] = os.getcwd()  # noqa: PTH109 - as the interpreter has it
    importlib.invalidate_caches()
    sys.argv[:] = ["-m"]
    sys.orig_argv[:] = [sys.executable, "-m", engine]
    # The standard library's generator sees to itself.
    if numpy := sys.modules.get("numpy.random"):
        numpy.seed()


def run(engine: str) -> NoReturn:
    """Do what ``python -m`` does, and end with the exit status that it would end with."""
    status = 0
    interrupted = False
    try:
        execute(engine)
    except SystemExit as error:
        status = exit_status(error.code)
    except BaseException as error:  # noqa: BLE001 - nothing is above it
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
        interrupted = isinstance(error, KeyboardInterrupt)
    status = finish() or status
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


def execute(engine: str) -> None:
    """Execute a module as the main program."""
    spec = importlib.util.find_spec(engine)
    code = getattr(spec.loader, "get_code", lambda _: None)(engine) if spec else None
    if spec is None or code is None:
        sys.exit(f"{sys.executable}: No module named {engine}")
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __file__=spec.origin,
        __cached__=spec.cached,
        __loader__=spec.loader,
        __package__=spec.parent,
        __spec__=spec,
        __builtins__=__builtins__,
    )
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    sys.argv[0] = spec.origin or ""
    exec(code, main.__dict__)  # noqa: S102 - that is what -m means


def exit_status(code: object) -> int:
    """The exit status for what ``sys.exit`` was given."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def finish() -> int:
    """Wait for threads, call exit functions, write what is not written; 0 if that went well.

    The rest of an interpreter's end would only take the server's modules apart, which copies them.
    """
    for step in (threading._shutdown, atexit._run_exitfuncs, flush_files):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException as error:  # noqa: BLE001 - the next one has its turn all the same
            sys.excepthook(type(error), error, error.__traceback__)
    status = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except (OSError, ValueError):
            status = EXIT_OUTPUT_LOST
    return status


def flush_files() -> None:
    """Write what is buffered for files that nobody has closed."""
    found = [each for each in gc.get_objects() if issubclass(type(each), _WRITERS)]
    for kind in _WRITERS:
        for file in found:
            if type(file) is not kind or file in (sys.stdout, sys.stderr):
                continue
            try:
                if not file.closed and file.writable():
                    file.flush()
            except (OSError, ValueError):
                continue
