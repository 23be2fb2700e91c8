"""Weight-only quantisation: int8 per output channel, int4 in groups of 32, activations in bf16.

A matrix lies in its home as plain bytes: the codes, then the bf16 scales
(`trimtab.planning.precision` has the sizes). Both are written once, at load, from one matrix at a
time; the same checkpoint gives the same bytes.

- int8, symmetric: w ≈ code · scale, codes -127 … 127, row-major.
- int4, asymmetric: w ≈ (code - 8) · scale + offset, codes 0 … 15; per group the range from least to
  greatest weight. Two codes share a byte.

The order of the codes is that of the kernel that multiplies: the native ones (tiles decoded to bf16
in a near cache) where they are compiled and the sizes fit, else torch's own. Torch's win while
reading weights is what a step waits for, and lose to bf16 where arithmetic is: prompts. On both, a
row has the same bits for any number of rows beside it (tests hold it).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from trimtab.planning.precision import (
    INT4_GROUP,
    INT4_ROWS,
    INT8_COLUMNS,
    WEIGHT_ONLY,
    codes_bytes,
    padded,
)
from trimtab_workers.engine.linear import ROW_BLOCKS, Linear, native_product, pack_in_place
from trimtab_workers.engine.memory import TORCH_DTYPES
from trimtab_workers.engine.native import library
from trimtab_workers.engine.native.library import LANES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

INT8_MOST = 127
_INT4_STEPS = 15
_INT4_MIDDLE = 8
# Rows that are quantised at once: temporaries are fp32, so a large matrix must not be whole.
# A multiple of 64, because torch packs int4 in blocks of up to 64 rows.
_ROWS_AT_ONCE = 1024


class _Quantised(Linear):
    """y = x·Wᵀ + b over codes and scales; `_inner` is how many columns W has without padding."""

    __slots__ = ("_inner", "_scales")

    def __init__(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        *,
        inner: int,
        bias: torch.Tensor | None,
    ) -> None:
        super().__init__(codes, bias)
        self._scales = scales
        self._inner = inner

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply bf16 rows, shape [rows, in] to [rows, out]."""
        result = self._product(x)
        return result if self.bias is None else result.add_(self.bias)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return rows of W as they are multiplied, bf16: the kernel alone knows how codes lie."""
        return self._product(torch.eye(self._inner, dtype=self._scales.dtype)).T[index]

    def at(self, home: torch.Tensor) -> Linear:
        """See `Linear.at`: codes and scales lie in the new home as they do in the old one."""
        moved = copy.copy(self)
        for name in ("_weight", "_scales"):
            part: torch.Tensor = getattr(self, name)
            start = part.data_ptr() - self._weight.data_ptr()
            view = home[start : start + part.nbytes].view(part.dtype).view(part.shape)
            setattr(moved, name, view)
        return moved

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class CodesLinear(_Quantised):
    """Codes in the native kernels' order (forward_kernels.h, `decode`), multiplied by them."""

    __slots__ = ("_kind", "_out")

    def __init__(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        *,
        shape: tuple[int, int],
        precision: str,
        bias: torch.Tensor | None,
    ) -> None:
        super().__init__(codes, scales, inner=shape[1], bias=bias)
        self._out = shape[0]
        self._kind = library.KINDS[precision]

    def _matrix(self) -> library.Matrix:
        """Describe where codes and scales lie now: `at` moves them."""
        return library.Matrix(
            data=self._weight.data_ptr(),
            scales=self._scales.data_ptr(),
            out=self._out,
            inner=self._inner,
            block=_block(self._out),
            kind=self._kind,
        )

    def described(self, alive: list[torch.Tensor]) -> library.Matrix:
        """Return the kernels' description, with the bias; put what it points to into `alive`."""
        matrix = self._matrix()
        alive += [self._weight, self._scales]
        if self.bias is not None:
            alive.append(self.bias.float().contiguous())
            matrix.bias = alive[-1].data_ptr()
        return matrix

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        return native_product(self._matrix(), x).to(x.dtype)


class Int8Linear(_Quantised):
    """Codes have the shape [out, in padded], int8; scales [out]."""

    __slots__ = ()

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten._weight_int8pack_mm(  # noqa: SLF001 - its only name
            _padded_columns(x, self._weight.shape[1]), self._weight, self._scales
        )
        return result


