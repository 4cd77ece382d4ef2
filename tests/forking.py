"""Running a piece of a test in a forked child."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


def succeeds(in_the_child: Callable[[], None]) -> bool:
    """Whether the function ends without an exception in a forked child."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            in_the_child()
            code = 0
        except BaseException:  # noqa: BLE001 (shown, and then the child ends)
            traceback.print_exc()
        finally:
            # Neither pytest nor the fixtures of the parent may go on in the child.
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0
