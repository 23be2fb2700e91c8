"""What a checkpoint is, from its headers alone: what the inspection Job reports (contracts §3).

Imports neither torch nor gguf, and reads no weights.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.planning.precision import value_bytes
from trimtab_workers.engine.errors import ModelCorruptError, UnsupportedModelError
from trimtab_workers.engine.models.names import tensor_shapes
from trimtab_workers.engine.tokenizer import check_gguf_tokenizer
from trimtab_workers.engine.weights.gguf import BLOCK_SIZES, GgufCheckpoint
from trimtab_workers.engine.weights.hf import HfCheckpoint, read_json
from trimtab_workers.engine.weights.store import guarded, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trimtab_workers.engine.models.shape import LlamaShape

_FULL_PRECISION = {"F32", "F16", "BF16", "F64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A sound checkpoint that this engine can serve.

    Attributes:
        precision: How its weights are served: `bf16` or `fp32`.
        quantization: The most common block format of a quantised file, else None.
        weight_bytes: Bytes of all weights at `precision`.
        source: Digest of file names, sizes and headers; changes when the checkpoint does.
        hf_config: Canonical HF-style configuration; `shape.from_hf_config` reads it.
    """

    family: str
    depth: int
    parameters: int
    weight_bytes: int
    precision: str
    quantization: str | None
    format: str
    context_length: int
    chat_template: bool
    source: str
    hf_config: Mapping[str, Any]


def inspect_checkpoint(path: Path) -> Inspection:
    """Read the headers of whatever lies at a path.

    Args:
        path: A GGUF file, a directory with one, or a directory with safetensors.

    Raises:
        ModelNotFoundError: Nothing usable is there.
        ModelCorruptError: It is cut, damaged or inconsistent.
        UnsupportedModelError: It is sound, but this engine cannot serve it.
    """
    found = resolve(path)
    with guarded(found):
        return _gguf(found) if found.is_file() else _directory(found)


def _gguf(path: Path) -> Inspection:
    checkpoint = GgufCheckpoint(path)
    header = checkpoint.header
    found = {
        name: header.tensors[checkpoint.gguf_name(name)].shape
        for name in tensor_shapes(checkpoint.shape)
        if checkpoint.gguf_name(name) in header.tensors
    }
    _check_tensors(checkpoint.shape, found, str(path))
    check_gguf_tokenizer(header.metadata, where=str(path))
    kinds = Counter[str]()
    for tensor in header.tensors.values():
        if len(tensor.shape) > 1:
            kinds[BLOCK_SIZES[tensor.kind][0]] += math.prod(tensor.shape)
    common = kinds.most_common(1)[0][0] if kinds else "F32"
    digest = hashlib.sha256(f"{path.name}:{header.file_bytes}".encode())
    with path.open("rb") as stream:
        digest.update(stream.read(header.header_bytes))
    return _inspection(
        checkpoint.shape,
        precision="fp32" if common in {"F32", "F64"} else "bf16",
        quantization=None if common in _FULL_PRECISION else common,
        kind="gguf",
        chat_template=isinstance(header.metadata.get("tokenizer.chat_template"), str),
        source=digest.hexdigest(),
    )


def _directory(path: Path) -> Inspection:
    checkpoint = HfCheckpoint(path)
    shapes = {name: tuple(entry["shape"]) for name, entry in checkpoint.headers.items()}
    _check_tensors(checkpoint.shape, shapes, str(path))
    if not (path / "tokenizer.json").is_file():
        raise UnsupportedModelError(
            f"{path}: there is no tokenizer.json, the only tokenizer format that is read from a "
            "directory. Convert the tokenizer with transformers' save_pretrained."
        )
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in checkpoint.files:
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
    for name, entry in sorted(checkpoint.headers.items()):
        digest.update(f"{name}:{entry['dtype']}:{entry['data_offsets']}".encode())
    dtypes = Counter[str]()
    for entry in checkpoint.headers.values():
        dtypes[entry["dtype"]] += math.prod(entry["shape"])
    common = dtypes.most_common(1)[0][0]
    return _inspection(
        checkpoint.shape,
        precision="fp32" if common in {"F32", "F64"} else "bf16",
        quantization=None,
        kind="safetensors",
        chat_template=_has_template(path),
        source=digest.hexdigest(),
    )


def _has_template(path: Path) -> bool:
    settings = path / "tokenizer_config.json"
    if (path / "chat_template.jinja").is_file():
        return True
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


def _check_tensors(shape: LlamaShape, found: Mapping[str, tuple[int, ...]], where: str) -> None:
    for name, expected in tensor_shapes(shape).items():
        if found.get(name) != expected:
            have = "missing" if name not in found else f"of shape {list(found[name])}"
            raise ModelCorruptError(
                f"{where}: tensor {name} is {have}, but the configuration asks for "
                f"{list(expected)}. Fetch the checkpoint again."
            )


def _inspection(
    shape: LlamaShape,
    *,
    precision: str,
    quantization: str | None,
    kind: str,
    chat_template: bool,
    source: str,
) -> Inspection:
    return Inspection(
        family=shape.family,
        depth=shape.layers,
        parameters=shape.parameters,
        weight_bytes=shape.parameters * value_bytes(precision),
        precision=precision,
        quantization=quantization,
        format=kind,
        context_length=shape.max_positions,
        chat_template=chat_template,
        source=source,
        hf_config=shape.to_hf_config(),
    )
