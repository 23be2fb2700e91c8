"""Which steps of a GPU are asked for: the thin grid of planner.md §4, and a full one to judge it by.

Standard library only: the catalogue's process imports this.
"""

from dataclasses import dataclass, replace
from typing import Final

from trimtab.planning.fingerprint import Fingerprint

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Decode points (sequences, context) and prefill points (chunk, cached)."""

    decode: Pairs
    prefill: Pairs


THIN: Final = Grid(
    decode=tuple((b, c) for b in (1, 8, 32, 128, 512) for c in (512, 2048, 8192)),
    prefill=(
        (128, 0),
        (512, 0),
        (1024, 0),
        (2048, 0),
        (4096, 0),
        (8192, 0),
        (512, 4096),
        (2048, 8192),
    ),
)
"""The note's grid for GPUs, and 512 sequences and chunks of 8,192: engines run that many."""

FULL: Final = Grid(
    decode=tuple(
        (b, c)
        for b in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
        for c in (256, 512, 1024, 2048, 4096, 8192, 16384)
    ),
    prefill=(
        *((n, 0) for n in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)),
        *((n, 4096) for n in (128, 512, 2048)),
        *((n, 8192) for n in (512, 2048, 8192)),
    ),
)
"""Four times as many points, those of `THIN` among them."""

GRIDS: Final = {"thin": THIN, "full": FULL}


def thinned(fingerprint: Fingerprint) -> Fingerprint:
    """Return a fingerprint of the full grid with the points of the thin one alone."""
    return replace(
        fingerprint,
        decode=tuple(p for p in fingerprint.decode if (p.batch, p.context) in THIN.decode),
        prefill=tuple(p for p in fingerprint.prefill if (p.chunk, p.cached) in THIN.prefill),
        mixed=(),
    )
