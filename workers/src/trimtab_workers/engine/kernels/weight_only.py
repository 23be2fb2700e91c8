"""Products with int8 or fp8 (e4m3) weights and one scale per output, for few rows.

A decode step waits for weights to be read, so half the bytes are half the time: codes are widened
in registers. With many rows arithmetic is what a product waits for, and cuBLAS over widened
weights is faster; the caller chooses (`quant_cuda`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton.language as tl

from trimtab_workers.engine.kernels.jit import kernel, power_of_two

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

# 32 outputs per program: the narrowest product of an 8B model still fills 128 of 132 processors.
OUTPUTS = 32
INNER = 256
MOST_ROWS = 64
_DOT_ROWS = 16


@kernel
def _weight_only(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    outputs: tl.tensor,
    inner: tl.tensor,
    code_stride: tl.tensor,
    has_bias: tl.constexpr,
    widen: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
) -> None:
    m = tl.arange(0, block_m)
    n = tl.program_id(0) * block_n + tl.arange(0, block_n)
    in_m, in_n = m < rows, n < outputs
    total = tl.zeros([block_m, block_n], tl.float32)
    for first in range(0, inner, block_k):
        k = first + tl.arange(0, block_k)
        in_k = k < inner
        left = tl.load(
            x + m[:, None] * inner + k[None, :], mask=in_m[:, None] & in_k[None, :], other=0.0
        )
        right = tl.load(
            codes + n[None, :].to(tl.int64) * code_stride + k[:, None],
            mask=in_k[:, None] & in_n[None, :],
            other=0.0,
        )
        if widen:
            left = left.to(tl.float32)
        total += tl.dot(left, right.to(left.dtype), input_precision="ieee")
    total *= tl.load(scales + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    if has_bias:
        total += tl.load(bias + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    target = out + m[:, None].to(tl.int64) * outputs + n[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


def weight_only(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    widen: bool = False,
) -> torch.Tensor:
    """Return x·(codes·scales)ᵀ + bias, at most 64 rows.

    Bytes: every code once. Numerics: codes are exact in bf16, sums are float32, the scale is
    applied to the sum, one rounding.

    Args:
        x: Shape [rows, inner], contiguous.
        codes: int8 or float8_e4m3fn, shape [outputs, at least inner], rows contiguous; columns
            beyond `inner` are not read.
        scales: Any float type, shape [outputs].
        bias: Shape [outputs], or None.
        widen: Multiply in float32: Triton's interpreter has no bfloat16 product.
    """
    rows, inner = x.shape
    outputs = codes.shape[0]
    if rows > MOST_ROWS or codes.shape[1] < inner or not x.is_contiguous():
        raise ValueError(
            f"weight_only: x has shape {tuple(x.shape)} and codes {tuple(codes.shape)}. Give at most "
            f"{MOST_ROWS} contiguous rows that are no longer than the codes'; this is a bug in the "
            "caller, please report it."
        )
    out = x.new_empty(rows, outputs)
    if not rows:
        return out
    launch: Callable[..., None] = _weight_only[(-(-outputs // OUTPUTS),)]
    launch(
        x,
        codes,
        scales,
        scales if bias is None else bias,
        out,
        rows,
        outputs,
        inner,
        codes.stride(0),
        has_bias=bias is not None,
        widen=widen,
        block_m=max(_DOT_ROWS, power_of_two(rows)),
        block_n=OUTPUTS,
        block_k=INNER,
        num_warps=4,
        num_stages=3,
        enable_fp_fusion=True,
    )
    return out
