"""The bytes behind the arena: one buffer, allocated once, whose addresses never change."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

_HUGE_PAGE_BYTES = 2 << 20


def allocate(size_bytes: int) -> torch.Tensor:
    """Return zeroed bytes on huge pages where the system grants them.

    Weights are streamed once per step; on 4 KiB pages the reader waits for address translations
    (docs/benchmarks/cpu-profile.md).
    """
    if size_bytes < _HUGE_PAGE_BYTES:
        return torch.zeros(size_bytes, dtype=torch.uint8)
    region = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # another system, a kernel without them
        region.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(region, dtype=torch.uint8)


def give_back() -> None:
    """Return freed memory to the system: the C library keeps what a removed model's tensors had."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def drop_pages(data: torch.Tensor) -> None:
    """Return the whole pages of contiguous bytes to the system; the address space stays taken.

    The pages read as zeros afterwards. Pages that the bytes share with others are kept.
    """
    first = -(-data.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (data.data_ptr() + data.numel() * data.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    if first >= end:
        return
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED
        )


class ArenaMemory:
    """One CPU buffer of `slabs` times `slab_bytes`."""

    __slots__ = ("_buffer", "slab_bytes")

    def __init__(self, *, slab_bytes: int, slabs: int) -> None:
        self.slab_bytes = slab_bytes
        self._buffer = allocate(slab_bytes * slabs)

    def flat(self, dtype: str) -> torch.Tensor:
        """Return the whole arena as one dimension of a dtype."""
        return self._buffer.view(TORCH_DTYPES[dtype])

    def home(self, slab: int, *, offset_bytes: int, size_bytes: int) -> torch.Tensor:
        """Return the bytes that begin `offset_bytes` into a slab."""
        start = slab * self.slab_bytes + offset_bytes
        return self._buffer[start : start + size_bytes]

    def bytes_from(self, slab: int, size_bytes: int) -> torch.Tensor:
        """Return so many bytes from the beginning of a slab on, into the slabs after it if need be."""
        start = slab * self.slab_bytes
        return self._buffer[start : start + size_bytes]

    def rows(self, block_bytes: int) -> torch.Tensor:
        """Return the arena as rows of one block of one layer, uint8."""
        return self._buffer.view(-1, block_bytes)

    def zero(self, slabs: Sequence[int]) -> None:
        """Clear slabs that become KV: stale bytes may decode as NaN, and 0·NaN = NaN."""
        for slab in slabs:
            self._buffer[slab * self.slab_bytes : (slab + 1) * self.slab_bytes].zero_()
