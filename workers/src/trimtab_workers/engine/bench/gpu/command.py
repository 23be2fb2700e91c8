"""What the GPU benchmarks' command lines share: options, the refusal, the result's head."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from trimtab_workers.engine.bench import machine
from trimtab_workers.engine.bench.options import emit, parser
from trimtab_workers.engine.device import CudaDevice, open_device
from trimtab_workers.engine.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence


def options(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with what every GPU benchmark takes."""
    given = parser(name, description)
    given.add_argument("--device", default="cuda:0", help="cuda or cuda:N")
    return given


def run(
    name: str,
    given: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    *,
    measure: Callable[[CudaDevice, argparse.Namespace], dict[str, Any]],
    markdown: Callable[[dict[str, Any]], str],
) -> int:
    """Parse, open the GPU, measure, print; 2 where no GPU answers."""
    chosen = given.parse_args(argv)
    try:
        device = open_device(chosen.device)
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command
        return 2
    if device is None:
        print(  # noqa: T201 - a command
            f"error: --device is {chosen.device!r}, but {name} measures a GPU. Give cuda or cuda:N.",
            file=sys.stderr,
        )
        return 2
    torch.cuda.set_device(device.place)
    began = time.monotonic()
    result = {"benchmark": name, **conditions(device), **measure(device, chosen)}
    result["seconds"] = round(time.monotonic() - began, 1)
    emit(result, kind=chosen.format, markdown=lambda: _page(result, markdown(result)))
    return 0


def conditions(device: CudaDevice) -> dict[str, Any]:
    """Return what a GPU figure depends on."""
    memory = device.memory()
    return {
        **machine.conditions(),
        "product": device.product,
        "processors": device.processors,
        "free_bytes_at_start": memory.free_bytes,
        "total_bytes": memory.total_bytes,
        "cuda_version": str(torch.version.cuda),
        "triton_version": machine.version("triton"),
    }


def _page(result: dict[str, Any], body: str) -> str:
    head = (
        f"{result['benchmark']}: {result['product']}, torch {result['torch_version']}, CUDA "
        f"{result['cuda_version']}, triton {result['triton_version']}, {result['seconds']} s"
    )
    return f"{head}\n\n{body}"
