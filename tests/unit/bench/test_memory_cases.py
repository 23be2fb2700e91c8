"""Memory of a GPU by hand: ranks, stages, graphs, fractions, and public cases."""

import dataclasses

import pytest

from trimtab.bench.known_models import KNOWN
from trimtab.bench.memory_cases import (
    CASES,
    FRACTIONS_PERMILLE,
    GIB,
    judge_case,
    options,
    uneven_sizes,
)
from trimtab.bench.memory_cases import planned as planned_with
from trimtab.planning.fingerprint import MemoryPoint
from trimtab.planning.gpu_memory import gpu_memory
from trimtab.planning.gpus import gpu_configs
from trimtab.planning.policy import PlannerPolicy

POLICY = PlannerPolicy()
LLAMA = KNOWN["llama-3.1-8b"]


def planned(name="llama-3.1-8b", **fields):
    """Return what a plan counts on with a GPU of 80 GB, of which the engine takes 92 %."""
    given = {"gib": 79.2, "precision": "bf16", "kv_precision": "bf16", "fraction_permille": 920}
    return planned_with(name, policy=POLICY, **given | fields)


def rows(*graphs):
    return tuple(
        MemoryPoint(depth=n, weights=0, activation=GIB, non_torch=GIB // 2, graphs=g)
        for n, g in enumerate(graphs, start=1)
    )


def test_parts_add_up_to_the_fraction():
    """Weights, overhead, reserve and the KV cache of whole blocks fill what the engine takes."""
    memory = planned()
    assert memory.weights == pytest.approx(15.0 * GIB, rel=0.003)
    assert memory.token == 128 * 1024
    left = memory.budget - memory.reserve - memory.planned
    assert 0 <= left < 16 * memory.token
    assert memory.beside == POLICY.unmeasured_gpu_bytes + memory.weights * 50 // 1000
    assert memory.kv_tokens % 16 == 0


def test_ranks_share_layers_vocabulary_and_cache():
    """Four ranks hold a quarter each, but for norms; sixteen hold a key head each, some of them twice."""
    one, four, sixteen = (planned(tensor=n) for n in (1, 4, 16))
    assert 4 * four.weights == pytest.approx(one.weights, rel=0.001)
    assert 4 * four.weights > one.weights
    assert four.token == one.token // 4
    assert sixteen.token == one.token // 8


def test_a_vocabulary_that_does_not_divide_is_padded():
    """A rank never holds less than its part."""
    odd = dataclasses.replace(LLAMA.architecture, vocab_size=128257)
    [config] = gpu_configs("", stages=1, precisions=("bf16",), sizes=(4,))
    memory = gpu_memory(
        odd,
        config,
        depth=1,
        gpu_bytes=80 * GIB,
        kv_precision="bf16",
        block_tokens=16,
        rows=(),
        policy=POLICY,
    )
    even = planned(tensor=4)
    layer = (even.weights - gpu_tables(even)) // LLAMA.depth
    padded = 2 * (128256 // 4 + 64) * 4096 * 2
    assert layer < memory.weights <= layer + padded + 4096 * 2


def gpu_tables(memory):
    """Bytes of embedding, head and final norm of one of four ranks."""
    return (2 * 128256 // 4 + 1) * 4096 * 2


def test_stages_hold_their_layers_and_one_table():
    """Two stages: half of the layers, and the embedding or the head."""
    one, two = planned("qwen3-14b"), planned("qwen3-14b", pipeline=2)
    table = 151936 * 5120 * 2
    assert 2 * two.weights == pytest.approx(one.weights, rel=0.001)
    assert two.weights > (one.weights - 2 * table) // 2 + table - 1
    assert two.token == one.token // 2


def test_measured_rows_replace_the_rule_of_thumb():
    """Graphs grow with depth, activation and libraries do not; less than nothing counts as nothing."""
    memory = planned(rows=rows(100, 150))
    assert memory.measured
    assert memory.beside == GIB + GIB // 2 + 100 + 31 * 50
    assert planned(rows=rows(-100, -200)).beside == GIB + GIB // 2


def test_eight_bits_shrink_layers_and_not_the_tables():
    """Embedding and head keep 16 bits under fp8 layers: no fit is promised on their account."""
    full, half = planned(), planned(precision="fp8")
    tables = 2 * 128256 * 4096 * 2
    assert 2 * (half.weights - tables) == pytest.approx(full.weights - tables, rel=0.001)


def test_ranks_that_do_not_divide_the_heads_are_refused():
    """The sentence names both numbers, by the words that a plan uses."""
    refused = {one["model"]: one["refused"] for one in uneven_sizes()}
    assert "size 3 does not divide the model's 32 attention heads" in refused["llama-3.1-8b"]
    assert "size 2 does not divide the model's 9 attention heads" in refused["smollm2-135m"]
    assert all(refused.values())


@pytest.mark.parametrize("ranks", [3, 5, 7, 12])
def test_a_size_that_does_not_divide_is_rounded_up(ranks):
    """What runs may have an odd size: a rank never holds less than its part, and no plan fails over it."""
    whole, part = planned(), planned(tensor=ranks)
    assert ranks * part.weights > whole.weights
    assert ranks * part.token >= whole.token


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.source.split(":")[0])
def test_no_public_case_is_said_to_fit_that_did_not(case):
    """Neither a fit nor a cache is promised that was not there, nor one refused that was."""
    judged = judge_case(case, policy=POLICY)
    assert not judged["false_fit"]
    assert not judged["false_refusal"]


def test_the_reference_is_met():
    """H100, 8B: what vLLM printed is met within 3 %, and within 0.5 % before our reserve."""
    judged = judge_case(CASES[0], policy=POLICY)
    assert -3 <= judged["kv_error_percent"] <= 0
    assert abs(judged["kv_error_without_reserve_percent"]) < 0.5


def test_a_case_that_is_worse_than_planned_is_a_false_fit():
    """The judgement can fail: a cache that held a tenth less, a fit that never was."""
    less = dataclasses.replace(CASES[0], needs_tokens=CASES[0].needs_tokens * 9 // 10)
    never = dataclasses.replace(CASES[-1], fitted=False)
    refused = dataclasses.replace(CASES[3], fitted=True)
    assert judge_case(less, policy=POLICY)["false_fit"]
    assert judge_case(never, policy=POLICY)["false_fit"]
    assert judge_case(refused, policy=POLICY)["false_refusal"]


def test_every_option_stays_within_its_fraction():
    """AIConfigurator #1396: at any engine's fraction, all of it included, on more than 50 options."""
    found = list(options(policy=POLICY))
    fitting = [o for o in found if o["fits"]]
    assert len(fitting) > 50
    assert all(o["within"] for o in fitting)
    assert 1000 in FRACTIONS_PERMILLE
    assert max(o["planned_permille_of_gpu"] for o in fitting) <= 980
    assert min(o["weights_of_all_ranks_ratio"] for o in found) >= 1
