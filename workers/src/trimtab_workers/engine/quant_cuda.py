"""Weight-only int8 and fp8 on CUDA: the layers' matrices as codes with one scale per output.

int8 codes and scales are those of `quant` (the CPU's), so a checkpoint quantises to the same
numbers on both. fp8 is e4m3 without infinities: 448 is its greatest, and a cast beyond it is NaN.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from trimtab_workers.engine.kernels.weight_only import MOST_ROWS, weight_only
from trimtab_workers.engine.linear import Linear

FP8_MOST = 448.0


def quantise_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float8_e4m3fn codes, shape [rows, columns], and float32 scales, shape [rows].

    The error of a weight is at most 1/16 of it, or scale/1024 where it is small beside its row's
    greatest.

    Raises:
        ValueError: A weight is NaN or infinite.
    """
    wide = weight.float()
    scales = wide.abs().amax(dim=1) / FP8_MOST
    if not bool(torch.isfinite(scales).all()):
        raise ValueError(
            "a weight is NaN or infinite, for which fp8 has no code; dtype bf16 would serve it and "
            "fail at its first answer"
        )
    divisor = torch.where(scales == 0, 1.0, scales).unsqueeze(1)
    codes = (wide / divisor).clamp_(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn)
    return codes, scales


class WeightOnlyLinear(Linear):
    """y = x·(codes·scales)ᵀ + b; the kernel for few rows, widened weights and cuBLAS for many.

    Args:
        codes: int8 or float8_e4m3fn, shape [out, at least inner].
        scales: Shape [out].
        inner: Columns of W; what lies beyond is padding.
        widen: See `weight_only`.
    """

    __slots__ = ("_inner", "_scales", "_widen")

    def __init__(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        *,
        inner: int,
        bias: torch.Tensor | None = None,
        widen: bool = False,
    ) -> None:
        super().__init__(codes, bias)
        self._scales, self._inner, self._widen = scales, inner, widen

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply rows, shape [rows, in] to [rows, out]."""
        if len(x) <= MOST_ROWS:
            return weight_only(x, self._weight, self._scales, bias=self.bias, widen=self._widen)
        return functional.linear(x, self._wide(self._weight, self._scales, x.dtype), self.bias)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return rows of W in the scales' type, shape [len(index), in]."""
        return self._wide(self._weight[index], self._scales[index], self._scales.dtype)

    def _wide(self, codes: torch.Tensor, scales: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
        return (codes[:, : self._inner].float() * scales.float().unsqueeze(1)).to(kind)
