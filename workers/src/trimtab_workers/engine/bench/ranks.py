"""`bench ranks`: a step in one process with one and two threads, and on two ranks with one each.

Random weights in the shape of Qwen2.5-0.5B cut to a few layers; the ways take turns, so that a busy
machine is equally busy for each. What a sum over ranks costs on CPU is in the difference.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import TYPE_CHECKING, Any, Final

import torch

from trimtab_workers.engine.bench import machine
from trimtab_workers.engine.measure import StepMeter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHAPE: Final[Mapping[str, Any]] = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
POINTS: Final[tuple[dict[str, int], ...]] = (
    {"batch": 1, "context": 256},
    {"batch": 8, "context": 256},
    {"chunk": 128},
)
WAYS: Final = {"1 thread": (1, 1), "2 threads": (2, 1), "2 ranks": (1, 2)}
_WARM_UP_STEPS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Print one JSON line per point: median milliseconds of each way, and the machine."""
    parser = argparse.ArgumentParser(prog="bench ranks", description=__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args(argv)
    config = {**SHAPE, "num_hidden_layers": given.layers}
    meters = {
        way: StepMeter(
            config,
            threads=threads,
            tensor_parallel_size=ranks,
            max_sequences=8,
            max_context=256,
            max_chunk=128,
        )
        for way, (threads, ranks) in WAYS.items()
    }
    try:
        for point in POINTS:
            row = {
                way: _median(found) for way, found in _turns(meters, point, given.repeats).items()
            }
            print(json.dumps({**point, "layers": given.layers, "milliseconds": row}))  # noqa: T201 - a command
    finally:
        meters["2 ranks"].close()
    print(json.dumps({"machine": machine.conditions()}))  # noqa: T201 - a command
    return 0


def _turns(
    meters: Mapping[str, StepMeter], point: Mapping[str, int], repeats: int
) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {way: [] for way in meters}
    for _ in range(_WARM_UP_STEPS + repeats):
        for way, meter in meters.items():
            # One process holds all meters, and torch's threads are the process's.
            torch.set_num_threads(WAYS[way][0])
            taken[way].append(meter.measure_step(**point))
    return {way: seconds[_WARM_UP_STEPS:] for way, seconds in taken.items()}


def _median(seconds: Sequence[float]) -> float:
    return round(1e3 * statistics.median(seconds), 2)
