"""The simulation's prices, situations and judgements, without an engine."""

from dataclasses import replace

import pytest

from tests.unit.planning.remap_builders import LLAMA_7B, LLAMA_8B
from trimtab.planning.remap import Traffic, step_floor
from trimtab_workers.engine.bench.arrivals import Load, alternating
from trimtab_workers.engine.bench.figures import Figures
from trimtab_workers.engine.bench.predictions import PREDICTIONS, check, judge
from trimtab_workers.engine.bench.sim_cost import (
    H100,
    LLAMA_2_7B,
    LLAMA_3_8B,
    VIDUR_LLAMA_2_7B,
    StepCost,
    at_tokens,
    model_shape,
)
from trimtab_workers.engine.bench.sim_scenarios import SCENARIOS, curve_point

GB = 10**9
FIGURES = Figures(
    requests=10,
    failed=0,
    output_tokens=100,
    seconds=10.0,
    tokens_per_second=10.0,
    goodput=1.0,
    ttft_p50=0.1,
    ttft_p99=1.0,
    tbt_p50=0.01,
    tbt_p99=0.1,
)


@pytest.mark.parametrize(("config", "shape"), [(LLAMA_3_8B, LLAMA_8B), (LLAMA_2_7B, LLAMA_7B)])
def test_shapes_are_the_planner_s(config, shape):
    """A configuration's layer and KV bytes are those that the planner's tables are computed from."""
    found = model_shape(config)
    assert (found.layer_bytes, found.kv_bytes_per_token) == (
        shape.layer_bytes,
        shape.kv_bytes_per_token,
    )
    assert found.fixed_bytes == pytest.approx(shape.fixed_bytes, rel=0.002)


def test_roofline_is_the_planner_s_floor():
    """Decoding costs what the planner's floor says, so a simulation contradicts only decisions."""
    cost = StepCost(shape=LLAMA_8B, hw=H100)
    traffic = Traffic(
        sequence_tokens=1000, prefill_tokens_per_step=0, switch_interval_s=None, step_s=None
    )
    floor = step_floor(LLAMA_8B, H100, traffic, kv_bytes=8 * GB)
    assert cost.compute_seconds(tokens=61, kv_bytes=8 * GB) == pytest.approx(floor)


def test_vidur_table():
    """Operators cost what was measured at each number of tokens, linear in between and beyond."""
    for tokens, seconds in VIDUR_LLAMA_2_7B:
        assert at_tokens(VIDUR_LLAMA_2_7B, tokens) == pytest.approx(seconds)
    assert at_tokens(VIDUR_LLAMA_2_7B, 640) == pytest.approx(0.491e-3)
    assert at_tokens(VIDUR_LLAMA_2_7B, 3072) == pytest.approx(1.953e-3)
    cost = StepCost(shape=LLAMA_7B, hw=H100, linear=VIDUR_LLAMA_2_7B)
    outside = LLAMA_7B.read_outside_bytes / H100.memory_rate
    assert cost.compute_seconds(tokens=1, kv_bytes=0) == pytest.approx(32 * 0.177e-3 + outside)


def test_judgement():
    """All within five percent is a tie; better and worse at once is neither win nor loss."""
    assert judge({"tokens_per_second": 1.04, "ttft_p99": 0.97, "tbt_p99": None}) == "tie"
    assert judge({"tokens_per_second": 1.0, "ttft_p99": 0.5, "tbt_p99": 1.0}) == "win"
    assert judge({"tokens_per_second": 0.9, "ttft_p99": 1.0, "tbt_p99": 1.0}) == "lose"
    assert judge({"tokens_per_second": 1.2, "ttft_p99": 1.0, "tbt_p99": 2.0}) == "mixed"
    assert judge({"tbt_p99": 0.0}) == "win"


def test_predictions_are_checked_where_both_sides_ran():
    """A result outside of what was registered does not hold; what was not run is not judged."""
    better = replace(FIGURES, ttft_p99=0.2, tokens_per_second=15.0)
    rows = check(
        {
            "temporal": {"remap": better, "recompute": FIGURES},
            "large-kv-share": {"remap": better, "recompute": FIGURES, "swap": better},
        }
    )
    assert [(row["scenario"], row["against"], row["verdict"], row["holds"]) for row in rows] == [
        ("temporal", "recompute", "win", True),
        ("large-kv-share", "recompute", "win", False),
        ("large-kv-share", "swap", "tie", True),
    ]


def test_every_prediction_has_its_situation():
    """Each registered row names a situation that runs both of its policies."""
    for prediction in PREDICTIONS:
        policies = SCENARIOS[prediction.scenario].policies
        assert {prediction.subject, prediction.against} <= set(policies)
    shape = model_shape(LLAMA_3_8B)
    temporal = SCENARIOS["temporal"]
    left = temporal.memory_bytes - 3 * shape.weight_bytes
    assert left / temporal.memory_bytes < 0.15


def test_alternating_models_take_turns():
    """Requests go to one model for a burst's time, then to the next."""
    load = Load(
        lengths="azure-code",
        divisor=1,
        longest=4096,
        seconds=60,
        burst_seconds=0.5,
        pause_seconds=0,
        burst_rate=10,
        visit_seconds=None,
    )
    arrivals = alternating("abc", load)
    assert len(arrivals) == pytest.approx(600, rel=0.15)
    for arrival in arrivals:
        assert arrival.model == "abc"[int(arrival.seconds / 0.5) % 3]


def test_curve_points_hold_their_pool():
    """A point's memory is the weights and the pool, its backlog several times what the pool holds."""
    scenario, backlog = curve_point(pool_bytes=4 * GB, slowness=10.0)
    assert scenario.hw.memory_rate / scenario.hw.link_rate == pytest.approx(10)
    assert scenario.memory_bytes - model_shape(LLAMA_3_8B).weight_bytes == 4 * GB
    needed = sum(a.prompt_tokens + a.output_tokens for a in backlog) * 131_072
    assert needed > 3 * 4 * GB
