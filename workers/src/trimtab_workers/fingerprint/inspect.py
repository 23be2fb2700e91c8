"""The inspection Job: says what a model is, from its headers alone (contracts §3).

``python -m trimtab_workers.fingerprint.inspect --path DIR_OR_FILE`` writes the message to
``TRIMTAB_TERMINATION_LOG`` and exits with 0 whenever it reached a verdict. What is read and refused
is the engine's to decide, so that a model that passes is one that a worker can load.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.planning.architecture import Architecture, UnsupportedArchitectureError
from trimtab_workers.engine.errors import CheckpointError, UnsupportedModelError
from trimtab_workers.engine.weights.inspect import inspect_checkpoint
from trimtab_workers.fingerprint import machine
from trimtab_workers.termination import fitting

if TYPE_CHECKING:
    from collections.abc import Sequence


def inspect(path: Path) -> dict[str, Any]:
    """Return the message about the model at a path; a refusal is a message too."""
    try:
        return _verdict(path)
    except UnsupportedArchitectureError as error:
        refusal: tuple[str, str] = (UnsupportedModelError.reason, f"{path}: {error}")
    except CheckpointError as error:
        refusal = (error.reason, str(error))
    reason, message = refusal
    return {"v": 1, "ok": False, "reason": reason, "message": message[:3000]}


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect, log, and write the message."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="a GGUF file or a directory")
    arguments = parser.parse_args(argv)
    message = inspect(arguments.path)
    machine.log("inspected", level="info" if message["ok"] else "error", **message)
    machine.report(fitting(message))
    return 0


def _verdict(path: Path) -> dict[str, Any]:
    found = inspect_checkpoint(path)
    architecture = Architecture.from_hf_config(found.hf_config)
    return {
        "v": 1,
        "ok": True,
        "family": architecture.family,
        "architecture": architecture.to_dict(),
        "depth": found.depth,
        "precision": found.precision,
        "quantization": found.quantization,
        "format": found.format,
        "parameters": found.parameters,
        "weightBytes": found.weight_bytes,
        "contextLength": found.context_length,
        "chatTemplate": found.chat_template,
        "source": found.source[:32],
        "cpuModel": machine.cpu_model(),
        "cpus": machine.cpus(),
    }


if __name__ == "__main__":
    raise SystemExit(main())
