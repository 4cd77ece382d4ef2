"""Every setting of the dispatcher: what there is, where it comes from, what is wrong with it.

May import the ledger's form of a Redis URL. Never asks anything but the environment and the files
in which Prefect keeps its settings.
"""

from __future__ import annotations

from dispatcher.settings.loading import load
from dispatcher.settings.model import Settings

__all__ = ["Settings", "load"]
