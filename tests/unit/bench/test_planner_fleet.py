"""`planner-fleet`: scenarios, placements that stay within the fleet, and sharing where GPUs are few."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from trimtab.bench import fleet_strategies, planner_fleet, production
from trimtab.bench.fleet_scenario import Engine, scenario
from trimtab.bench.fleet_strategies import (
    BASELINES,
    columns,
    filled,
    greedy,
    planner,
    with_sharing,
)
from trimtab.bench.gpu_setups import LONGEST, setups
from trimtab.cli.app import app
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.policy import PlannerPolicy

POLICY = PlannerPolicy()
MODELS = ("llama-3.2-3b", "llama-3.1-8b")
FOUND = setups(MODELS, ["h100"], python="/none", folder=None, policy=POLICY)
KNOWN = {(s.model, s.size): s for s in FOUND.setups}


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch):
    monkeypatch.setattr(fleet_strategies, "_PLANNED_REQUESTS", 12)


def a_scenario(*, wishes=3, gpus=4, load=0.3, seed=0, requests=60):
    return scenario(seed, KNOWN, wishes=wishes, gpus=gpus, load=load, requests=requests)


def placements(drawn):
    asked = columns(drawn)
    return {
        "planner": planner(drawn, policy=POLICY),
        "with_sharing": with_sharing(drawn, asked),
        "greedy": greedy(drawn, asked),
        **{name: place(drawn) for name, place in BASELINES.items()},
    }


def test_a_scenario_is_drawn_once_for_a_seed():
    """Equal seeds give equal wishes and requests; rates are skewed and ask for the load."""
    one, two = a_scenario(), a_scenario()
    assert one.wishes == two.wishes
    assert one.arrivals(salt=1, faster=1, seconds=5) == two.arrivals(salt=1, faster=1, seconds=5)
    assert one.arrivals(salt=1, faster=1, seconds=5) != one.arrivals(salt=2, faster=1, seconds=5)
    rates = sorted(wish.rate for wish in one.wishes)
    assert rates[-1] > 3 * rates[0]
    used = sum(one.busy(w, one.sizes(w)[0]) * one.sizes(w)[0] for w in one.wishes)
    assert used == pytest.approx(0.3 * 4)


def test_models_of_an_engine_share_what_weights_leave():
    """Two have less than half of what one has alone; as many as do not fit get nothing."""
    drawn = a_scenario(wishes=8)
    names = [w.name for w in drawn.wishes if w.model == "llama-3.1-8b"]
    alone, both = drawn.kv_tokens(1, names[:1]), drawn.kv_tokens(1, names[:2])
    assert LONGEST <= both[names[0]] < alone[names[0]] / 2
    assert drawn.kv_tokens(1, names[:5]) is None


def test_every_strategy_stays_within_the_fleet_and_uses_it():
    """No more GPUs than there are, no model where it does not fit, nothing left that one engine takes."""
    drawn = a_scenario()
    for placement in placements(drawn).values():
        used = sum(engine.size for engine in placement)
        assert used == drawn.gpus
        assert all(drawn.kv_tokens(e.size, e.names) for e in placement)


def test_the_operators_planner_decides(monkeypatch):
    """`planner` is `plan_fleet` itself: what it decides is what is judged, and it gets all there is to know."""
    asked = []

    def plan(snapshot, policy):
        asked.append((snapshot, policy))
        return plan_fleet(snapshot, policy)

    monkeypatch.setattr(production, "plan_fleet", plan)
    drawn = a_scenario(gpus=16)
    placed = planner(drawn, policy=POLICY)
    ((snapshot, policy),) = asked
    assert policy == POLICY
    assert [pool.gpus for pool in snapshot.gpu_pools] == [8, 8]
    assert {i.name: i.load.requests_per_second for i in snapshot.intents} == {
        wish.name: wish.rate for wish in drawn.wishes
    }
    assert {f.key.tensor_parallel_size for f in snapshot.fingerprints} == {1, 2, 4, 8}
    options = {one.name: one.option for one in plan_fleet(snapshot, policy).intents}
    for name, option in options.items():
        engine = Engine(size=option.config.tensor_parallel_size, names=(name,))
        assert placed.count(engine) >= option.replicas


def test_few_gpus_are_shared():
    """Three models on two GPUs: sharing serves all of them, first fit and plans of today cannot."""
    drawn = a_scenario(gpus=2, load=0.2)
    found = planner_fleet.cell(drawn, load=0.2, policy=POLICY)["strategies"]
    shared = found["with_sharing"]
    assert shared["shared_engines"] >= 1
    assert shared["least_intent_percent"] > 0
    assert found["first_fit"]["least_intent_percent"] == 0
    assert shared["attained_percent"] > found["first_fit"]["attained_percent"]
    assert found["planner"]["shared_engines"] == 0


def test_what_is_left_goes_where_most_is_asked():
    """A further engine is of the busiest model, in the size that it has."""
    drawn = a_scenario()
    busiest = max(drawn.wishes, key=lambda w: drawn.busy(w, 1))
    engines = [Engine(size=1, names=(wish.name,)) for wish in drawn.wishes]
    assert filled(drawn, engines)[-1] == Engine(size=1, names=(busiest.name,))


def test_columns_name_what_misses():
    """A column's loss is a percentage of all requests, and more engines never miss more by far."""
    asked = columns(a_scenario(load=2.0))
    assert all(0 <= column.loss <= 100 for column in asked.every)
    assert max(column.loss for column in asked.every) > 1
    assert any(len(column.members) > 1 for column in asked.every)
    assert set(asked.engines) == {column.id for column in asked.every}


def test_losing_scenarios_are_listed():
    """Where a baseline attains more, the scenario is named with both figures."""
    cell = planner_fleet.cell(a_scenario(), load=0.3, policy=POLICY)
    strategies = {
        name: replace_percent(found, 50 if name == "planner" else 60)
        for name, found in cell["strategies"].items()
    }
    found = planner_fleet.summary([{**cell, "strategies": strategies}])
    assert found["strategies"]["static"]["planner_better_equal_worse"] == [0, 0, 1]
    assert len(found["losing_scenarios"]) == 5
    assert found["losing_scenarios"][0]["planner_percent"] == 50


def replace_percent(found, percent):
    return {**found, "attained_percent": percent}


def test_the_command_prints_counts_first(capsys):
    """Scenarios, requests and targets are in the document; people get a table."""
    options = ["--catalogue-python", "/none", "--shape", "3:4", "--seeds", "1", "--load", "0.3"]
    assert planner_fleet.main([*options, "--requests", "40", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scenarios"] == 1
    assert set(found["strategies"]) == {"planner", "with_sharing", "greedy", *BASELINES}
    assert found["per_scenario"][0]["requests"] > 0
    assert planner_fleet.main([*options, "--requests", "40"]) == 0
    text = capsys.readouterr().out
    assert text.index("1 scenarios") < text.index("mean_attained_percent")


def test_without_step_times_there_is_a_sentence(tmp_path, capsys):
    """An empty folder of fingerprints serves no fleet."""
    assert planner_fleet.main(["--fingerprints", str(tmp_path)]) == 1
    assert "Give another product" in capsys.readouterr().err


def test_it_is_listed():
    """`trimtab bench list` names it."""
    assert "planner-fleet" in CliRunner().invoke(app, ["bench", "list"]).stdout


def test_an_unknown_model_is_refused():
    """A fleet of which no model fits is a mistake of the caller."""
    with pytest.raises(ValueError, match="Give another product"):
        scenario(0, {("m", 1): replace(FOUND.setups[0])}, wishes=2, gpus=8, load=1, requests=10)
