"""What a fork server prepares of Prefect itself, so that no run has to.

The only place that touches names which Prefect keeps to itself; whatever of them another version
does not have is left out, and that run is slower, never wrong.
"""

from __future__ import annotations
