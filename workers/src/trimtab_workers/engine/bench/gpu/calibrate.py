"""`trimtab bench calibrate`: the constants of engine.md §1, measured on one GPU.

Link by direction and size, alone and both ways; memory; what a copy costs beside a product and
beside reading; compaction; blocks layer by layer in a slab beside blocks across layers; pinning.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import torch

from trimtab_workers.engine.bench.gpu.command import options, run
from trimtab_workers.engine.bench.gpu.rig import Rig
from trimtab_workers.engine.bench.gpu.roofline import (
    Spread,
    interference,
    markdown_table,
    named_shape,
)
from trimtab_workers.engine.bench.gpu.timing import timed
from trimtab_workers.engine.kernels.decode import decode_attention

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from trimtab_workers.engine.device import CudaDevice, Stream

COPY_SIZES: Final = (*(64 << 10 << (2 * step) for step in range(7)), 512 << 20)
_SAMPLE_BYTES: Final = 64 << 20
_MEMORY_BYTES: Final = 4 << 30
_GEMM: Final = (2048, 4096, 28672)


def copy_rows(device: CudaDevice) -> list[dict[str, Any]]:
    """Time copies of one size after another: in, out, and both at once on two streams."""
    most = max(COPY_SIZES)
    inward, outward = device.new_stream(), device.new_stream()
    near = [torch.empty(most, dtype=torch.uint8, device=device.place) for _ in range(2)]
    far = [torch.empty(most, dtype=torch.uint8) for _ in range(2)]
    rows = []
    with device.pinned(far[0]), device.pinned(far[1]):
        for size in COPY_SIZES:
            inner = max(1, _SAMPLE_BYTES // size)

            def copy_in(size: int = size) -> None:
                with device.on(inward):
                    near[0][:size].copy_(far[0][:size], non_blocking=True)

            def copy_out(size: int = size) -> None:
                with device.on(outward):
                    far[1][:size].copy_(near[1][:size], non_blocking=True)

            into = timed(device, copy_in, stream=inward, inner=inner)
            out = timed(device, copy_out, stream=outward, inner=inner)
            both = duplex(device, (inward, outward), (copy_in, copy_out), inner=inner)
            rows.append(
                {
                    "size_bytes": size,
                    "h2d_rate": into.rate(size),
                    "d2h_rate": out.rate(size),
                    "duplex_rate": both.rate(2 * size),
                }
            )
    return rows


def duplex(
    device: CudaDevice, streams: tuple[Stream, Stream], copies: tuple[Any, Any], *, inner: int
) -> Spread:
    """Time both directions at once: the later end counts."""

    def both() -> None:
        start = device.current_stream().record_event(device.new_event())
        for stream, copy in zip(streams, copies, strict=True):
            stream.wait_event(start)
            for _ in range(inner):
                copy()
        for stream in streams:
            device.current_stream().wait_event(stream.record_event(device.new_event()))

    whole = timed(device, both)
    return Spread(
        median=whole.median / inner, least=whole.least / inner, greatest=whole.greatest / inner
    )


def memory_rates(device: CudaDevice) -> dict[str, float]:
    """Return bytes/s of reading (a sum) and of copying within the device; reads and writes count."""
    source = torch.empty(_MEMORY_BYTES // 4, dtype=torch.float32, device=device.place).normal_()
    target = torch.empty_like(source)
    return {
        "read_rate": timed(device, source.sum).rate(_MEMORY_BYTES),
        "copy_rate": timed(device, lambda: target.copy_(source)).rate(2 * _MEMORY_BYTES),
    }


def beside_copies(device: CudaDevice) -> dict[str, float]:
    """Return how many times as long a product and a read take while the link is busy."""
    rows, inner, outer = _GEMM

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=device.place)

    x, weight, vector = random(rows, inner), random(outer, inner), random(1, inner)
    side = device.new_stream()
    near = torch.empty(max(COPY_SIZES), dtype=torch.uint8, device=device.place)
    far = torch.empty(max(COPY_SIZES), dtype=torch.uint8)

    def product() -> None:
        torch.nn.functional.linear(x, weight)

    def read() -> None:
        torch.nn.functional.linear(vector, weight)

    result = {}
    with device.pinned(far):
        for name, work in (("product", product), ("read", read)):
            alone = timed(device, work, inner=20)

            def crowded(work: Any = work) -> None:
                with device.on(side):
                    near.copy_(far, non_blocking=True)
                for _ in range(20):
                    work()

            together = timed(device, crowded)
            per_call = Spread(
                median=together.median / 20,
                least=together.least / 20,
                greatest=together.greatest / 20,
            )
            result[f"{name}_beside_copy"] = interference(alone, per_call)
            result[f"{name}_seconds"] = alone.median
    return result


def cache_layouts(device: CudaDevice, rig: Rig) -> dict[str, float]:
    """Return seconds of copying a whole slab of blocks, and of attention over blocks in two orders.

    Ours keeps a layer's blocks side by side in a slab; the other keeps a block's layers side by
    side (kvcached's, engine.md §2), so that a layer reads one row in `depth`.
    """
    first, step = rig.shape.layers * rig.layout.rows_per_slab, 2 * rig.layout.rows_per_slab
    pairs = [(first + b, first + step + b) for b in range(rig.layout.blocks_per_slab)]
    compaction = timed(device, lambda: rig.transfer.copy_blocks(rig.layout, pairs))
    shape, batch, blocks = rig.shape, 8, 64
    view = rig.layout.view(rig.arena.view(torch.bfloat16), 0)
    queries = torch.randn(
        batch, shape.heads, shape.head_dim, dtype=torch.bfloat16, device=device.place
    )
    lengths = torch.full((batch,), blocks * 16, dtype=torch.int32, device=device.place)
    near = torch.arange(batch * blocks, device=device.place).view(batch, blocks) + first

    def attend(slots: torch.Tensor) -> Spread:
        return timed(
            device,
            lambda: decode_attention(queries, view=view, slots=slots, lengths=lengths, splits=2),
            inner=50,
        )

    return {
        "compaction_s": compaction.median,
        "attention_layer_major_s": attend(near).median,
        "attention_cross_layer_s": attend((near - first) * shape.layers + first).median,
    }


def pin_seconds(device: CudaDevice, *, size_bytes: int = 4 << 30) -> float:
    """Return seconds per GB of pinning fresh pages."""
    buffer = torch.zeros(size_bytes, dtype=torch.uint8)
    began = time.perf_counter()
    with device.pinned(buffer):
        return (time.perf_counter() - began) / (size_bytes / 1e9)


def measure(device: CudaDevice, _: argparse.Namespace) -> dict[str, Any]:
    """Measure all."""
    result: dict[str, Any] = {
        "copies": copy_rows(device),
        **memory_rates(device),
        **beside_copies(device),
        "pin_s_per_gb": pin_seconds(device),
    }
    shape = named_shape("llama-3-8b", layers=8)
    rig = Rig(device, shape, kv_tokens=8 * 64 * 16 * 9, max_context=1040)
    return result | cache_layouts(device, rig)


def markdown(result: dict[str, Any]) -> str:
    """Return the link's table, then the other figures."""
    table = markdown_table(result["copies"], ["size_bytes", "h2d_rate", "d2h_rate", "duplex_rate"])
    single = [
        f"- {name}: {value:.4g}"
        for name, value in result.items()
        if isinstance(value, float) and name != "seconds"
    ]
    return "\n".join([table, "", *single])


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    given = options("calibrate", "Link, memory and interference of one GPU.")
    return run("calibrate", given, argv, measure=measure, markdown=markdown)
