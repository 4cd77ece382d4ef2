"""What Prefect's clients trust, read once per fork server. Standard library only."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import Any

# Those whose every client, connection or check reads the whole bundle of public authorities anew.
READERS = (
    "prefect.client.orchestration",
    "prefect._internal.version_checking",
    "prefect._internal.websockets",
)


class SharedAuthorities:
    """The ``ssl`` module, but the same context for whoever trusts the same file.

    A file that has changed is read again. A context that was not asked for by a file alone belongs
    to whoever asked for it, since it is about to be changed.
    """

    def __init__(self) -> None:
        self._contexts: dict[tuple[object, ...], ssl.SSLContext] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(ssl, name)

    def create_default_context(self, *arguments: Any, **options: Any) -> ssl.SSLContext:
        """As the function of that name in ``ssl``; raises what that raises."""
        file = options.get("cafile")
        if arguments or file is None or len(options) > 1:
            return ssl.create_default_context(*arguments, **options)
        found = Path(file).stat()
        key = (str(file), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if key not in self._contexts:
            self._contexts[key] = ssl.create_default_context(cafile=file)
        return self._contexts[key]


def share() -> None:
    """Have Prefect's clients share contexts, each kind among its own, and read their file now.

    Only names in Prefect's modules are replaced: the flow's own connections are as they are.
    """
    import certifi
    from prefect.settings import PREFECT_API_SSL_CERT_FILE

    file = PREFECT_API_SSL_CERT_FILE.value() or certifi.where()
    for name in READERS:
        module: Any = sys.modules.get(name)
        if getattr(module, "ssl", None) is ssl:
            shared = SharedAuthorities()
            shared.create_default_context(cafile=file)
            module.ssl = shared
