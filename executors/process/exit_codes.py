"""What an exit status most likely means, for the message on a run's page."""

from __future__ import annotations

import signal

# A container runtime and a shell report a signal as 128 + its number.
SIGNAL_BASE = 128

_SIGNALS = {
    signal.SIGHUP: "It was hung up: the session it belonged to ended.",
    signal.SIGINT: "It was interrupted.",
    signal.SIGILL: "It ran an instruction that this processor does not have; "
    "a binary package was probably built for another one.",
    signal.SIGABRT: "It aborted itself; a native library's last words are in its output.",
    signal.SIGBUS: "It touched memory that is not there; a mapped file may have shrunk, "
    "or shared memory is full.",
    signal.SIGFPE: "A native library divided by zero.",
    signal.SIGKILL: "It was killed. The usual cause is that the host or container ran out of "
    "memory; stopping a run that does not end by itself looks the same.",
    signal.SIGSEGV: "It crashed in native code (segmentation fault).",
    signal.SIGPIPE: "It wrote to a pipe that nobody reads any more.",
    signal.SIGTERM: "It was asked to terminate, as on cancellation or when its host shuts down.",
    signal.SIGXCPU: "It used up its CPU time limit.",
}

_CODES = {
    1: "It ended with an error; the flow may not have been loadable. See its output and the "
    "run's logs.",
    2: "Its command line was not understood.",
    125: "The container could not be created or started.",
    126: "The command was found but could not be executed; check permissions and file format.",
    127: "The command, or the interpreter its script names, was not found.",
    247: "It was killed, most likely for using more memory than it may.",
}


def explain(code: int) -> str | None:
    """One or two sentences on a non-zero exit status; None where there is nothing to add.

    ``code`` is negative for a signal, as in ``subprocess``; 128 + signal is understood too.
    """
    if code in _CODES:
        return _CODES[code]
    number = -code if code < 0 else code - SIGNAL_BASE
    return next((text for known, text in _SIGNALS.items() if known == number), None)
