"""Taking workers out of service without ending their runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from dispatcher import errors
from dispatcher.ledger import claims, fleet


class Drain:
    """Has some workers of the fleet take no new runs, and counts the runs they still have."""

    def __init__(self, workers: fleet.Fleet, book: claims.Ledger) -> None:
        self._fleet = workers
        self._ledger = book

    def choose(self, names: Collection[str], *, every: bool) -> list[fleet.Node]:
        """Find the live workers of these names, or every one that executes runs.

        Raises:
            errors.UnknownWorker: there is no live worker of a name.
        """
        alive = self._fleet.nodes()
        if every:
            return [node for node in alive if node.slots > 0 or node.draining]
        unknown = set(names) - {node.name for node in alive}
        if unknown:
            known = ", ".join(sorted(node.name for node in alive)) or "none"
            raise errors.UnknownWorker(
                f"No worker is called {', '.join(sorted(unknown))} (alive: {known})"
            )
        return [node for node in alive if node.name in names]

    def begin(self, nodes: Sequence[fleet.Node]) -> None:
        """Tell the workers; each heeds it at its next report, within a second."""
        for node in nodes:
            self._fleet.drain(node)

    def running(self, nodes: Sequence[fleet.Node]) -> dict[str, int]:
        """How many runs each worker still has, or will have: what is meant for it, it takes.

        A run that is held counts where it is: a worker of an earlier version takes any.
        """
        theirs = Counter(
            claim.node if claim.stage is claims.Stage.HELD else claim.meant_for
            for claim in self._ledger.open_claims()
            if claim.stage is not claims.Stage.FINISHED
        )
        return {node.name: theirs[node.name] for node in nodes}

    def heeded(self, nodes: Sequence[fleet.Node]) -> bool:
        """Whether every one of the workers takes no new runs any more, or is gone."""
        keys = {node.key for node in nodes}
        return all(node.draining for node in self._fleet.nodes() if node.key in keys)
