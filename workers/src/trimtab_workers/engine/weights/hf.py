"""Checkpoint directories in Hugging Face's layout: config.json and safetensors, never pickles."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.errors import (
    ModelCorruptError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from trimtab_workers.engine.models.shape import LlamaShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from trimtab_workers.engine.weights.checkpoint import Part

MAX_JSON_BYTES = 64 << 20
_FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 64 MiB.

    Raises:
        ModelCorruptError: No JSON object, or too large.
    """
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelCorruptError(
            f"{path}: the file is larger than {MAX_JSON_BYTES} bytes. Fetch it again."
        )
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelCorruptError(f"{path}: no valid JSON: {error}. Fetch it again.") from error
    if not isinstance(document, dict):
        raise ModelCorruptError(f"{path}: no JSON object. Fetch it again.")
    return document


def read_safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return dtype, shape and offsets of every tensor in a file, checked against its size.

    Raises:
        ModelCorruptError: The header is no safetensors header, or the file is cut.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size + 1
        if length > min(size - 8, MAX_JSON_BYTES):
            raise ModelCorruptError(
                f"{path}: its header announces {length} bytes, but the file has {size}, so it is cut "
                "or no safetensors file. Fetch it again."
            )
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as error:
            raise ModelCorruptError(f"{path}: its header is no JSON. Fetch it again.") from error
    if not isinstance(header, dict):
        raise ModelCorruptError(f"{path}: its header is no JSON object. Fetch it again.")
    header.pop("__metadata__", None)
    try:
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        complete = 8 + length + end <= size
    except (TypeError, KeyError, IndexError) as error:
        raise ModelCorruptError(f"{path}: a tensor has no data_offsets. Fetch it again.") from error
    if not complete:
        raise ModelCorruptError(
            f"{path}: its header announces tensors up to byte {8 + length + end}, but the file ends "
            f"after {size} bytes, so it is cut. Fetch the file again."
        )
    return header


def safetensors_files(directory: Path) -> list[Path]:
    """Return a checkpoint's safetensors files.

    Raises:
        ModelNotFoundError: There are none; says so if there are pickles, which are refused.
        ModelCorruptError: A file that the index names is missing.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [n for n in names if not (directory / n).is_file() or Path(n).name != n]
        if missing or not names:
            raise ModelCorruptError(
                f"{directory}: model.safetensors.index.json names {missing[:1] or 'no file'}, which "
                "is not there. Fetch the checkpoint again."
            )
        return [directory / name for name in names]
    files = sorted(directory.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise UnsupportedModelError(
            f"{directory}: the weights are a pickle ({pickles[0]}), and pickles are refused because "
            "loading one runs its code. Convert the checkpoint to safetensors."
        )
    raise ModelNotFoundError(
        f"{directory}: there is no *.safetensors and no *.gguf file. "
        "Give the path of a directory that holds a checkpoint."
    )


class HfCheckpoint:
    """A directory with config.json and safetensors."""

    def __init__(self, directory: Path) -> None:
        self.where = str(directory)
        self.directory: Path | None = directory
        self.gguf_metadata: Mapping[str, Any] | None = None
        config = directory / "config.json"
        self.files = safetensors_files(directory)
        if not config.is_file():
            raise ModelNotFoundError(
                f"{directory}: there is no config.json. Give the path of a whole checkpoint."
            )
        self.hf_config: Mapping[str, Any] = read_json(config)
        self.shape = LlamaShape.from_hf_config(self.hf_config, where=self.where)
        self._home: dict[str, Path] = {}
        self.headers: dict[str, dict[str, Any]] = {}
        for file in self.files:
            for name, entry in read_safetensors_header(file).items():
                _check_entry(entry, name, file)
                self._home[name] = file
                self.headers[name] = entry
        self._open: dict[Path, Any] = {}
        if "lm_head.weight" not in self._home and not self.shape.tied:
            raise ModelCorruptError(
                f"{directory}: tie_word_embeddings is false, but lm_head.weight is missing. "
                "Fetch the checkpoint again."
            )

    def tensor(self, name: str, part: Part | None = None) -> torch.Tensor:
        """Read a tensor in its own dtype; of a part only its own bytes are read."""
        from safetensors import safe_open  # noqa: PLC0415 - needs torch

        file = self._home.get(name)
        if file is None:
            raise ModelCorruptError(
                f"{self.where}: tensor {name} is missing. Fetch the checkpoint again."
            )
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        opened = self._open[file]
        tensor: torch.Tensor
        if part is None:
            tensor = opened.get_tensor(name)
        elif part.axis == 0:
            tensor = opened.get_slice(name)[part.start : part.stop]
        else:
            tensor = opened.get_slice(name)[:, part.start : part.stop]
        return tensor

    def close(self) -> None:
        """Let go of the mapped files."""
        self._open.clear()


def _check_entry(entry: dict[str, Any], name: str, file: Path) -> None:
    size = _FLOAT_BYTES.get(entry.get("dtype", ""))
    if size is None:
        raise UnsupportedModelError(
            f"{file}: tensor {name} has dtype {entry.get('dtype')!r}; served are "
            f"{', '.join(_FLOAT_BYTES)}. Choose a checkpoint that is not quantised."
        )
    begin, end = entry["data_offsets"]
    if (
        begin < 0
        or min(entry["shape"], default=1) < 0
        or end - begin != size * math.prod(entry["shape"])
    ):
        raise ModelCorruptError(
            f"{file}: tensor {name} of shape {entry['shape']} lies from byte {begin} to {end}, which "
            "does not fit its shape. Fetch the file again."
        )
