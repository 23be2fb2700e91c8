"""One directory that any engine reads: safetensors, config.json, tokenizer.json."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from trimtab_workers.engine.config import ModelSpec
from trimtab_workers.engine.models.names import tensor_shapes
from trimtab_workers.engine.tokenizer import load_tokenizer
from trimtab_workers.engine.weights.store import open_checkpoint, resolve


def one_directory(model: Path, *, cache: Path | None = None) -> Path:
    """Return the model's own directory if it has safetensors, else one written from its GGUF file.

    The copy is bf16, which is what both engines then compute with, and is kept under `cache`
    (default: the user's cache folder), named after the file and its size.

    Raises:
        CheckpointError: There is no model, or it cannot be read.
    """
    source = resolve(model)
    if source.is_dir():
        return source
    stat = source.stat()
    mark = f"{source.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    name = f"{source.stem}-{hashlib.blake2b(mark.encode(), digest_size=6).hexdigest()}"
    target = (cache or _cache()) / name
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
        try:
            _write(source, staging)
            staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "trimtab" / "bench-models"


def _write(source: Path, folder: Path) -> None:
    import torch  # noqa: PLC0415 - seconds
    from safetensors.torch import save_file  # noqa: PLC0415 - with torch

    checkpoint = open_checkpoint(ModelSpec(name="bench", path=source))
    try:
        shape = checkpoint.shape
        tensors = {
            name: checkpoint.tensor(name).to(torch.bfloat16).contiguous()
            for name in tensor_shapes(shape)
        }
        save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
        config = shape.to_hf_config() | {"dtype": "bfloat16"}
        tokenizer = load_tokenizer(checkpoint, chat_template=None)
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer.json")
            config["eos_token_id"] = sorted(tokenizer.eos_token_ids)
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    finally:
        checkpoint.close()
