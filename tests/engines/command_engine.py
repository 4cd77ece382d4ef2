"""Stands in for Prefect's engine: turns into the program, or executes the code, it is given."""

from __future__ import annotations

import os
import shlex

if __name__ == "__main__":
    if "TEST_CODE" in os.environ:
        exec(os.environ["TEST_CODE"])
    else:
        argv = shlex.split(os.environ["TEST_COMMAND"])
        os.execvp(argv[0], argv)
