"""`trimtab bench exact`: streamed layers give the resident model's logits, bit for bit.

One and two slots, every level, NaN in a slot before each load, chunked prompts and decodes of a
fixed shape. The last line suppresses the copies and must differ: a check that cannot fail is none.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from trimtab_workers.engine.bench.gpu.command import options, run
from trimtab_workers.engine.bench.gpu.rig import Rig, decode_plan, prefill_plan
from trimtab_workers.engine.bench.gpu.ring import Ring
from trimtab_workers.engine.bench.gpu.roofline import markdown_table, named_shape
from trimtab_workers.engine.bench.options import positive

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from trimtab_workers.engine.device import CudaDevice

_PROMPT = 200
_CHUNK = 128
_SEQUENCES = 3


def answer(rig: Rig, *, tokens: int) -> torch.Tensor:
    """Compute prompts and some greedy tokens; return every step's logits on the host."""
    sequences, seen = [], []
    for seed in range(_SEQUENCES):
        sequence = rig.sequence([(7 * i + seed) % rig.shape.vocab for i in range(_PROMPT + seed)])
        sequences.append(sequence)
        for first in range(0, len(sequence.tokens), _CHUNK):
            count = min(_CHUNK, len(sequence.tokens) - first)
            logits, ends = rig.runner.logits(prefill_plan(sequence, first=first, count=count))
        if ends:
            seen.append(logits.cpu())
            sequence.tokens.append(int(seen[-1].argmax()))
    for _ in range(tokens):
        logits, _ends = rig.runner.logits(decode_plan(sequences))
        seen.append(logits.cpu())
        for sequence, token in zip(sequences, seen[-1].argmax(-1).tolist(), strict=True):
            sequence.tokens.append(token)
            while len(sequence.blocks) < sequence.blocks_for(len(sequence.tokens)):
                sequence.blocks += rig.blocks.allocate(1) or []
    rig.release(sequences)
    return torch.cat(seen)


def compare(rig: Rig, *, host: torch.Tensor, tokens: int) -> Iterator[dict[str, Any]]:
    """Compare every level and number of slots with the resident model."""
    depth = rig.shape.layers
    resident = answer(rig, tokens=tokens)
    levels = [(alpha, slots) for slots in (1, 2) for alpha in range(depth - slots + 1)]
    for alpha, slots, suppress in [*((a, s, False) for a, s in levels), (1, 1, True)]:
        before = dict(rig.transfer.moved_bytes)
        ring = Ring(rig, alpha=alpha, slots=slots, host=host, poison=True, suppress=suppress)
        with ring:
            streamed = answer(rig, tokens=tokens)
        moved = rig.transfer.moved_bytes.get(("h2d", "stream"), 0)
        yield {
            "alpha": alpha,
            "slots": slots,
            "suppressed": suppress,
            "equal": bool(torch.equal(streamed, resident)),
            "bytes": moved - before.get(("h2d", "stream"), 0),
            "expected_bytes": 0 if suppress else expected_bytes(ring, host=host, tokens=tokens),
        }


def expected_bytes(ring: Ring, *, host: torch.Tensor, tokens: int) -> int:
    """Bytes that a run must move: every streamed layer in every pass, and the slots filled first."""
    chunks = sum(-(-(_PROMPT + seed) // _CHUNK) for seed in range(_SEQUENCES))
    loads = len(ring.streamed) * (chunks + tokens) + (ring.slots if ring.streamed else 0)
    return loads * host.shape[1]


def passed(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether all levels are exact and moved what they must, and the suppressed run differs."""
    return all(
        row["equal"] is not row["suppressed"] and row["bytes"] == row["expected_bytes"]
        for row in rows
    )


def measure(device: CudaDevice, chosen: argparse.Namespace) -> dict[str, Any]:
    """Compare on a model of some layers."""
    shape = named_shape("llama-3-8b", layers=chosen.layers)
    rig = Rig(device, shape, kv_tokens=_SEQUENCES * 512, spare_slabs=2, max_context=512)
    host = rig.host_copy(tuple(range(shape.layers)))
    with contextlib.ExitStack() as stack:
        stack.enter_context(device.pinned(host))
        rows = list(compare(rig, host=host, tokens=chosen.tokens))
        device.synchronize()
    return {"layers": chosen.layers, "rows": rows, "passed": passed(rows)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    given = options("exact", "Streamed layers beside the resident model, bit for bit.")
    given.add_argument("--layers", type=positive, default=8, help="depth; 8 are 3.5 GB")
    given.add_argument("--tokens", type=positive, default=8, help="decode steps")
    columns = ["alpha", "slots", "suppressed", "equal", "bytes", "expected_bytes"]
    return run(
        "exact",
        given,
        argv,
        measure=measure,
        markdown=lambda result: (
            markdown_table(result["rows"], columns) + f"\n\npassed: {result['passed']}"
        ),
    )
