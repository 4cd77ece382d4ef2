"""Warm start, seen from the worker: its fork servers, and jobs that are forks of them.

Keeps fork servers, asks them for jobs; what happens inside one is in ``fork_server``.
"""

from __future__ import annotations
