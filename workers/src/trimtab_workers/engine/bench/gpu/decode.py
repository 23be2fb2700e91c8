"""`trimtab bench decode`: decode steps of Llama-3-8B's shape beside the time to read their bytes.

A step is whole: inputs, kernels, arg-max, and the wait for its tokens. The rate of reading is
measured in the same run. Target: at most 1.25 times that time, with graphs,
at batch 1, 2, 4 and 8 (engine.md §9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.bench.gpu.calibrate import memory_rates
from trimtab_workers.engine.bench.gpu.command import options, run
from trimtab_workers.engine.bench.gpu.rig import Rig, decode_plan
from trimtab_workers.engine.bench.gpu.roofline import (
    CONFIGURATIONS,
    decode_row,
    markdown_table,
    named_shape,
)
from trimtab_workers.engine.bench.gpu.timing import timed
from trimtab_workers.engine.bench.options import positive, positive_numbers
from trimtab_workers.engine.graphs import CudaGraphs, GraphCache

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from trimtab_workers.engine.device import CudaDevice

_COLUMNS = ["batch", "graphs", "median_s", "floor_s", "over_floor", "met", "tokens_per_second"]


def measure(device: CudaDevice, chosen: argparse.Namespace) -> dict[str, Any]:
    """Time steps of every batch size, eagerly and replayed."""
    shape = named_shape(chosen.shape)
    rates = memory_rates(device)
    rate = max(rates.values())
    context, most = chosen.context, max(chosen.batch)
    rig = Rig(
        device,
        shape,
        kv_tokens=most * (context + 32),
        max_context=context + 16,
        max_seqs=most,
        graphs=GraphCache(CudaGraphs(device), max_seqs=most),
    )
    graphs, rows = rig.runner.graphs, []
    for batch in chosen.batch:
        sequences = [rig.sequence([1] * context, computed=context - 1) for _ in range(batch)]
        plan = decode_plan(sequences)
        for replayed in (False, True):
            rig.runner.graphs = graphs if replayed else None
            step = timed(device, lambda plan=plan: rig.runner.execute(plan), inner=10)  # type: ignore[misc] # a default binds it
            rows.append(
                decode_row(
                    shape,
                    batch=batch,
                    context=context,
                    graphs=replayed,
                    step=step,
                    memory_rate=rate,
                )
            )
        rig.release(sequences)
    return {"shape": chosen.shape, **rates, "rows": rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    given = options("decode", "Decode steps beside the time that their bytes take to read.")
    given.add_argument("--shape", choices=sorted(CONFIGURATIONS), default="llama-3-8b")
    given.add_argument("--batch", type=positive_numbers, default=(1, 2, 4, 8))
    given.add_argument("--context", type=positive, default=1024, help="tokens of each sequence")
    return run(
        "decode",
        given,
        argv,
        measure=measure,
        markdown=lambda result: markdown_table(result["rows"], _COLUMNS),
    )
