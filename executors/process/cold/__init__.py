"""Cold start: a job is a new program, in a session of its own.

The trampoline is that program's first step. Standard library only in the trampoline.
"""

from __future__ import annotations
