"""Weight-only int8 and int4: bytes in a home, products over them, a whole model."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.unit.engine.builders import TINY, a_request, an_engine, run
from trimtab.planning.architecture import Architecture
from trimtab.planning.memory import matrices_bytes, weight_bytes
from trimtab.planning.precision import INT4_GROUP, matrix_bytes, padded
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.linear import Linear
from trimtab_workers.engine.models.llama import fixed_bytes, layer_bytes
from trimtab_workers.engine.models.shape import LlamaShape
from trimtab_workers.engine.quant import quantise_int4, quantise_int8, store

# SmolLM2's, and glassllm's, whose 341 columns and 682 rows divide by no group.
SHAPES = [(960, 576), (576, 1536), (682, 128), (128, 341), (1100, 64)]
QUANTISED = ["int8", "int4"]


def _stored(
    weight: torch.Tensor, precision: str, *, bias: torch.Tensor | None = None
) -> tuple[Linear, torch.Tensor]:
    shape = (weight.shape[0], weight.shape[1])
    home = torch.full((matrix_bytes(*shape, precision=precision),), 0xA5, dtype=torch.uint8)
    halves = weight.split([weight.shape[0] // 3, weight.shape[0] - weight.shape[0] // 3])
    return store(home, halves, shape=shape, precision=precision, bias=bias), home


def _reference(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """Return the fp32 matrix that the codes stand for."""
    if precision == "int8":
        codes, scales = quantise_int8(weight)
        return codes.float() * scales.float().unsqueeze(1)
    columns = padded(weight.shape[1], INT4_GROUP)
    codes, pairs = quantise_int4(functional.pad(weight, (0, columns - weight.shape[1])))
    scales, offsets = pairs.float().transpose(0, 1).repeat_interleave(INT4_GROUP, 1).unbind(2)
    return ((codes.float() - 8) * scales + offsets)[:, : weight.shape[1]]


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("shape", SHAPES)
def test_product(shape: tuple[int, int], precision: str):
    """A product over stored codes equals one with the matrix they stand for, bias included."""
    weight, bias = torch.randn(shape), torch.randn(shape[0]).bfloat16()
    linear, _ = _stored(weight, precision, bias=bias)
    x = torch.randn(20, shape[1]).bfloat16()
    expected = x.float() @ _reference(weight, precision).T + bias.float()
    # Weights and results are rounded to bf16, whose last bit is 1/256 of a value.
    far = (linear(x).float() - expected).norm() / expected.norm()
    assert far < 1 / 256 + 1 / 256
    index = torch.tensor([0, shape[0] - 1])
    rows = _reference(weight, precision)[index]
    torch.testing.assert_close(linear.rows(index).float(), rows, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_ignore_their_number(shape: tuple[int, int], precision: str):
    """A row's product has the same bits however many rows are beside it."""
    linear, _ = _stored(torch.randn(shape), precision)
    x = torch.randn(300, shape[1]).bfloat16()
    whole = linear(x)
    counts = [*range(1, 40), 63, 64, 65, 128, 299]
    assert [n for n in counts if not torch.equal(linear(x[:n]), whole[:n])] == []


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 4),
    spread=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4]),
    shift=st.sampled_from([0.0, 1e-3, -5.0]),
    seed=st.integers(0, 1000),
)
def test_error_bound(rows: int, groups: int, spread: float, shift: float, seed: int):
    """No weight is further from its code than half a scale and what rounding to bf16 adds."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, groups * INT4_GROUP, generator=generator) * spread + shift
    codes, scales = quantise_int8(weight)
    error = (codes.float() * scales.float().unsqueeze(1) - weight).abs()
    assert (error <= 0.5001 * scales.float().unsqueeze(1)).all()
    codes, pairs = quantise_int4(weight)
    scale, offset = pairs.float().transpose(0, 1).repeat_interleave(INT4_GROUP, 1).unbind(2)
    error = ((codes.float() - 8) * scale + offset - weight).abs()
    # The ends of the range move by 7 or 8 scales' rounding and by the offset's.
    assert (error <= 0.5001 * scale + (8 * scale + offset.abs()) / 256 + 1e-37).all()


@pytest.mark.parametrize("precision", QUANTISED)
def test_bytes_are_the_model(precision: str):
    """Bytes copied into another home give the same product, and the same weights the same bytes."""
    weight = torch.randn(96, 128)
    linear, home = _stored(weight, precision)
    again, other = _stored(weight, precision)
    x = torch.randn(5, 128).bfloat16()
    expected = linear(x)
    assert torch.equal(again(x), expected)
    kept = home.clone()
    home.fill_(0x7F)
    assert not torch.equal(linear(x), expected)
    home.copy_(kept)
    assert torch.equal(linear(x), expected)
    used = sum(t.nbytes for t in (again._weight, again._scales))  # type: ignore[attr-defined]
    assert 0 <= len(other) - used < 2 * 64


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("shape", [(96, 128), (682, 128)])
def test_at_another_home(shape: tuple[int, int], precision: str):
    """A product moved to a copy of its bytes reads that copy alone."""
    linear, home = _stored(torch.randn(shape), precision)
    x = torch.randn(5, shape[1]).bfloat16()
    expected = linear(x)
    other = home.clone()
    moved = linear.at(other)
    home.fill_(0x7F)
    assert torch.equal(moved(x), expected)
    other.fill_(0x7F)
    assert not torch.equal(moved(x), expected)


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf")])
@pytest.mark.parametrize("quantise", [quantise_int8, quantise_int4])
def test_nonsense_weights(quantise: object, nonsense: float):
    """A weight that is NaN or infinite is refused and not turned into a code."""
    weight = torch.randn(4, 64)
    weight[2, 5] = nonsense
    with pytest.raises(ValueError, match="NaN or infinite"):
        quantise(weight)  # type: ignore[operator]


@pytest.mark.parametrize("precision", ["bf16", "fp32", *QUANTISED])
def test_planner_and_engine_agree(precision: str):
    """The planner's bytes of a layer and of the whole model are the engine's."""
    shape = LlamaShape.from_hf_config(TINY, where="test")
    architecture = Architecture.from_hf_config(TINY)
    assert matrices_bytes(architecture, precision=precision) == layer_bytes(shape, precision)
    whole = fixed_bytes(shape, precision) + shape.layers * layer_bytes(shape, precision)
    assert weight_bytes(architecture, depth=shape.layers, precision=precision) == whole


def _homes(engine: Engine) -> str:
    model = engine.tenant("m").model
    assert model is not None
    digest = hashlib.sha256()
    for home in model._homes:
        digest.update(home(0, layer_bytes(model.shape, model.precision)).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("precision", QUANTISED)
def test_deterministic(precision: str):
    """Two engines that quantise the same checkpoint hold the same bytes."""
    assert _homes(an_engine(dtype=precision)) == _homes(an_engine(dtype=precision))


@pytest.mark.parametrize("precision", QUANTISED)
def test_indivisible_sizes(precision: str, glass_en: Path):
    """A model whose sizes divide by no group is padded with zeros, and its greedy text stays."""
    tokens = {
        dtype: run(an_engine(glass_en, dtype=dtype), a_request("r", (5, 6, 7), max_tokens=4))[0]
        for dtype in ("bf16", precision)
    }
    assert tokens[precision].tokens == tokens["bf16"].tokens


@pytest.mark.parametrize("precision", QUANTISED)
def test_answers_paris(precision: str, smollm2: Path):
    """Quantised SmolLM2 knows the capital of France."""
    engine = an_engine(smollm2, dtype=precision, max_model_len=128, max_seqs=2)
    prompt = engine.tokenizer("m").encode("The capital of France is")
    [output] = run(engine, a_request("r", prompt, max_tokens=2))
    assert output.text == " Paris."
