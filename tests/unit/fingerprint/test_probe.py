"""The probe asks the real engine, on a model of a few kilobytes."""

import io
import json

import pytest

from trimtab.planning.architecture import Architecture
from trimtab.planning.memory import memory_plan, weight_bytes
from trimtab.planning.policy import PlannerPolicy
from trimtab_workers.fingerprint import probe

TINY = Architecture(
    family="llama",
    hidden_size=64,
    intermediate_size=128,
    attention_heads=4,
    kv_heads=2,
    head_dim=16,
    vocab_size=128,
    tied_embeddings=True,
)


@pytest.fixture
def ask(monkeypatch, capsys):
    def call(what, *, depth=2, **fields):
        question = {
            "what": what,
            "config": TINY.to_hf_config(depth=depth, context_length=512),
            "precision": "bf16",
            "threads": 1,
            **fields,
        }
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(question)))
        assert probe.main() == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_memory_of_one_depth(ask):
    """Weights are those of the planner's formula; a step allocates something."""
    row = ask("memory", depth=3, chunk=64)
    assert row["depth"] == 3
    assert row["weights"] == weight_bytes(TINY, depth=3, precision="bf16")
    assert row["activation"] > 0


def test_the_arena_holds_what_was_planned(ask):
    """An engine with the planned bytes can use at least the planned tokens."""
    plan = memory_plan(
        TINY,
        depth=2,
        precision="bf16",
        kv_precision="bf16",
        kv_tokens=1024,
        block_tokens=16,
        fingerprint=None,
        policy=PlannerPolicy(),
    )
    found = ask("arena", arenaBytes=plan.arena, maxModelLen=256)
    assert found["kv_tokens"] >= plan.kv_tokens >= 1024
    assert found["resident_bytes"] > found["arena_bytes"]


def test_seconds_by_part(ask):
    """Each kind of step has its time, and what surrounds the steps is on top."""
    grid = {"decode": [[1, 16]], "prefill": [[16, 0]], "mixed": [[16, 1]]}
    found = ask("steps", depths=[1, 2], cold=False, grid=grid, repeats=1)
    for kind in ("decode", "prefill", "mixed"):
        assert found[kind] >= found["stepping"][kind] > 0
    assert found["start"] >= 0
    assert found["load"] > 0
