import math

import pytest
import torch
from torch.nn import functional

from trimtab_workers.engine.kernels.weight_only import MOST_ROWS, weight_only
from trimtab_workers.engine.quant import quantise_int8
from trimtab_workers.engine.quant_cuda import FP8_MOST, WeightOnlyLinear, quantise_fp8


@pytest.mark.parametrize("quantise", [quantise_int8, quantise_fp8])
@pytest.mark.parametrize(("rows", "outputs", "inner"), [(1, 33, 257), (5, 7, 96), (17, 64, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product(quantise, rows, outputs, inner, dtype):
    """Codes in padded rows multiply as their widened weights do, with and without a bias."""
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(outputs, inner)
    codes, scales = quantise(weight)
    padded = torch.zeros(outputs, inner + 9, dtype=codes.dtype)
    padded[:, :inner] = codes
    padded.view(torch.int8)[:, inner:] = 0x7F  # NaN as fp8, 127 as int8: nobody may read it
    bias = torch.randn(outputs).to(dtype)
    wide = codes.double() * scales.double().unsqueeze(1)
    close = {"rtol": 1e-4, "atol": 1e-4}
    if dtype == torch.bfloat16:
        close = {"rtol": 1 / 128, "atol": 1 / 128}
    for given in (None, bias):
        linear = WeightOnlyLinear(padded, scales, inner=inner, bias=given, widen=True)
        expected = functional.linear(x.double(), wide, None if given is None else bias.double())
        torch.testing.assert_close(linear(x).double(), expected, **close)
    index = torch.tensor([outputs - 1, 0])
    torch.testing.assert_close(linear.rows(index).double(), wide[index], rtol=1 / 128, atol=1e-6)


def test_many_rows():
    """More rows than the kernel takes give the same product another way."""
    x, weight = torch.randn(MOST_ROWS + 1, 64), torch.randn(8, 64)
    codes, scales = quantise_fp8(weight)
    linear = WeightOnlyLinear(codes, scales, inner=64, widen=True)
    torch.testing.assert_close(linear(x)[:MOST_ROWS], linear(x[:MOST_ROWS]), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="weight_only"):
        weight_only(x, codes, scales)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_fp8_error(size):
    """An fp8 weight is within 1/16 of itself, or half the least step; the greatest is kept."""
    torch.manual_seed(0)
    weight = torch.randn(16, 100) * size
    codes, scales = quantise_fp8(weight)
    restored = codes.double() * scales.double().unsqueeze(1)
    allowed = torch.maximum(weight.abs() / 16, scales.unsqueeze(1) / 1024 * 1.001)
    assert bool(((restored - weight).abs() <= allowed).all())
    assert torch.equal(codes.float().abs().amax(dim=1), torch.full((16,), FP8_MOST))


def test_fp8_of_zeros_and_nonsense():
    """A row of zeros stays zeros; a weight that is no number is refused, not stored as NaN."""
    codes, scales = quantise_fp8(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert codes[0].float().tolist() == [0.0, 0.0]
    assert scales[0] == 0
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            quantise_fp8(torch.tensor([[1.0, bad]]))
