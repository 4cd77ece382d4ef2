"""What memory the processes of a job use together, and the limit that they are held to.

Knows processes and control groups; never asks the engine anything, nor how a job was started.
"""

from __future__ import annotations
