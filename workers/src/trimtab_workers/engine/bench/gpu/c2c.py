"""`trimtab bench c2c`: **emulation** of a fast link: the host copies lie in the GPU's own memory.

Copies within the device take its memory's bandwidth from the kernels, which a real NVLink-C2C takes
from the host's; and they run on processors, not on a copy engine. So the figures are pessimistic.
The rate is throttled by spreading each layer over pieces with idle time between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from trimtab_workers.engine.bench.gpu.active import stream_rows
from trimtab_workers.engine.bench.gpu.command import options, run
from trimtab_workers.engine.bench.gpu.rig import Rig
from trimtab_workers.engine.bench.gpu.roofline import markdown_table, named_shape
from trimtab_workers.engine.bench.gpu.timing import timed
from trimtab_workers.engine.bench.options import positive_numbers
from trimtab_workers.engine.transfer_cuda import CudaTransfer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from trimtab_workers.engine.device import CudaDevice

_PIECE_BYTES: Final = 8 << 20
_COLUMNS = ["rate", "step", "alpha", "slots", "median_s", "resident_s", "predicted_s"]


def idle_seconds(*, piece_bytes: int, rate: float, own_rate: float) -> float:
    """Return how long to idle after a piece so that pieces flow at `rate`, never below 0."""
    return max(0.0, piece_bytes / rate - piece_bytes / own_rate)


def _spin(cycles: int) -> None:
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call] # noqa: SLF001 - torch's own tests use it


class ThrottledTransfer(CudaTransfer):
    """Loads from the device's own memory at a rate below its own.

    Attributes:
        rate: Bytes/s to emulate.
        own_rate: Bytes/s of a copy within the device.
        cycles_per_second: Of the kernel that idles.
    """

    rate = own_rate = cycles_per_second = 1.0

    def copy_in(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy in pieces with idle time after each."""
        for first in range(0, source.numel(), _PIECE_BYTES):
            piece = source[first : first + _PIECE_BYTES]
            target[first : first + _PIECE_BYTES].copy_(piece, non_blocking=True)
            idle = idle_seconds(piece_bytes=piece.numel(), rate=self.rate, own_rate=self.own_rate)
            _spin(int(idle * self.cycles_per_second))


def measure(device: CudaDevice, chosen: argparse.Namespace) -> dict[str, Any]:
    """Stream layers at each rate; the throttle's own accuracy is a figure too."""
    shape = named_shape("llama-3-8b")
    rig = Rig(device, shape, kv_tokens=3 * 8192, spare_slabs=2, max_context=2064)
    host = rig.host_copy(tuple(range(shape.layers)), place=device.place)
    transfer = ThrottledTransfer(
        device, arena=rig.arena, slab_bytes=rig.slab_bytes, assumed_link_rate=1e11
    )
    rig.transfer = transfer
    spare = torch.empty_like(host[0])
    transfer.own_rate = timed(device, lambda: spare.copy_(host[0])).rate(host.shape[1])
    cycles = 10_000_000
    transfer.cycles_per_second = cycles / timed(device, lambda: _spin(cycles)).median
    rows = []
    for gigabytes in chosen.rate:
        transfer.rate = gigabytes * 1e9
        one = timed(
            device,
            lambda: transfer.wait(transfer.load(host[0], slab=rig.slots[0], reason="load")),
        )
        found = stream_rows(device, rig, host=host, levels=chosen.alpha, transfer_s=one.median)
        rows += [{"rate": gigabytes, "measured_rate": one.rate(host.shape[1]), **r} for r in found]
    device.synchronize()
    return {
        "emulation": "host copies in device memory",
        "own_rate": transfer.own_rate,
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    given = options("c2c", "EMULATION of a fast link by copies within the GPU's memory.")
    given.add_argument("--rate", type=positive_numbers, default=(100, 200, 400), help="GB/s")
    given.add_argument("--alpha", type=positive_numbers, default=(1, 4, 8))
    return run(
        "c2c",
        given,
        argv,
        measure=measure,
        markdown=lambda result: (
            "Emulation, pessimistic.\n\n" + markdown_table(result["rows"], _COLUMNS)
        ),
    )
