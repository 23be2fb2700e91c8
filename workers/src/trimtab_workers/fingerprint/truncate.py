"""A model's configuration cut to the depth that a fingerprint needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trimtab.planning.architecture import Architecture
    from trimtab_workers.fingerprint.grid import GridPoint

_SPARE_TOKENS = 64


def truncated(
    architecture: Architecture, *, depth: int, points: Iterable[GridPoint]
) -> dict[str, Any]:
    """Return the ``config.json`` of ``depth`` layers whose context covers every grid point."""
    longest = max(max(p.context, p.cached + p.chunk) for p in points) + _SPARE_TOKENS
    return architecture.to_hf_config(depth=depth, context_length=longest)
