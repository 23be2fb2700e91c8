"""The native kernels against torch, and what they refuse."""

import dataclasses
import logging
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.engine.builders import TINY, a_request, an_engine, run, spy_on_logits, submit
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.gate import pieces
from trimtab_workers.engine.linear import BlockedLinear, Linear, _pack_blocks
from trimtab_workers.engine.models.llama import LlamaModel
from trimtab_workers.engine.native import library
from trimtab_workers.engine.native.forward import NativeForward
from trimtab_workers.engine.sampling import sample

pytestmark = pytest.mark.skipif(
    library.library() is None, reason="the native kernels are not compiled here"
)
SETS = ("portable", "avx2", "avx512", "avx512bf16")


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this CPU has, in turn."""
    kernels = library.library()
    assert kernels is not None
    if kernels.tt_choose(request.param.encode()) is None:
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    kernels.tt_choose(b"")


def _random_shape(rng: random.Random) -> dict[str, Any]:
    kv_heads, group = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 5])
    return TINY | {
        "model_type": rng.choice(["llama", "qwen2", "qwen3"]),
        "hidden_size": 16 * rng.randrange(1, 9),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": 16 * rng.randrange(1, 6),
        "intermediate_size": 16 * rng.randrange(1, 13),
        "vocab_size": 16 * rng.randrange(8, 20),
        "tie_word_embeddings": rng.random() < 0.5,
    }


def _logits(engine: Engine, prompts: list[list[int]], monkeypatch: Any) -> dict[Any, torch.Tensor]:
    """Prefill whole and in chunks, then decode together; logits by request and position."""
    for layer in engine.tenant("m").model.layers:
        for linear in (layer.qkv, layer.out, layer.gate_up, layer.down):
            linear.memory[0].mul_(8)  # so that layers weigh as much as the embedding
    seen: dict[Any, torch.Tensor] = {}

    def spy(logits: torch.Tensor, sequences: list) -> object:
        for row, sequence in zip(logits, sequences, strict=True):
            seen[sequence.request.request_id, tuple(sequence.tokens)] = row.clone()
        return sample(logits, sequences)

    with monkeypatch.context() as patch:
        spy_on_logits(patch, spy)
        for index, prompt in enumerate(prompts):
            submit(engine, a_request(f"r{index}", prompt, max_tokens=4))
            engine.step()
        run(engine)
    return seen


@pytest.mark.parametrize(("dtype", "near"), [("fp32", 2e-5), ("bf16", 0.05)])
def test_random_shapes_agree_with_torch(
    dtype: str, near: float, instructions: str, monkeypatch: pytest.MonkeyPatch
):
    """Over random shapes, logits are those of the torch path, near within rounding."""
    rng = random.Random(f"{dtype} {instructions}")
    for _ in range(3):
        config = _random_shape(rng)
        settings = {"dtype": dtype, "hf_config": config, "max_batch_tokens": 40, "max_seqs": 8}
        vocab = config["vocab_size"]
        prompts = [
            [rng.randrange(vocab) for _ in range(rng.choice([1, 3, 15, 16, 17, 33, 90]))]
            for _ in range(4)
        ]
        ours = an_engine(threads=2, **settings)
        assert ours.tenant("m").runner._native is not None
        found = _logits(ours, prompts, monkeypatch)
        theirs = _logits(an_engine(native=False, **settings), prompts, monkeypatch)
        common = found.keys() & theirs.keys()
        assert len(common) >= len(prompts), config
        for key in common:
            torch.testing.assert_close(found[key], theirs[key], atol=near, rtol=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products(dtype: torch.dtype, instructions: str):
    """A product of any number of rows agrees with torch, and a row's bits ignore its neighbours."""
    torch.manual_seed(1)
    for out, inner in ((96, 128), (160, 96), (48, 30), (16, 1536)):
        weight = torch.randn(out, inner).to(dtype)
        linear = _pack_blocks(weight.clone(), None)  # torch would take some of these shapes itself
        assert isinstance(linear, BlockedLinear)
        x = torch.randn(40, inner).to(dtype)
        whole = linear(x)
        torch.testing.assert_close(whole, Linear(weight)(x), atol=0.02, rtol=0.02)
        for rows in range(1, 40):
            assert torch.equal(linear(x[:rows]), whole[:rows]), (out, inner, rows)


def test_greedy_is_the_largest_logit(monkeypatch: pytest.MonkeyPatch):
    """The arg-max inside the head gives the tokens that full logits give."""
    requests = [a_request(f"r{i}", range(i, 30 + 7 * i), max_tokens=12) for i in range(9)]
    fast = run(an_engine(dtype="bf16", threads=2), *requests)
    spy_on_logits(monkeypatch, sample)
    slow = run(an_engine(dtype="bf16"), *requests)
    assert [output.tokens for output in fast] == [output.tokens for output in slow]


def _forward(engine: Engine) -> NativeForward:
    runner = engine.tenant("m").runner
    assert runner is not None
    assert runner._native is not None
    return runner._native


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda row: row.sequence.tokens.__setitem__(0, 512), -2),
        (lambda row: row.sequence.tokens.__setitem__(2, -1), -2),
        (lambda row: setattr(row.sequence.blocks[0], "slot", 10**6), -4),
        (lambda row: setattr(row.sequence.blocks[0], "slot", -1), -4),
        (lambda row: row.sequence.blocks.pop(), -4),
    ],
)
def test_the_border_refuses(spoil: Any, status: int):
    """Token ids and blocks outside of their tables are refused before anything is written."""
    engine = an_engine()
    submit(engine, a_request("r", range(20)))
    engine._inbox.popleft()()
    plan = engine.tenant("m").scheduler.schedule()
    spoil(plan.rows[0])
    with pytest.raises(RuntimeError, match=f"status {status};"):
        _forward(engine).greedy(plan, [19], layers=None)


