"""How many replicas of a configuration are tried."""

import math
from collections.abc import Callable, Iterable
from typing import Final

from trimtab.planning.objectives import Judged
from trimtab.planning.plan import Option
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import IntentView
from trimtab.planning.workload import PlannedLoad

_MOST_STEPS: Final = 16
# A replica that is used less than this, per mille, and gains nothing will not be satisfied by more.
_IDLE: Final = 50


class Walk:
    """Replica counts of one configuration, rising until one more gains too little.

    It starts at the least count that carries the load and ends once the objective is satisfied and
    a further replica makes requests less than 2 % faster. Counts are wanted ``at_once``, so that the
    next ones of all walks are predicted together; those beyond its end are for nothing.

    Attributes:
        found: Options so far, judged.
        wanted: Counts to be predicted next; none at the end.
    """

    def __init__(
        self,
        intent: IntentView,
        *,
        load: PlannedLoad,
        judged: Callable[[Option], Judged],
        policy: PlannerPolicy,
        at_once: int = 4,
    ) -> None:
        self._least = least_replicas(intent)
        self._most = max(self._least, intent.constraints.max_replicas or policy.most_replicas)
        self._loaded = load.rate > 0
        self._judged, self._at_once = judged, at_once
        self._tie = policy.latency_tie_permille
        self._left = range(0)
        self.found: list[Judged] = []
        self.wanted = range(self._least, self._least + 1)

    def take(self, options: Iterable[Callable[[], Option]]) -> None:
        """Go on with what was wanted; options beyond the end are not called for."""
        for option in options:
            current = self._judged(option())
            last = self.found[-1] if self.found else None
            self.found.append(current)
            if last is None:
                self._left = self._ahead(current.option)
            elif self._ends(last, current):
                self._left = range(0)
                break
        few = self._at_once
        self.wanted, self._left = self._left[:few], self._left[few:]

    def _ahead(self, first: Option) -> range:
        """Return the counts beyond the least one that may be worth a look."""
        if not self._loaded:
            return range(0)
        needed = math.ceil(first.predicted.utilisation_permille * self._least / 1000)
        start = min(self._most, max(self._least + 1, needed))
        return range(max(start, self._least + 1), min(self._most, start + _MOST_STEPS) + 1)

    def _ends(self, last: Judged, current: Judged) -> bool:
        """Tell whether a step gained too little to go on."""
        before, now = last.option.predicted, current.option.predicted
        if (before.e2e.mean_us - now.e2e.mean_us) * 1000 >= self._tie * before.e2e.mean_us:
            return False
        if not now.overloaded and current.meets:
            return True
        return not before.overloaded and now.utilisation_permille < _IDLE


def least_replicas(intent: IntentView) -> int:
    """Return the fewest replicas that an intent allows."""
    return max(1, intent.constraints.min_replicas or 1)
