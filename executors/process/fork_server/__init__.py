"""The fork server: the program that has Prefect imported and forks into jobs.

Runs alone, under the flows' interpreter: standard library, and the modules of ``cleanup`` and
``cold`` that need no more. Nothing of the dispatcher is imported here.
"""

from __future__ import annotations
