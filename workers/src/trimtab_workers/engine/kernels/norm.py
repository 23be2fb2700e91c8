"""RMSNorm after a residual addition, and SiLU times up: the element-wise parts of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton.language as tl

from trimtab_workers.engine.kernels.jit import kernel, power_of_two

if TYPE_CHECKING:
    from collections.abc import Callable

_SILU_BLOCK = 1024
_WIDE = 4096


@kernel
def _add_norm(
    x: tl.tensor,
    delta: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    columns: tl.tensor,
    eps: tl.tensor,
    has_delta: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, block)
    inside = column < columns
    value = tl.load(x + row + column, mask=inside, other=0.0)
    if has_delta:
        added = tl.load(delta + row + column, mask=inside, other=0.0)
        # Rounded as it is stored, so that the norm sees what the next layer sees.
        value = (value.to(tl.float32) + added.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x + row + column, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / columns + eps)
    scaled = wide * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + column, scaled.to(out.dtype.element_ty), mask=inside)


@kernel
def _silu_mul(gate_up: tl.tensor, out: tl.tensor, columns: tl.tensor, block: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < columns
    gate = tl.load(gate_up + row * 2 * columns + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * columns + columns + column, mask=inside, other=0.0)
    value = gate / (1.0 + tl.exp(-gate)) * up.to(tl.float32)
    tl.store(out + row * columns + column, value.to(out.dtype.element_ty), mask=inside)


def add_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, *, eps: float
) -> torch.Tensor:
    """Add `delta` to `x` in place and return rms_norm(x)·weight; bytes: 4 rows read or written.

    Args:
        x: The residual stream, shape [rows, hidden], contiguous; unchanged without `delta`.
        delta: The same shape and type, or None.
        weight: Shape [hidden].
        eps: Added to the mean square.
    """
    _check_rows("add_norm", x, delta)
    out = torch.empty_like(x)
    if not x.shape[0]:
        return out
    block = power_of_two(x.shape[1])
    launch: Callable[..., None] = _add_norm[(x.shape[0],)]
    launch(
        x,
        x if delta is None else delta,
        weight,
        out,
        x.shape[1],
        eps,
        has_delta=delta is not None,
        block=block,
        num_warps=8 if block > _WIDE else 4,
        enable_fp_fusion=True,
    )
    return out


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate)·up for rows [gate, up], shape [rows, 2·width] to [rows, width]."""
    _check_rows("silu_mul", gate_up, None)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    if rows:
        launch: Callable[..., None] = _silu_mul[(rows, -(-width // _SILU_BLOCK))]
        launch(gate_up, out, width, block=_SILU_BLOCK, num_warps=4, enable_fp_fusion=True)
    return out


def _check_rows(name: str, x: torch.Tensor, other: torch.Tensor | None) -> None:
    contiguous = x.is_contiguous() and (other is None or other.is_contiguous())
    if x.dim() != 2 or not contiguous or (other is not None and other.shape != x.shape):
        raise ValueError(
            f"{name}: the rows have shape {tuple(x.shape)} and stride {x.stride()}. Give contiguous "
            "[rows, columns], all tensors alike; this is a bug in the caller, please report it."
        )
