"""Groups of real processes over gloo give what one process gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from tests.unit.engine.builders import TINY, a_request, glass_directory, run
from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import OutOfMemoryError
from trimtab_workers.engine.measure import StepMeter
from trimtab_workers.engine.parallel.group import TPGroup
from trimtab_workers.engine.sampling import sample

pytest.importorskip("glassllm")

# Heads that divide by 4, fewer key heads than ranks, an MLP and a vocabulary that do not divide.
QWEN2 = TINY | {
    "model_type": "qwen2",
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 150,
    "vocab_size": 509,
}
QWEN3 = TINY | {
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
MODELS = ("glass", "qwen2", "qwen3")


def a_config(glass: Path, **changes) -> EngineConfig:
    """Return three models with room for 8 contexts of 64 tokens each."""
    models = (
        ModelSpec(name="glass", path=glass, dtype="fp32"),
        *(
            ModelSpec(
                name=name,
                path=Path(),
                dtype="fp32",
                random=RandomWeights(hf_config=config, seed=5),
            )
            for name, config in (("qwen2", QWEN2), ("qwen3", QWEN3))
        ),
    )
    return EngineConfig(models=models, max_model_len=64, native=False, **changes)


@pytest.fixture(scope="module")
def glass(tmp_path_factory) -> Path:
    return glass_directory(tmp_path_factory.mktemp("glass") / "en", "en")


@dataclass
class Answers:
    """Tokens by request, logits by request and length of its context, and preemptions."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    logits: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    preemptions: int = 0


def answers(engine: Engine, *, crowd: int) -> Answers:
    """Run `crowd` requests for the first model, which grow to 64 tokens, and few for the others."""
    result = Answers()

    def recorded(values, sequences):
        for row, sequence in zip(values, sequences, strict=True):
            result.logits[sequence.request.request_id, len(sequence.tokens)] = row.clone()
        return sample(values, sequences)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab_workers.engine.runner.sample", recorded)
        patch.setattr("trimtab_workers.engine.parallel.group.sample", recorded)
        for name, count, length in (("glass", crowd, 42), ("qwen2", 3, 8), ("qwen3", 3, 8)):
            requests = [
                replace(
                    a_request(f"{name}{i}", range(3 + i, 23 + i), max_tokens=length), model=name
                )
                for i in range(count)
            ]
            for request, found in zip(requests, run(engine, *requests), strict=True):
                assert found[-1].finish_reason == "length"
                result.tokens[request.request_id] = found.tokens
                result.preemptions += found[-1].timings.preemptions
    return result


@pytest.fixture(scope="module")
def alone(glass) -> Answers:
    engine = Engine(a_config(glass))
    engine.load()
    return answers(engine, crowd=12)


@pytest.mark.parametrize(
    ("tensor", "pipeline", "crowd"), [(2, 1, 12), (1, 2, 12), (4, 1, 2), (2, 2, 2)]
)
def test_a_group_answers_as_one_process(glass, alone, tensor, pipeline, crowd):
    """Logits within 1e-4 and equal greedy tokens, in a batch that changes and is preempted."""
    engine = Engine(a_config(glass, tensor_parallel_size=tensor, pipeline_parallel_size=pipeline))
    engine.load()
    try:
        assert [m["error"] for m in engine.models()] == [None] * len(MODELS)
        found = answers(engine, crowd=crowd)
    finally:
        engine.ranks.close()
    assert (found.preemptions > 0) == (crowd == 12)
    assert len(found.tokens) == crowd + 6
    for request, tokens in found.tokens.items():
        assert tokens == alone.tokens[request]
    for where, logits in found.logits.items():
        torch.testing.assert_close(logits, alone.logits[where], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tensor", "pipeline"), [("int8", 2, 1), ("int4", 1, 2)])
def test_a_group_quantises_its_parts(glass, dtype, tensor, pipeline):
    """Ranks that quantise what they hold give the greedy tokens of one process."""
    found = []
    for sizes in ({}, {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline}):
        model = ModelSpec(name="m", path=glass, dtype=dtype)
        engine = Engine(EngineConfig(models=(model,), max_model_len=64, native=False, **sizes))
        engine.load()
        try:
            found.append(run(engine, a_request("r", range(3, 23)))[0].tokens)
        finally:
            engine.ranks.close()
    assert found[0] == found[1]


def test_one_rank_with_less_host_memory(glass, tmp_path):
    """One sentence names the rank and both numbers, and no rank waits for another."""
    (tmp_path / "memory.max").write_text("300000")
    (tmp_path / "memory.current").write_text("200000")
    config = a_config(glass, tensor_parallel_size=2)
    poor = {1: {"TRIMTAB_CGROUP": str(tmp_path)}}
    ranks = TPGroup(config, environment=poor)
    engine = Engine(config, ranks=ranks)
    try:
        engine.load()
        errors = {str(engine.tenant(name).error) for name in MODELS}
        (said,) = errors
        assert said.startswith("Rank 1 of 2 has 100000 bytes of host memory free")
        assert isinstance(engine.tenant("glass").error, OutOfMemoryError)
    finally:
        ranks.close()


def test_a_step_is_measured_over_the_group():
    """A fingerprint's steps run on all ranks, with all their bytes in its memory row."""
    config = {**TINY, "num_hidden_layers": 2}
    one = StepMeter(config, dtype="fp32", max_sequences=2, max_context=64, max_chunk=32)
    two = StepMeter(
        config,
        dtype="fp32",
        tensor_parallel_size=2,
        max_sequences=2,
        max_context=64,
        max_chunk=32,
    )
    try:
        two.engine.ranks.empty_caches(1 << 20)
        assert two.measure_step(2, 20, chunk=16, layers=1) > 0
        assert two.measure_step(1, 20) > 0
        single, double = one.memory(chunk=16), two.memory(chunk=16)
    finally:
        two.close()
    # Norms are on both.
    norms = 5 * TINY["hidden_size"] * 4
    assert double.weights == single.weights + norms
