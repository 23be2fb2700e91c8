"""Which options come first and which are dropped, found without comparing all with all in turn."""

import random
from dataclasses import replace

import pytest

from tests.unit.planning.builders import POLICY, an_intent, plan_one
from trimtab.planning.objectives import Judged, Ratio, first, prune, rank

OPTION = plan_one().option


def _judged(draw, *, product):
    latency = OPTION.predicted.ttft
    figures = [replace(latency, mean_us=n, percentile_us=n) for n in draw.choices(range(6), k=3)]
    predicted = replace(
        OPTION.predicted,
        ttft=figures[0],
        tpot=figures[1],
        e2e=figures[2],
        capacity_milli_rps=draw.randrange(6),
    )
    option = replace(
        OPTION,
        config=replace(OPTION.config, product=product, threads=draw.choice([1, 2, 4])),
        replicas=draw.choice([1, 2, 4]),
        memory_bytes=draw.choice([1, 2]) * 2**53 + draw.randrange(2),
        predicted=predicted,
    )
    value = draw.choice([0.5, 0.9, 1.2, 1.21, 3.0])
    return Judged(
        option=option,
        score=draw.choice([1.0, 1.01, 1.3, 2.0]),
        resources=float(draw.randrange(6)),
        ratios=(Ratio(name="Capacity", value=value, lost="Overloaded"),),
    )


def _options(seed, count=40):
    draw = random.Random(seed)
    return [_judged(draw, product=draw.choice(["cpu", "gpu"])) for _ in range(count)]


def _beats(one, other):
    """Whether an option is as good or better in everything, as planner.md §8 drops dominated options."""
    mine, yours = (
        (
            j.resources,
            j.option.replicas * j.option.config.devices,
            j.option.replicas * j.option.memory_bytes,
            j.option.predicted.ttft.percentile_us,
            j.option.predicted.tpot.percentile_us,
            j.option.predicted.e2e.mean_us,
            -j.option.predicted.capacity_milli_rps,
            not j.meets,
        )
        for j in (one, other)
    )
    same = one.option.config.product == other.option.config.product
    return same and all(a <= b for a, b in zip(mine, yours, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_what_an_earlier_option_beats_in_everything_is_dropped(seed):
    """As comparing them one by one finds, memory to the byte; nothing is dropped for another product."""
    ranked = _options(seed)
    kept = []
    for one in ranked:
        if not any(_beats(other, one) for other in kept):
            kept.append(one)
    roomy = replace(POLICY, kept_options=len(ranked))
    assert list(map(id, prune(ranked, policy=roomy))) == list(map(id, kept))
    assert 1 < len(kept) < len(ranked)


@pytest.mark.parametrize("objective", ["MinLatency", "MinCost"])
@pytest.mark.parametrize("seed", range(3))
def test_the_first_that_fits_is_the_first_of_the_ranked_that_does(objective, seed):
    """Among those that meet the objective or, where none of them fits, among the others."""
    options, intent = _options(seed), an_intent(objective=objective)
    ranked = rank(intent, options, policy=POLICY)
    some = random.Random(seed).sample(options, 5)
    for fitting in (options, some, [one for one in options if not one.meets], []):
        held = {id(one.option) for one in fitting}
        found = first(intent, options, fits=lambda o, held=held: id(o) in held, policy=POLICY)
        assert found is next((one for one in ranked if id(one.option) in held), None)
