"""What fits beside everything that runs, and in whose place: which changes need no outage."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from trimtab.planning.capacity import Ledger, located, need_of, one_per_place
from trimtab.planning.plan import Option
from trimtab.planning.slots import Need
from trimtab.planning.snapshot import Assignment, FleetSnapshot

_ANY_MILLICORES: Final = 10**9


class Beside:
    """What the nodes have left beside everything that runs.

    On ``cpu`` a pod requests a tenth of its threads so that a roll can overlap: memory decides.
    """

    def __init__(self, snapshot: FleetSnapshot) -> None:
        pools = [replace(pool, millicores=_ANY_MILLICORES) for pool in snapshot.pools]
        self._nodes = {p.node for p in pools} | {p.node for p in snapshot.gpu_pools}
        self._ledger = Ledger(pools, snapshot.gpu_pools)
        for one in one_per_place(snapshot.assignments):
            self._ledger.hold(one.config, located(one), memory_bytes=one.memory_bytes)
        self._fits = dict[Need, bool]()

    def rooms(self, option: Option) -> int:
        """Return how many replicas of an option fit."""
        return self._ledger.slots(option)

    def fits(self, option: Option) -> bool:
        """Tell whether one replica of an option does."""
        # Hundreds of options ask for few different places.
        need = replace(need_of(option), count=1)
        if need not in self._fits:
            self._fits[need] = self._ledger.fits(replace(option, replicas=1))
        return self._fits[need]

    def swaps(self, option: Option, running: Assignment) -> bool:
        """Tell whether a replica of an option fits where one of those that run is taken away."""
        one = replace(option, replicas=1)
        for node, _ in self.places(running):
            place = ((node, 1),)
            self._ledger.let_go(running.config, place, memory_bytes=running.memory_bytes)
            found = self._ledger.fits(one)
            self._ledger.hold(running.config, place, memory_bytes=running.memory_bytes)
            if found:
                return True
        return False

    def places(self, running: Assignment) -> Sequence[tuple[str, int]]:
        """Return the replicas that have a node of the fleet, by node."""
        return [(node, count) for node, count in located(running) if node in self._nodes]

    def reaches(self, option: Option, running: Assignment) -> bool:
        """Tell whether what runs can become an option while something of it serves."""
        if option.config == running.config or self.fits(option):
            return True
        serving = sum(count for _, count in self.places(running))
        if running.ready is not None:
            serving = min(running.ready, serving)
        return serving > 1 and self.swaps(option, running)
