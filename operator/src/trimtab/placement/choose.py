"""How slow a group of GPUs is, from scores of its members (placement.md §3).

Scores are per mille of the median GPU of the same product: 1000 is the median, more is slower.
"""

import math
from collections.abc import Sequence


def group_factor(scores: Sequence[int]) -> int:
    """Return how much slower a tensor-parallel group runs than the median GPU, per mille.

    A group waits for its slowest member at every all-reduce, so this is the largest score, not
    their mean (Sinha et al., SC'22, arXiv 2208.11035).

    Raises:
        ValueError: There are no scores.
    """
    if not scores:
        raise ValueError(
            "A group without scores has no factor: give one score per GPU, 1000 for an unscored one."
        )
    return max(scores)


def expected_max(scores: Sequence[int], k: int) -> float:
    """Return the mean `group_factor` of ``k`` GPUs of these taken at random, per mille.

    E[max of k of m] = Σᵢ s₍ᵢ₎·C(i-1, k-1)/C(m, k) over ascending scores (placement.md §3): what a
    group is worth before its devices are chosen.

    Raises:
        ValueError: ``k`` is not between 1 and the number of scores.
    """
    count = len(scores)
    if not 1 <= k <= count:
        raise ValueError(
            f"The largest of k = {k} among {count} scores is not defined: k must be between 1 and "
            f"{count}."
        )
    ways = math.comb(count, k)
    ascending = sorted(scores)
    # Few of the terms are large numbers; the ratio of integers is exact until the last step.
    total = sum(s * math.comb(i, k - 1) for i, s in enumerate(ascending) if i >= k - 1)
    return total / ways
