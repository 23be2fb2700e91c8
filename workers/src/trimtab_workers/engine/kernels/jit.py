"""The one place where kernels meet Triton's untyped decorator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton

if TYPE_CHECKING:
    from collections.abc import Callable


def kernel(function: Callable[..., None]) -> Any:
    """Compile a function for the GPU at its first launch, `kernel[grid](…)`.

    With TRITON_INTERPRET=1 in the environment while triton is imported and this runs, the kernel
    is interpreted on CPU instead. Triton resolves annotations too: only names of its own will do.
    """
    return triton.jit(function)


def power_of_two(size: int) -> int:
    """Return the least power of two that is not below a size: what Triton's ranges need."""
    return 1 << max(0, size - 1).bit_length()
