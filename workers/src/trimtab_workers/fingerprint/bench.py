"""Runs a fingerprint's steps in the engine, with caches as cold as in the full model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trimtab_workers.engine.measure import StepMeter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab_workers.fingerprint.grid import GridPoint

# A cache that evicts the oldest line is surely replaced by twice its size.
_CACHE_MULTIPLE = 2


class ColdCaches:
    """Replaces what the CPU's caches hold by reading a buffer of twice their size.

    A layer of 7 MB would otherwise stay in a cache of 32 MB from step to step and look several
    times as fast as it is between 29 others. Reading, not writing: dirty lines would be written back
    during the measured step.
    """

    def __init__(self, cache_bytes: int) -> None:
        self._buffer = torch.ones(_CACHE_MULTIPLE * cache_bytes // 4)

    def __call__(self) -> None:
        """Read the buffer."""
        self._buffer.sum()


class ComputeClock:
    """Seconds of computing by this process, for steps of one thread.

    A step waits for nothing, so on an idle machine this equals wall time; on a busy one it leaves out
    the turns that the kernel gave to others, which would otherwise be read as the model's time.
    """

    def now(self) -> float:
        """Return seconds since an arbitrary start."""
        return time.process_time()


class EngineBench:
    """Steps of a random model of ``1 + distance`` layers, or fewer of them."""

    def __init__(
        self,
        hf_config: Mapping[str, Any],
        *,
        dtype: str,
        threads: int,
        tensor_parallel_size: int = 1,
        points: Sequence[GridPoint],
        cache_bytes: int,
    ) -> None:
        ranks = tensor_parallel_size
        # A rank waits for the others, so only alone is computing all that a step takes.
        self._meter = StepMeter(
            hf_config,
            dtype=dtype,
            threads=threads // ranks,
            tensor_parallel_size=ranks,
            max_sequences=max(1, *(p.batch for p in points)),
            max_context=max(max(p.context, p.cached + p.chunk) for p in points),
            max_chunk=max(1, *(p.chunk for p in points)),
            clock=ComputeClock() if threads == 1 else None,
            prepare=self._cool if cache_bytes else None,
        )
        self._ranks = ranks
        self._cache_bytes = cache_bytes
        self._caches = ColdCaches(cache_bytes) if cache_bytes else None

    def _cool(self) -> None:
        self._meter.engine.ranks.empty_caches(_CACHE_MULTIPLE * self._cache_bytes)
        if self._caches is not None:
            self._caches()

    def close(self) -> None:
        """End the other ranks, if there are any."""
        self._meter.close()

    def step_seconds(self, point: GridPoint, *, depth: int) -> float:
        """Run one step and return how long it took."""
        return self._meter.measure_step(
            point.batch,
            max(1, point.context),
            chunk=point.chunk,
            cached=point.cached,
            layers=depth,
        )

    def memory_row(self, *, chunk: int) -> tuple[int, int, int, int]:
        """Return depth and bytes of weights, activation and everything else.

        Everything else is what was resident before the profiler was loaded, which no worker loads.
        """
        self._meter.measure_step(chunk=chunk)
        resident = _resident_bytes()
        row = self._meter.memory(chunk=chunk)
        known = self._meter.engine.arena_bytes + row.weights // self._ranks
        others = max(0, min(row.non_torch, self._ranks * (resident - known)))
        return row.depth, row.weights, row.activation, others


def _resident_bytes() -> int:
    """Return the process's resident bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096
