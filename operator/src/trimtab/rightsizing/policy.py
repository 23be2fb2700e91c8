"""Every constant of the right-sizer's decisions, with its unit and origin, in one frozen value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SizerPolicy:
    """Constants of rightsizer.md §4 and §6; benchmarks vary them to show what each is worth."""

    # §4: head-room over the measured need; VPA and KRR take the same. Ratio, decision.
    margin: float = 1.15
    # §4: how much dearer a class too small is than one too large. Ratios, decision.
    under_cpu: float = 4.0
    under_memory: float = 8.0
    # §6.4, selection alone: what a class costs that would have missed the deadline, or been killed,
    # on top: in whole ladders. Without it a candidate that is slightly small most of the time looks
    # as bad as one that is far too small now and then. Ratio, decision.
    miss_price: float = 10.0
    # §4: feedbacks, and runs in the input's bucket, before anything but the default. Counts.
    warm_up: int = 10
    known: int = 2
    # §6.4: share of a bucket's runs whose CPU need its candidate covers. Ratio, decision.
    bucket_share: float = 0.9
    # §6.4: invocations over which undersized ones are watched, and the share that restarts. Decision.
    watched: int = 64
    drift_share: float = 0.05
    # §6.8: below this median of CPU seconds a quota of 100 ms periods does not bind. Measured.
    short_s: float = 0.1
    # §6.9: weight of what an out-of-memory kill teaches. Ratio, decision.
    oom_weight: float = 4.0
    # Hinges of the learner's basis, and which candidates there are: bucket, raised, learned. All in
    # production; fewer to show what each is worth.
    hinges: bool = True
    candidates: tuple[str, ...] = ("bucket", "raised", "learned")


DEFAULT = SizerPolicy()
