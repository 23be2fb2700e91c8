"""What a model of some depth really costs in the engine: memory, KV tokens, seconds.

For `trimtab bench planner-memory` and `planner-cost`: a question on standard input, the answer on
standard output, both JSON. One question per process, because what a process once held stays resident
and what it once imported is there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.fingerprint import machine
from trimtab_workers.fingerprint.grid import GridPoint, grid_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trimtab_workers.fingerprint.bench import EngineBench

_KINDS: Final = ("decode", "prefill", "mixed")
_NAME: Final = "probed"


def main() -> int:
    """Answer the question on standard input."""
    question = json.load(sys.stdin)
    json.dump(_ANSWERS[question["what"]](question), sys.stdout)
    return 0


def memory_row(question: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint's memory row of one depth: weights, activation and everything else."""
    from trimtab_workers.fingerprint.bench import EngineBench  # noqa: PLC0415 - torch

    largest = GridPoint(chunk=int(question["chunk"]))
    bench = EngineBench(
        question["config"],
        dtype=question["precision"],
        threads=question["threads"],
        points=(largest,),
        cache_bytes=0,
    )
    depth, weights, activation, others = bench.memory_row(chunk=largest.chunk)
    bench.close()
    return {"depth": depth, "weights": weights, "activation": activation, "non_torch": others}


def arena(question: Mapping[str, Any]) -> dict[str, Any]:
    """Start an engine with so many bytes of arena; return the KV tokens it can use and what is resident."""
    from trimtab_workers.engine.backend import CpuBackend  # noqa: PLC0415 - torch
    from trimtab_workers.engine.config import (  # noqa: PLC0415 - the same
        BLOCK_TOKENS,
        EngineConfig,
        ModelSpec,
        RandomWeights,
        dtype_of,
    )
    from trimtab_workers.engine.engine import Engine  # noqa: PLC0415 - the same

    backend = CpuBackend()
    engine = Engine(
        EngineConfig(
            models=(
                ModelSpec(
                    name=_NAME,
                    path=Path(),
                    dtype=dtype_of(question["precision"], where="the probe"),
                    random=RandomWeights(hf_config=question["config"]),
                ),
            ),
            threads=question["threads"],
            memory_bytes=question["arenaBytes"],
            max_model_len=question["maxModelLen"],
        ),
        backend=backend,
    )
    engine.load()
    scheduler = engine.tenant(_NAME).scheduler
    if scheduler is None:
        raise RuntimeError(f"The probed model did not load: {engine.tenant(_NAME).error}.")
    # A cache that was used is resident: what the engine leaves untouched is not.
    backend.memory.zero(tuple(scheduler.blocks.slabs))
    blocks = scheduler.blocks.capacity
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
    return {
        "kv_tokens": (blocks - scheduler.reserve) * BLOCK_TOKENS,
        "arena_bytes": engine.arena_bytes,
        "resident_bytes": resident,
    }


def steps(question: Mapping[str, Any]) -> dict[str, Any]:
    """Run a grid's steps so many times each, at every depth asked for; return seconds by part.

    With one thread seconds are of computing, which on an idle machine is all there is, else of the
    clock. ``start`` is what importing took; parts include arranging sequences and emptying caches;
    ``stepping`` is the steps alone.
    """
    from trimtab_workers.fingerprint.bench import EngineBench  # noqa: PLC0415 - torch

    started = time.process_time()
    clock = time.process_time if question["threads"] == 1 else time.perf_counter
    points = grid_of(question["grid"])
    began = clock()
    bench = EngineBench(
        question["config"],
        dtype=question["precision"],
        threads=question["threads"],
        points=points,
        cache_bytes=machine.cache_bytes() if question["cold"] else 0,
    )
    loaded = clock() - began
    depths = question["depths"]
    seconds, stepping = _timed(
        bench, points, depths=depths, repeats=question["repeats"], clock=clock
    )
    bench.close()
    return {"start": started, "load": loaded, **seconds, "stepping": stepping}


def _timed(
    bench: EngineBench,
    points: Sequence[GridPoint],
    *,
    depths: Sequence[int],
    repeats: int,
    clock: Callable[[], float],
) -> tuple[dict[str, float], dict[str, float]]:
    for depth in depths:
        bench.step_seconds(points[0], depth=depth)
    seconds = dict.fromkeys(_KINDS, 0.0)
    stepping = dict.fromkeys(_KINDS, 0.0)
    for point in points:
        began = clock()
        for _ in range(repeats):
            for depth in depths:
                stepping[point.kind] += bench.step_seconds(point, depth=depth)
        seconds[point.kind] += clock() - began
    return seconds, stepping


_ANSWERS: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "memory": memory_row,
    "arena": arena,
    "steps": steps,
}


if __name__ == "__main__":
    raise SystemExit(main())
