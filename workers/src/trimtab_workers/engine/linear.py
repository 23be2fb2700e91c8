"""Matrix products with weights laid out as the CPU kernel reads them, in the caller's memory.

oneDNN repacks a plain weight on every call, which on a cold weight costs more than the product
itself up to about 32 rows. Packing once makes such products about twice as fast.
`torch.ops.mkldnn` packs, but into memory of its own; torch's stable C interface for AOTInductor
makes a tensor over *our* bytes from the packed layout's description, so packed weights live in
slabs and a slab's bytes are only permuted. Where any of this is missing, plain weights are used.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from trimtab_workers.engine.native import library

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

# Layouts are chosen for a number of rows; this one is best or near it from 1 to 512.
_PACK_ROWS = 32
_LAYOUT_MKLDNN = 3
ROW_BLOCKS = (64, 48, 32, 16)


class Linear:
    """y = x·Wᵀ + b with W of shape [out, in]."""

    __slots__ = ("_weight", "bias")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply rows, shape [rows, in] to [rows, out]."""
        return functional.linear(x, self._weight, self.bias)

    @property
    def memory(self) -> tuple[torch.Tensor, int]:
        """The bytes and the rows of a packed block, 0 where W is plain: for the native kernels."""
        return self._weight, 0

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return rows of W, shape [len(index), in]: an embedding lookup."""
        return functional.embedding(index, self._weight)

    def at(self, home: torch.Tensor) -> Linear:
        """Return the same product over other memory that holds, or will hold, the same bytes.

        Args:
            home: uint8, one dimension, 64-byte aligned, at least as long as this weight.
        """
        return Linear(_view_like(self._weight, home), self.bias)


class PackedLinear(Linear):
    """The same over a packed weight.

    `raw` is the same memory as the elements it is made of, which stays alive through it.
    """

    __slots__ = ("_packed",)

    def __init__(
        self, packed: torch.Tensor, raw: torch.Tensor, bias: torch.Tensor | None = None
    ) -> None:
        super().__init__(raw, bias)
        self._packed = packed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply rows, shape [rows, in] to [rows, out]."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - its only name
            x, self._packed, self.bias, "none", [], ""
        )
        return result

    @property
    def memory(self) -> tuple[torch.Tensor, int]:
        """The bytes, shape [out / block, in / pair, block, pair], and block."""
        return self._weight, self._weight.shape[2]

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return rows of W; `raw` has shape [out / block, in / pair, block, pair]."""
        block = self._weight.shape[2]
        return self._weight[index // block, :, index % block].flatten(1)

    def at(self, home: torch.Tensor) -> Linear:
        """See `Linear.at`."""
        raw = _view_like(self._weight, home)
        tools = _tools()
        if tools is None:
            raise RuntimeError("A packed weight exists without its tools; this is a bug.")
        blocks, steps, block, pair = raw.shape
        plain = raw.view(blocks * block, steps * pair)
        return PackedLinear(tools.over(plain, self._packed), raw, self.bias)


class BlockedLinear(PackedLinear):
    """The same layout where oneDNN would pad it; multiplied by the native kernels."""

    __slots__ = ("_matrix",)

    def __init__(self, raw: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__(raw, raw, bias)
        blocks, steps, block, pair = raw.shape
        # Adding a bias in torch keeps the kernel's operand free of pointers that must be kept alive.
        self._matrix = library.Matrix(
            data=raw.data_ptr(),
            bias=None,
            out=blocks * block,
            inner=steps * pair,
            block=block,
            kind=library.KINDS["bf16" if raw.dtype == torch.bfloat16 else "fp32"],
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply rows, shape [rows, in] to [rows, out]."""
        y = native_product(self._matrix, x)
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def at(self, home: torch.Tensor) -> Linear:
        """See `Linear.at`."""
        return BlockedLinear(_view_like(self._weight, home), self.bias)


def _view_like(weight: torch.Tensor, home: torch.Tensor) -> torch.Tensor:
    return home[: weight.nbytes].view(weight.dtype).view(weight.shape)


def native_product(matrix: library.Matrix, x: torch.Tensor) -> torch.Tensor:
    """Multiply rows, shape [rows, in], by a matrix in the kernels' layout; fp32 [rows, out]."""
    kernels, pool = library.library(), library.pool(torch.get_num_threads())
    x = x.contiguous()
    y = torch.empty(len(x), matrix.out)
    if kernels is None or kernels.tt_linear(pool, matrix, x.data_ptr(), y.data_ptr(), len(x)):
        raise RuntimeError(
            f"The native product refused rows of shape {tuple(x.shape)} for a weight of {matrix.out} "
            f"x {matrix.inner}; this is a bug, please report it with your model set."
        )
    return y


def pack_in_place(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """Permute a weight's bytes for the kernel; leaves them as they are where that is not possible.

    Args:
        weight: Shape [out, in], contiguous bf16 or fp32; its memory is overwritten.
        bias: Shape [out], or None.
    """
    if weight.is_cuda or not weight.is_contiguous():
        return Linear(weight, bias)
    tools = _tools()
    if tools is not None:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)  # noqa: SLF001 - its only name
        raw = _raw_layout(weight, packed, tools)
        if raw is not None:
            weight.view(-1).copy_(raw.reshape(-1))
            return PackedLinear(tools.over(weight, packed), weight.view(raw.shape), bias)
    return _pack_blocks(weight, bias)


def _pack_blocks(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    out, inner = weight.shape
    pair = 4 // weight.itemsize
    block = next((block for block in ROW_BLOCKS if out % block == 0), 0)
    if not block or inner % 2 or library.library() is None:
        return Linear(weight, bias)
    raw = weight.view(out // block, block, inner // pair, pair).transpose(1, 2).contiguous()
    weight.view(-1).copy_(raw.view(-1))
    return BlockedLinear(weight.view(raw.shape), bias)


def _raw_layout(weight: torch.Tensor, packed: torch.Tensor, tools: _Tools) -> torch.Tensor | None:
    """Return a packed weight's bytes in the shape that its layout has, None if it is not known."""
    out, inner = weight.shape
    pair = 4 // weight.itemsize
    if tools.size(packed) != weight.nbytes or inner % pair:
        return None
    raw = tools.bytes_of(packed, weight.nbytes).view(weight.dtype)
    for block in ROW_BLOCKS:
        if out % block == 0:
            shaped = raw.view(out // block, inner // pair, block, pair)
            if torch.equal(shaped.transpose(1, 2).reshape(out, inner), weight):
                return shaped
    return None


class _Tools:
    """The three functions of torch's C interface that are needed, checked by using them."""

    def __init__(self) -> None:
        path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        library = ctypes.CDLL(str(path))
        self._create = library.aoti_torch_create_tensor_from_blob_v2
        self._data_ptr = library.aoti_torch_get_data_ptr
        self._delete = library.aoti_torch_delete_tensor_object
        for function in (
            library.aoti_torch_dtype_bfloat16,
            library.aoti_torch_dtype_float32,
            library.aoti_torch_device_type_cpu,
        ):
            function.restype = ctypes.c_int32
        self._dtypes = {
            torch.bfloat16: library.aoti_torch_dtype_bfloat16(),
            torch.float32: library.aoti_torch_dtype_float32(),
        }
        self._cpu = library.aoti_torch_device_type_cpu()
        self._steal: Callable[[Any], torch.Tensor] = (
            torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr  # noqa: SLF001 - no public name
        )
        self._handle: Callable[[torch.Tensor], Any] = (
            torch._C._aoti.unsafe_alloc_void_ptr_from_tensor  # noqa: SLF001 - no public name
        )
        self._capsule = ctypes.pythonapi.PyCapsule_GetPointer
        self._capsule.restype = ctypes.c_void_p
        self._capsule.argtypes = [ctypes.py_object, ctypes.c_char_p]
        self._new_capsule = ctypes.pythonapi.PyCapsule_New
        self._new_capsule.restype = ctypes.py_object
        self._new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

    def size(self, packed: torch.Tensor) -> int:
        """Bytes of a packed tensor."""
        return int(torch.ops.mkldnn._nbytes(packed))  # noqa: SLF001 - its only name

    def bytes_of(self, packed: torch.Tensor, size: int) -> torch.Tensor:
        """Copy a packed tensor's bytes."""
        handle = self._capsule(self._handle(packed), None)
        data = ctypes.c_void_p()
        failed = self._data_ptr(ctypes.c_void_p(handle), ctypes.byref(data))
        if failed or not data.value:
            raise RuntimeError("torch gives no address for a packed weight")
        result = torch.empty(size, dtype=torch.uint8)
        ctypes.memmove(result.data_ptr(), data.value, size)
        self._delete(ctypes.c_void_p(handle))
        return result

    def over(self, weight: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        """Make a packed tensor over a weight's memory, which must outlive it."""
        description = torch.ops.mkldnn._get_mkldnn_serialized_md(packed)  # noqa: SLF001 - its only name
        sizes = (ctypes.c_int64 * 2)(*weight.shape)
        strides = (ctypes.c_int64 * 2)(weight.shape[1], 1)
        handle = ctypes.c_void_p()
        failed = self._create(
            ctypes.c_void_p(weight.data_ptr()),
            ctypes.c_int64(2),
            sizes,
            strides,
            ctypes.c_int64(0),
            ctypes.c_int32(self._dtypes[weight.dtype]),
            ctypes.c_int32(self._cpu),
            ctypes.c_int32(0),
            ctypes.byref(handle),
            ctypes.c_int32(_LAYOUT_MKLDNN),
            ctypes.c_void_p(description.data_ptr()),
            ctypes.c_int64(description.numel()),
        )
        if failed or not handle.value:
            raise RuntimeError("torch makes no packed weight over foreign memory")
        return self._steal(self._new_capsule(handle.value, None, None))


@functools.cache
def _tools() -> _Tools | None:
    """Return the tools if they give the right product on a small example, else None."""
    try:
        tools = _Tools()
        weight = torch.arange(64 * 64, dtype=torch.float32).view(64, 64) / 4096
        x = torch.ones(4, 64)
        expected = functional.linear(x, weight)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)  # noqa: SLF001 - its only name
        raw = _raw_layout(weight, packed, tools)
        if raw is None:
            raise RuntimeError("the packed layout is not known")  # noqa: TRY301 - one way out
        home = raw.reshape(64, 64).clone()
        result = PackedLinear(tools.over(home, packed), home)(x)
        if not torch.allclose(result, expected):
            raise RuntimeError("a packed product differs")  # noqa: TRY301 - one way out
    except (AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:
        # NB: a private interface may be gone, or take other arguments, in the next torch.
        log.warning("weights_not_packed", extra={"reason": str(error)})
        return None
    return tools
