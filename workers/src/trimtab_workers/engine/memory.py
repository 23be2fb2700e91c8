"""The bytes behind the arena: one buffer, allocated once, whose addresses never change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class ArenaMemory:
    """One CPU buffer of `slabs` times `slab_bytes`."""

    __slots__ = ("_buffer", "slab_bytes")

    def __init__(self, *, slab_bytes: int, slabs: int) -> None:
        self.slab_bytes = slab_bytes
        self._buffer = torch.empty(slab_bytes * slabs, dtype=torch.uint8)

    def flat(self, dtype: str) -> torch.Tensor:
        """Return the whole arena as one dimension of a dtype."""
        return self._buffer.view(TORCH_DTYPES[dtype])

    def home(self, slab: int, *, offset_bytes: int, size_bytes: int) -> torch.Tensor:
        """Return the bytes that begin `offset_bytes` into a slab."""
        start = slab * self.slab_bytes + offset_bytes
        return self._buffer[start : start + size_bytes]

    def zero(self, slabs: Sequence[int]) -> None:
        """Clear slabs that become KV: stale bytes may decode as NaN, and 0·NaN = NaN."""
        for slab in slabs:
            self._buffer[slab * self.slab_bytes : (slab + 1) * self.slab_bytes].zero_()
