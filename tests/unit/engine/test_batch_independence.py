"""A request's bits do not depend on what else is in the batch (engine.md §8, "Exactness")."""

import random

import pytest
import torch

from tests.unit.engine.builders import (
    a_request,
    an_engine,
    kv_memory,
    run,
    spy_on_logits,
    submit,
)
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.sampling import sample


class _Spy:
    """Keeps every request's logits, keyed by request and number of tokens before them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[tuple[str, int], torch.Tensor] = {}
        spy_on_logits(monkeypatch, self)

    def __call__(self, logits: torch.Tensor, sequences: list) -> object:
        for row, sequence in zip(logits, sequences, strict=True):
            self.rows[sequence.request.request_id, len(sequence.tokens)] = row.clone()
        return sample(logits, sequences)


def _requests(count: int, *, longest: int, output: int) -> list:
    rng = random.Random(7)
    return [
        a_request(
            f"r{index}",
            [rng.randrange(512) for _ in range(rng.randrange(1, longest))],
            max_tokens=output,
        )
        for index in range(count)
    ]


def _alone(requests: list, spy: _Spy, **settings: object) -> dict:
    for request in requests:
        run(an_engine(**settings), request)
    rows, spy.rows = spy.rows, {}
    return rows


def _assert_same(alone: dict, mixed: dict) -> None:
    assert mixed
    assert mixed.keys() == alone.keys()
    different = [key for key in alone if not torch.equal(alone[key], mixed[key])]
    assert not different, f"{len(different)} of {len(alone)} rows differ, first {different[:3]}"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
def test_mixed_batch(dtype: str, threads: int, monkeypatch: pytest.MonkeyPatch):
    """Logits alone and in a batch that mixes chunks and decodes are equal bit for bit."""
    spy = _Spy(monkeypatch)
    requests = _requests(12, longest=420, output=6)
    alone = _alone(requests, spy, dtype=dtype, threads=threads)
    engine = an_engine(dtype=dtype, threads=threads, max_batch_tokens=96, prefix_caching=False)
    for request in requests:
        submit(engine, request)
        engine.step()
    run(engine)
    _assert_same(alone, spy.rows)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
def test_preempted(dtype: str, monkeypatch: pytest.MonkeyPatch):
    """Preempted and recomputed requests give the bits that they give undisturbed."""
    spy = _Spy(monkeypatch)
    requests = _requests(6, longest=60, output=150)
    alone = _alone(requests, spy, dtype=dtype)
    engine = an_engine(
        dtype=dtype, memory_bytes=kv_memory(16, dtype=dtype), prefix_caching=False, max_seqs=6
    )
    run(engine, *requests)
    assert _preemptions(engine) > 0
    _assert_same(alone, spy.rows)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
def test_cached_prefix(dtype: str, monkeypatch: pytest.MonkeyPatch):
    """A prompt found in the prefix cache gives the bits that computing it gives."""
    spy = _Spy(monkeypatch)
    request = a_request("r0", range(200))
    alone = _alone([request], spy, dtype=dtype)
    engine = an_engine(dtype=dtype)
    run(engine, a_request("first", range(200)))
    spy.rows.clear()
    [output] = run(engine, request)
    assert output[-1].cached_tokens == 192
    _assert_same(alone, spy.rows)


def _preemptions(engine: Engine) -> float:
    value = engine.registry.get_sample_value(
        "vllm:num_preemptions_total", {"model_name": "m", "engine": "0"}
    )
    assert value is not None
    return value
