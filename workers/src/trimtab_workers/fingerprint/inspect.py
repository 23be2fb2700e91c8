"""The inspection Job: reads a model's headers, never its weights, and says what it is.

``python -m trimtab_workers.fingerprint.inspect --path DIR_OR_FILE`` writes contracts §3's message to
``TRIMTAB_TERMINATION_LOG`` and exits with 0 whenever it reached a verdict.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab.planning.architecture import Architecture, UnsupportedArchitectureError
from trimtab.planning.memory import weight_bytes
from trimtab_workers.engine.config import ModelSpec
from trimtab_workers.engine.errors import CheckpointError, UnsupportedModelError
from trimtab_workers.engine.weights.gguf import BLOCK_SIZES
from trimtab_workers.engine.weights.gguf_header import read_header
from trimtab_workers.engine.weights.hf import read_json, read_safetensors_header, safetensors_files
from trimtab_workers.engine.weights.store import open_checkpoint, resolve
from trimtab_workers.fingerprint import machine

if TYPE_CHECKING:
    from collections.abc import Sequence

_MESSAGE_BYTES: Final = 4096
_HASHED_BYTES: Final = 1 << 20
_FLOATS: Final = ("F32", "F16", "BF16", "F64")


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
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > _MESSAGE_BYTES:
        raise RuntimeError(
            f"The inspection message has {len(text.encode())} bytes, more than {_MESSAGE_BYTES}. "
            "This is a bug; please report it with the model's config.json."
        )
    machine.report(text)
    return 0


def _verdict(path: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(ModelSpec(name="inspected", path=path))
    try:
        architecture = Architecture.from_hf_config(checkpoint.hf_config)
        files = resolve(path)
        gguf = files if files.is_file() else None
        kinds = _gguf_kinds(gguf) if gguf else _safetensors_kinds(files)
        precision = _precision(kinds)
        depth = checkpoint.shape.layers
        return {
            "v": 1,
            "ok": True,
            "family": architecture.family,
            "architecture": architecture.to_dict(),
            "depth": depth,
            "precision": precision,
            "quantization": _quantization(kinds),
            "format": "gguf" if gguf else "safetensors",
            "parameters": checkpoint.shape.parameters,
            "weightBytes": weight_bytes(architecture, depth=depth, precision=precision),
            "contextLength": checkpoint.shape.max_positions,
            "chatTemplate": _chat_template(checkpoint.gguf_metadata, files),
            "source": _source(files),
            "cpuModel": machine.cpu_model(),
            "cpus": machine.cpus(),
        }
    finally:
        checkpoint.close()


def _gguf_kinds(path: Path) -> Counter[str]:
    """Return elements by type of the matrices: norms are kept in F32 everywhere."""
    kinds: Counter[str] = Counter()
    for tensor in read_header(path).tensors.values():
        if len(tensor.shape) > 1:
            rows, columns = tensor.shape[0], tensor.shape[-1]
            kinds[BLOCK_SIZES[tensor.kind][0]] += rows * columns
    return kinds


def _safetensors_kinds(directory: Path) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for file in safetensors_files(directory):
        for entry in read_safetensors_header(file).values():
            shape = entry.get("shape") or [1]
            if len(shape) > 1:
                kinds[str(entry["dtype"])] += shape[0] * shape[-1]
    return kinds


def _precision(kinds: Counter[str]) -> str:
    """Return the precision in which the engine holds these weights without asking further.

    Quantised GGUF is dequantised to bf16, whose error is far below the quantisation's; fp16 is held
    as bf16 as well, since CPUs compute in bf16.
    """
    usual = kinds.most_common(1)[0][0] if kinds else "BF16"
    return "fp32" if usual in {"F32", "F64"} else "bf16"


def _quantization(kinds: Counter[str]) -> str | None:
    quantised = Counter({k: n for k, n in kinds.items() if k not in _FLOATS})
    return quantised.most_common(1)[0][0] if quantised else None


def _chat_template(gguf: Any, files: Path) -> bool:
    if gguf is not None:
        return bool(gguf.get("tokenizer.chat_template"))
    config = files / "tokenizer_config.json"
    if (files / "chat_template.jinja").is_file():
        return True
    return config.is_file() and bool(read_json(config).get("chat_template"))


def _source(files: Path) -> str:
    """Return a digest of names, sizes and headers: what changes when the model is replaced."""
    digest = hashlib.sha256()
    paths = [files] if files.is_file() else [files / "config.json", *safetensors_files(files)]
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(_HASHED_BYTES))
    return digest.hexdigest()[:32]


if __name__ == "__main__":
    raise SystemExit(main())