def test_positions_beyond_the_table_are_refused():
    """A row past the rotation table is refused."""
    engine = an_engine(max_model_len=64)
    submit(engine, a_request("r", range(20)))
    engine._inbox.popleft()()
    plan = engine.tenant("m").scheduler.schedule()
    late = dataclasses.replace(plan.rows[0], start=64)
    plan = dataclasses.replace(plan, prefill=(late,))
    plan.rows[0].sequence.tokens.extend(range(80))
    with pytest.raises(RuntimeError, match="status -3;"):
        _forward(engine).greedy(plan, [19], layers=None)


def test_shapes_that_do_not_apply_run_on_torch(caplog: pytest.LogCaptureFixture):
    """A width that is no multiple of 16 is served by torch, and the log says so."""
    with caplog.at_level(logging.INFO):
        engine = an_engine(hf_config=TINY | {"intermediate_size": 121})
    assert engine.tenant("m").runner._native is None
    assert [r.message for r in caplog.records].count("native_not_used") == 1
    [output] = run(engine, a_request("r"))
    assert len(output.tokens) == 8


def test_an_odd_vocabulary_has_its_head_on_torch():
    """With a vocabulary that is no multiple of 16 the layers are native and the head is not."""
    config = TINY | {"vocab_size": 509, "tie_word_embeddings": False}
    ours, theirs = an_engine(hf_config=config), an_engine(hf_config=config, native=False)
    assert not _forward(ours).has_head
    [a], [b] = run(ours, a_request("r", range(50))), run(theirs, a_request("r", range(50)))
    assert a.tokens == b.tokens


def test_without_the_library_torch_serves(monkeypatch: pytest.MonkeyPatch):
    """Where the kernels are absent, the same tokens come from torch."""
    [expected] = run(an_engine(), a_request("r", range(50)))
    monkeypatch.setattr("trimtab_workers.engine.native.forward.library", lambda: None)
    monkeypatch.setattr(library, "library", lambda: None)
    engine = an_engine()
    assert engine.tenant("m").runner._native is None
    [output] = run(engine, a_request("r", range(50)))
    assert output.tokens == expected.tokens


class Doors:
    """A gate behind which chosen layers have their weights, and NaN before and after.

    Attributes:
        steps: What the kernels ran and what the gate was told, in order.
    """

    def __init__(self, model: LlamaModel, cut: set[int]) -> None:
        self._weights = {
            index: [
                (linear.memory[0], linear.memory[0].clone())
                for layer in [model.layers[index]]
                for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)
            ]
            for index in cut
        }
        self.steps: list[tuple[str, int, int]] = []
        for index in cut:
            self._close(index)

    def _close(self, layer: int) -> None:
        for memory, _ in self._weights[layer]:
            memory.fill_(torch.nan)

    def cuts(self, layer: int) -> bool:
        return layer in self._weights

    def enter(self, layer: int) -> None:
        self.steps.append(("enter", layer, layer))
        for memory, kept in self._weights[layer]:
            memory.copy_(kept)

    def leave(self, layer: int) -> None:
        self.steps.append(("leave", layer, layer))
        self._close(layer)


def _watch_steps(forward: NativeForward, doors: Doors) -> None:
    """Have every call of the kernels noted with its first and last layer."""
    kernels = forward._kernels

    def step(pool: Any, model: Any, step: Any) -> Any:
        doors.steps.append(("run", step._obj.first, step._obj.last))
        return kernels.tt_step(pool, model, step)

    forward._kernels = SimpleNamespace(tt_step=step, tt_scratch_bytes=kernels.tt_scratch_bytes)


@pytest.mark.parametrize("cut", [{0}, {5}, {2, 3}, {0, 2, 5}, set(range(6))])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_step_that_gates_split_gives_the_same_tokens(cut: set[int], dtype: str):
    """The kernels read a gated layer only between its enter and leave, and the rest in one piece."""
    config = TINY | {"num_hidden_layers": 6}
    requests = [a_request(f"r{i}", range(i, 20 + 9 * i), max_tokens=6) for i in range(3)]
    expected = run(an_engine(hf_config=config, dtype=dtype), *requests)
    engine = an_engine(hf_config=config, dtype=dtype)
    runner, forward = engine.tenant("m").runner, _forward(engine)
    assert runner is not None
    doors = Doors(engine.tenant("m").model, cut)
    _watch_steps(forward, doors)
    runner.gate = doors
    found = run(engine, *requests)
    assert [output.tokens for output in found] == [output.tokens for output in expected]
    once = []
    for first, last, waits in pieces(6, doors):
        ran = ("run", first, last)
        once += [("enter", first, first), ran, ("leave", first, first)] if waits else [ran]
    assert [first for kind, first, _ in once if kind == "enter"] == sorted(cut)
    steps = len(doors.steps) // len(once)
    assert steps >= 6
    assert doors.steps == once * steps
