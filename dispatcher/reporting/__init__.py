"""What the user is told: states, events, labels and log lines on a run's page.

May import decisions and the Prefect API. Never decides what became of a run, and never makes a
run wait: all but its states goes out in the background.
"""

from __future__ import annotations