class Int4Linear(_Quantised):
    """Codes have the shape [out padded, in padded / 2], uint8; scales [groups, out padded, 2]."""

    __slots__ = ("_out",)

    def __init__(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        *,
        shape: tuple[int, int],
        bias: torch.Tensor | None,
    ) -> None:
        super().__init__(codes, scales, inner=shape[1], bias=bias)
        self._out = shape[0]

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(  # noqa: SLF001 - its only name
            _padded_columns(x, 2 * self._weight.shape[1]), self._weight, INT4_GROUP, self._scales
        )
        return result[:, : self._out]


def store(
    home: torch.Tensor,
    parts: Iterable[torch.Tensor],
    *,
    shape: tuple[int, int],
    precision: str,
    bias: torch.Tensor | None = None,
) -> Linear:
    """Write one matrix into its home and return the product over it.

    Args:
        home: uint8, shape [`matrix_bytes(*shape, precision=precision)`], 64-byte aligned.
        parts: Any float dtype; below one another they make the matrix. One is held at a time.
        shape: Rows (outputs) and columns (inputs) of the matrix.
        precision: `bf16`, `fp32`, `int8` or `int4`.
        bias: bf16 or fp32, shape [rows], or None.

    Raises:
        ValueError: A weight that is to be quantised is NaN or infinite.
    """
    rows, columns = shape
    if precision not in WEIGHT_ONLY:
        kind = TORCH_DTYPES[precision]
        weight = home[: rows * columns * kind.itemsize].view(kind).view(rows, columns)
        at = 0
        for part in parts:
            weight[at : at + part.shape[0]].copy_(part)
            at += part.shape[0]
        return pack_in_place(weight, bias)
    split = codes_bytes(rows, columns, precision=precision)
    codes, scales = home[:split], home[split:].view(torch.bfloat16)
    if precision == "int8":
        return _store_int8(codes, scales, parts, shape=shape, bias=bias)
    return _store_int4(codes, scales, parts, shape=shape, bias=bias)


