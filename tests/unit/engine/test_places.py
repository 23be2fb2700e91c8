"""Where a model that joins finds room in an arena that others have cut up."""

import dataclasses
import itertools
import random
from typing import Any

import pytest

from tests.unit.engine.builders import submit
from tests.unit.engine.test_remap import DEEP, ask, check, settle, tenants
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.modelset import choose_places

SHORT = DEEP | {"num_hidden_layers": 3}
TWO_SLABS = SHORT | {"intermediate_size": 336}  # a layer is 98.7 % of two slabs of SHORT
SIX_SLABS = SHORT | {"intermediate_size": 1184, "num_hidden_layers": 1}


def _fits(slabs: frozenset[int], lengths: list[int]) -> bool:
    """Try every way to lay runs of these lengths into slabs."""
    if not lengths:
        return True
    runs = (frozenset(range(at, at + lengths[0])) for at in slabs)
    return any(_fits(slabs - run, lengths[1:]) for run in runs if run <= slabs)


def test_places_are_found_wherever_there_are_any():
    """Over random arenas a model is refused only if no way to lay its homes exists."""
    rng = random.Random(7)
    refused = 0
    for _ in range(400):
        slabs = frozenset(rng.sample(range(12), rng.randrange(4, 12)))
        costs = {slab: rng.randrange(4) for slab in slabs}
        fixed, homes, per_home = rng.choice([0, 1, 2, 3]), rng.randrange(1, 4), rng.randrange(1, 4)
        places = choose_places(costs, fixed=fixed, homes=homes, per_home=per_home)
        lengths = ([fixed] if fixed else []) + [per_home] * homes
        assert (places is not None) == _fits(slabs, lengths), (slabs, lengths)
        if places is None:
            refused += 1
            continue
        taken = places.slabs(fixed=fixed, per_home=per_home)
        assert len(taken) == len(set(taken)) == sum(lengths)
        assert slabs.issuperset(taken)
    assert 0 < refused < 400


@pytest.mark.parametrize(
    ("costs", "starts"), [([5, 0, 0, 5], [0, 2]), ([5, 0, 0, 5, 1, 1], [1, 4])]
)
def test_the_cheapest_run_is_not_taken_where_it_cuts_the_rest(costs: list[int], starts: list[int]):
    """Two homes of two slabs in four take both halves, and the cheap middle only if all still fit."""
    places = choose_places(dict(enumerate(costs)), fixed=0, homes=2, per_home=2)
    assert places is not None
    assert sorted(places.homes) == starts


def _cut_up() -> Engine:
    """Return an engine whose pool is three gaps of 3, 3 and 5 slabs."""
    engine = tenants("abcde", kv_slabs=5, hf_config=SHORT, max_model_len=64)
    _change(engine, {"a": SHORT, "c": SHORT, "e": SHORT})
    gaps = [
        list(run)
        for held, run in itertools.groupby(engine._balance.arena, key=lambda slab: slab.home)
        if held is None
    ]
    assert sorted(len(gap) for gap in gaps) == [3, 3, 5]
    return engine


def _change(engine: Engine, models: dict[str, dict[str, Any]]) -> None:
    old = engine.config.models[0]
    specs = tuple(
        dataclasses.replace(
            old,
            name=name,
            random=dataclasses.replace(old.random, seed=ord(name), hf_config=hf_config),
        )
        for name, hf_config in models.items()
    )
    config = dataclasses.replace(engine.config, models=specs, revision=engine.config.revision + 1)
    engine._post(lambda: engine._apply(config))
    for _ in range(4):
        engine.step()
        for tenant in list(engine._tenants.values()):
            if tenant.loader is not None:
                tenant.loader.join()
    engine.step()
    check(engine)


def test_a_model_whose_layers_span_slabs_joins_a_cut_up_arena():
    """Homes of two slabs find places between other models', and the newcomer answers as alone."""
    engine = _cut_up()
    running = [submit(engine, ask(n, "long", 30, max_tokens=20)) for n in "ace"]
    engine.step()
    _change(engine, {"a": SHORT, "c": SHORT, "e": SHORT, "x": TWO_SLABS})
    assert engine.tenant("x").error is None
    answer = submit(engine, ask("x", "r", 20, max_tokens=4))
    settle(engine)
    fresh = tenants("x", kv_slabs=4, hf_config=TWO_SLABS)
    expected = submit(fresh, ask("x", "r", 20, max_tokens=4))
    settle(fresh)
    assert answer.tokens == expected.tokens
    assert [len(output.tokens) for output in running] == [20] * 3


def test_a_model_that_fits_by_count_alone_is_refused_with_the_reason():
    """Where enough slabs are left but not side by side, nothing is moved and the error says so."""
    engine = _cut_up()
    warm = submit(engine, ask("a", "warm", 40, max_tokens=4))
    settle(engine)
    before = engine.state()["slabs_by_owner"]
    _change(engine, {"a": SHORT, "c": SHORT, "e": SHORT, "x": SIX_SLABS})
    error = engine.tenant("x").error
    assert error is not None
    assert error.code == "out_of_memory"
    assert "1 times 6 adjacent slabs" in error.message
    assert "lie between them" in error.message
    assert engine.state()["slabs_by_owner"] == before
    again = submit(engine, ask("a", "warm", 40, max_tokens=4))
    settle(engine)
    assert again.tokens == warm.tokens
    assert again[-1].cached_tokens > 0
