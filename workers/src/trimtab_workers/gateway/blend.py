"""How fast each pod really is: the operator's scores, corrected by what is measured here. Pure.

factor = (50·f_score + n·f_live) ÷ (50 + n): n requests of the last five minutes, at most 200;
f_live is the pod's median TPOT over the median of the model's pods (joints.md, section 5). So a
pod without traffic counts by its score, a busy one by what it does, and slowness never twice.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from trimtab_workers.gateway.routes import weight_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from trimtab_workers.gateway.observed import Observed
    from trimtab_workers.gateway.routes import ModelRoute

SCORE_REQUESTS: Final = 50
REFRESH_SECONDS: Final = 5.0
_FEWEST_PODS: Final = 2


def blended(scores: Mapping[str, float], live: Mapping[str, tuple[float, int]]) -> dict[str, float]:
    """Return each pod's factor in thousandths; 1000 is the median pod.

    Args:
        scores: The operator's factor by pod uid.
        live: Median TPOT (any unit) and number of samples by pod uid. Counts only where at least
            two of the pods have one, because a pod alone says nothing about its speed.
    """
    seen = {uid: live[uid] for uid in scores if uid in live and live[uid][0] > 0}
    if len(seen) < _FEWEST_PODS:
        return dict(scores)
    typical = median(tpot for tpot, _ in seen.values())
    factors = dict(scores)
    for uid, (tpot, n) in seen.items():
        factors[uid] = (SCORE_REQUESTS * scores[uid] + n * 1000 * tpot / typical) / (
            SCORE_REQUESTS + n
        )
    return factors


class LiveWeights:
    """Weights for the picker, computed anew for each model every five seconds."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._live: dict[str, tuple[float, Mapping[str, tuple[float, int]]]] = {}

    def of(self, route: ModelRoute, uids: Collection[str], *, now: float) -> Callable[[str], int]:
        """Return the weight by pod uid; while an alarm is set the scores alone count.

        Args:
            route: The model.
            uids: The pods that serve it.
            now: Seconds since the epoch, the clock of `Observed`.
        """
        if route.alarm or len(uids) < _FEWEST_PODS:
            return route.weight
        at, live = self._live.get(route.intent_key, (float("-inf"), {}))
        if not at <= now < at + REFRESH_SECONDS:
            live = self._observed.pod_latencies(route.intent_key, now=now)
            self._live[route.intent_key] = (now, live)
        factors = blended({uid: route.factor(uid) for uid in uids}, live)
        return lambda uid: weight_of(factors[uid])

    def forget_all_but(self, intents: Collection[str]) -> None:
        """Drop what is known of intents that no longer exist."""
        for key in [key for key in self._live if key not in intents]:
            del self._live[key]
