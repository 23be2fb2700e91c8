"""How uneven requests are planned to be: observed, believed when it is clear, spread evenly in traces."""

import random
from dataclasses import replace
from statistics import fmean, pstdev

import pytest

from tests.unit.planning.builders import POLICY
from trimtab.planning.draws import StratifiedDraws
from trimtab.planning.variation import ObservedVariation, Sample, Variation, next_variation

POISSON = Variation()


def _next(held=POISSON, *, policy=POLICY, **seen):
    found = ObservedVariation(**{name: Sample(*pair) for name, pair in seen.items()})
    return next_variation(found, held=held, policy=policy)


def test_a_clear_burst_is_believed_and_clamped():
    """Gaps of CV 12 are planned for as of 4, and lengths as they were seen."""
    assert _next(gap=(12.0, 400), output=(2.2, 20_000)) == Variation(gap=4.0, output=2.2)
    assert _next(gap=(0.0, 400), prompt=(0.0, 400)) == Variation(gap=0.5, prompt=0.1)


@pytest.mark.parametrize(
    "seen",
    [
        {},
        {"gap": (4.0, 199)},
        {"gap": (1.2, 10**9)},
        {"gap": (1.45, 200)},
        {"prompt": (0.7, 200)},
        {"gap": (float("nan"), 400)},
        {"gap": (float("inf"), 400)},
    ],
    ids=["nothing", "few", "small", "within chance", "lengths by chance", "no number", "endless"],
)
def test_what_is_not_clear_changes_nothing(seen):
    """Too few values, less than a quarter, or no more than chance explains."""
    assert _next(**seen) == POISSON


def test_the_same_figure_of_more_requests_is_clear():
    """Chance explains less of many."""
    assert _next(gap=(1.45, 5000)).gap == pytest.approx(1.4, abs=0.1)
    assert _next(prompt=(0.7, 5000)).prompt == 0.7


def test_what_is_planned_for_is_left_as_it_was_entered():
    """A burst that is over takes the figure back, half of a band does not."""
    held = Variation(gap=4.0)
    assert _next(held, gap=(3.5, 2000)) == held
    assert _next(held, gap=(9.0, 2000)) == held
    assert _next(held, gap=(1.0, 2000)) == POISSON


def _moves(cv, *, policy):
    """Return how often an hour's figures, asked for 100 times, move what is planned for."""
    draws = random.Random(5)
    gaps = [draws.gammavariate(1 / cv**2, cv**2) for _ in range(1000)]
    held, moves = Variation(gap=cv), 0
    for _ in range(100):
        gaps = [*gaps[10:], *(draws.gammavariate(1 / cv**2, cv**2) for _ in range(10))]
        found = _next(held, gap=(pstdev(gaps) / fmean(gaps), len(gaps)), policy=policy)
        moves += found != held
        held = found
    return moves


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_chance_alone_asks_for_no_plan(cv):
    """A thousand gaps of the law that is planned for stay within the band."""
    assert _moves(cv, policy=POLICY) == 0


def test_without_patience_the_same_gaps_ask_for_plans():
    """The guard is what holds it."""
    eager = replace(POLICY, load_sigma_milli=0, variation_moved_permille=1001)
    assert _moves(3.0, policy=eager) > 3


@pytest.mark.parametrize("cv", [0.5, 0.999, 1.5, 4.0])
@pytest.mark.parametrize("count", [64, 256])
def test_gaps_of_every_variation_have_the_exact_mean(cv, count):
    """However few long gaps make up most of the time, the rate is the one that was asked for."""
    shape = 1 / cv**2
    draws = StratifiedDraws(17, count=count)
    gaps = [draws.gammavariate(shape, 1 / shape) for _ in range(count)]
    assert fmean(gaps) == pytest.approx(1.0, rel=1e-9)
    assert min(gaps) >= 0
    assert pstdev(gaps) == pytest.approx(cv, rel=0.1)


def test_parts_of_a_law_are_its_quantiles_where_they_are_many():
    """Near the exponential law both ways to spread gaps agree."""
    evenly, parts = StratifiedDraws(3, count=512), StratifiedDraws(3, count=512)
    one = sorted(evenly.gammavariate(1.0, 1.0) for _ in range(512))
    other = sorted(parts.gammavariate(1.0 + 1e-9, 1.0) for _ in range(512))
    assert one[:-1] == pytest.approx(other[:-1], rel=0.05)