def quantise_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 codes, shape [rows, columns], and bf16 scales, shape [rows].

    The scale is rounded up to bf16 before codes are taken, so that rounding it costs no accuracy
    and no code passes 127. The error of a weight is at most half a scale.

    Raises:
        ValueError: A weight is NaN or infinite.
    """
    weight = weight.float()
    exact = weight.abs().amax(dim=1) / INT8_MOST
    scales = exact.bfloat16()
    above = torch.nextafter(scales, torch.full_like(scales, torch.inf))
    scales = torch.where(scales.float() < exact, above, scales)
    _refuse_nonsense(scales)
    divisor = torch.where(scales == 0, 1.0, scales.float()).unsqueeze(1)
    codes = (weight / divisor).round_().clamp_(-INT8_MOST, INT8_MOST)
    return codes.to(torch.int8), scales


def quantise_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes 0 … 15, uint8 [rows, columns], and bf16 [groups, rows, 2] scales and offsets.

    Columns must be whole groups. The error of a weight is at most half a scale, plus what rounding
    scale and offset to bf16 moves the ends of the range (1/512 of their size each).

    Raises:
        ValueError: A weight is NaN or infinite.
    """
    rows, columns = weight.shape
    groups = weight.float().view(rows, columns // INT4_GROUP, INT4_GROUP)
    least, greatest = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    scales = ((greatest - least) / _INT4_STEPS).bfloat16().float()
    offsets = (least + _INT4_MIDDLE * scales).bfloat16().float()
    _refuse_nonsense(offsets)
    divisor = torch.where(scales == 0, 1.0, scales)
    codes = ((groups - offsets) / divisor).round_().add_(_INT4_MIDDLE).clamp_(0, _INT4_STEPS)
    pairs = torch.cat((scales, offsets), dim=2).bfloat16()
    return codes.to(torch.uint8).view(rows, columns), pairs.transpose(0, 1).contiguous()


def _store_int8(
    codes: torch.Tensor,
    scales: torch.Tensor,
    parts: Iterable[torch.Tensor],
    *,
    shape: tuple[int, int],
    bias: torch.Tensor | None,
) -> Linear:
    rows, columns = shape
    if _native(codes, shape, multiple=4):
        order = torch.empty(shape, dtype=torch.int8)
        for at, chunk in _chunks(parts):
            order[at : at + len(chunk)], scales[at : at + len(chunk)] = quantise_int8(chunk)
        codes = codes[: order.numel()]
        codes.copy_(_signed_magnitudes(_zipped(_blocked(order))).flatten())
        return CodesLinear(codes, scales[:rows], shape=shape, precision="int8", bias=bias)
    inner = padded(columns, INT8_COLUMNS)
    matrix = codes[: rows * inner].view(torch.int8).view(rows, inner)
    matrix[:, columns:].zero_()
    scales = scales[:rows]
    for at, chunk in _chunks(parts):
        end = at + len(chunk)
        matrix[at:end, :columns], scales[at:end] = quantise_int8(chunk)
    return Int8Linear(matrix, scales, inner=columns, bias=bias)


def _store_int4(
    codes: torch.Tensor,
    scales: torch.Tensor,
    parts: Iterable[torch.Tensor],
    *,
    shape: tuple[int, int],
    bias: torch.Tensor | None,
) -> Linear:
    rows, columns = shape
    out, inner = padded(rows, INT4_ROWS), padded(columns, INT4_GROUP)
    codes = codes[: out * inner // 2]
    pairs = scales[: inner // INT4_GROUP * out * 2].view(inner // INT4_GROUP, out, 2)
    # Torch packs whole blocks of rows, and parts end anywhere: codes of the whole matrix wait here.
    unpacked = torch.zeros(out, inner, dtype=torch.uint8)
    pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu  # noqa: SLF001 - its only name
    pairs.zero_()
    for at, chunk in _chunks(parts):
        end = at + len(chunk)
        unpacked[at:end], pairs[:, at:end] = quantise_int4(_padded_columns(chunk, inner))
    if _native(codes, shape, multiple=INT4_GROUP):
        # Sixteen columns of a step: the first eight in lower halves of bytes, the last in upper.
        halves = _blocked(unpacked).reshape(-1, 2, LANES)
        torch.bitwise_or(halves[:, 0], halves[:, 1] << 4, out=codes.view(-1, LANES))
        return CodesLinear(codes, pairs, shape=shape, precision="int4", bias=bias)
    packed = codes.view(out, inner // 2)
    for start in range(0, out, _ROWS_AT_ONCE):
        some = unpacked[start : start + _ROWS_AT_ONCE].int()
        packed[start : start + _ROWS_AT_ONCE] = pack(some, 1)
    return Int4Linear(packed, pairs, shape=shape, bias=bias)


def _native(home: torch.Tensor, shape: tuple[int, int], *, multiple: int) -> bool:
    fits = bool(_block(shape[0])) and shape[1] % multiple == 0
    return fits and not home.is_cuda and library.library() is not None


def _block(rows: int) -> int:
    return next((block for block in ROW_BLOCKS if rows % block == 0), 0)


def _blocked(codes: torch.Tensor) -> torch.Tensor:
    """Return codes as [rows / block, columns / 2, block, 2], like packed bf16."""
    rows, columns = codes.shape
    block = _block(rows)
    return codes.view(rows // block, block, columns // 2, 2).transpose(1, 2)


def _zipped(blocked: torch.Tensor) -> torch.Tensor:
    """Return 64 codes of two steps and 16 columns together, a quarter of each step in turn."""
    blocks, steps, block, _ = blocked.shape
    split = blocked.reshape(blocks, steps // 2, 2, block // LANES, 4, 8)
    return split.permute(0, 1, 3, 4, 2, 5)


def _signed_magnitudes(codes: torch.Tensor) -> torch.Tensor:
    return codes.abs().to(torch.uint8) | (codes < 0).to(torch.uint8) << 7


def _chunks(parts: Iterable[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield rows of a matrix, few at once, with the number of those before them."""
    at = 0
    for part in parts:
        for start in range(0, len(part), _ROWS_AT_ONCE):
            chunk = part[start : start + _ROWS_AT_ONCE]
            yield at, chunk
            at += len(chunk)


def _padded_columns(x: torch.Tensor, columns: int) -> torch.Tensor:
    """Return x with zeros to its right, contiguous as torch's kernels take it on trust."""
    missing = columns - x.shape[1]
    return functional.pad(x, (0, missing)) if missing else x.contiguous()


def _refuse_nonsense(scales: torch.Tensor) -> None:
    if not bool(torch.isfinite(scales).all()):
        raise ValueError(
            "a weight is NaN or infinite, for which int8 and int4 have no code; "
            "dtype bf16 would serve it and fail at its first answer"
        )
