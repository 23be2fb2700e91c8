"""`trimtab bench active`: steps with streamed layers beside the formula, and the slot rule.

Levels times {decode, a 512-token chunk, a 2,048-token chunk} times one and two slots. The hidden
bound and the rule should hold within 10 % (engine.md §9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.bench.gpu.command import options, run
from trimtab_workers.engine.bench.gpu.rig import Rig, decode_plan, prefill_plan
from trimtab_workers.engine.bench.gpu.ring import Ring
from trimtab_workers.engine.bench.gpu.roofline import (
    markdown_table,
    named_shape,
    streamed_row,
)
from trimtab_workers.engine.bench.gpu.timing import timed
from trimtab_workers.engine.bench.options import positive_numbers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    import torch

    from trimtab_workers.engine.device import CudaDevice
    from trimtab_workers.engine.scheduler import StepPlan

_COLUMNS = [
    "step",
    "alpha",
    "slots",
    "median_s",
    "resident_s",
    "hidden_bound_layers",
    "predicted_s",
    "measured_over_predicted",
    "within_tolerance",
    "rule_takes_slots",
]
_CONTEXT = 1024
_BATCH = 8


def plans(rig: Rig) -> Mapping[str, StepPlan]:
    """Return the steps that are timed."""
    decodes = [rig.sequence([1] * _CONTEXT, computed=_CONTEXT - 1) for _ in range(_BATCH)]
    prompt = rig.sequence([1] * 2048)
    return {
        f"decode {_BATCH} x {_CONTEXT}": decode_plan(decodes),
        "chunk 512": prefill_plan(prompt, first=0, count=512),
        "chunk 2048": prefill_plan(prompt, first=0, count=2048),
    }


def stream_rows(
    device: CudaDevice, rig: Rig, *, host: torch.Tensor, levels: Sequence[int], transfer_s: float
) -> list[dict[str, Any]]:
    """Time every step at every level; two loads ahead of the first are part of none."""
    rows = []
    for name, plan in plans(rig).items():
        resident = timed(device, lambda plan=plan: rig.runner.logits(plan))  # type: ignore[misc] # a default binds it
        for alpha in levels:
            for slots in (1, 2):
                with Ring(rig, alpha=alpha, slots=slots, host=host):
                    step = timed(device, lambda plan=plan: rig.runner.logits(plan))  # type: ignore[misc] # the same
                row = streamed_row(
                    alpha=alpha,
                    slots=slots,
                    step=step,
                    resident=resident,
                    transfer_s=transfer_s,
                    layers=rig.shape.layers,
                )
                rows.append({"step": name, **row})
    return rows


def measure(device: CudaDevice, chosen: argparse.Namespace) -> dict[str, Any]:
    """Stream layers of Llama-3-8B's shape over the link."""
    shape = named_shape("llama-3-8b")
    rig = Rig(device, shape, kv_tokens=3 * 8192, spare_slabs=2, max_context=2064)
    host = rig.host_copy(tuple(range(shape.layers)))
    with device.pinned(host):
        transfer = timed(
            device,
            lambda: rig.transfer.wait(rig.transfer.load(host[0], slab=rig.slots[0], reason="load")),
        )
        rows = stream_rows(device, rig, host=host, levels=chosen.alpha, transfer_s=transfer.median)
        device.synchronize()
    return {
        "layer_transfer_s": transfer.median,
        "link_rate": transfer.rate(host.shape[1]),
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    given = options("active", "Steps with streamed layers beside the formula.")
    given.add_argument("--alpha", type=positive_numbers, default=(1, 2, 4, 8))
    return run(
        "active",
        given,
        argv,
        measure=measure,
        markdown=lambda result: markdown_table(result["rows"], _COLUMNS),
    )
