"""GGUF checkpoints of the llama family: names, q/k order, dequantisation."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.errors import ModelCorruptError, UnsupportedModelError
from trimtab_workers.engine.models.shape import LlamaShape
from trimtab_workers.engine.weights.gguf_header import GgufHeader, GgufTensor, read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import torch

    from trimtab_workers.engine.weights.checkpoint import Part

_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_GLOBAL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
# (elements, bytes) of a block per ggml type; the gguf package has the same table, but importing it
# for a header costs half a second.
BLOCK_SIZES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    28: ("F64", 1, 8),
    30: ("BF16", 1, 2),
}


def tensor_bytes(tensor: GgufTensor, *, where: str) -> int:
    """Return the bytes that a tensor occupies in the file.

    Raises:
        UnsupportedModelError: A quantisation that is not read.
        ModelCorruptError: Sizes that do not divide into blocks.
    """
    if tensor.kind not in BLOCK_SIZES:
        raise UnsupportedModelError(
            f"{where}: tensor {tensor.name} has ggml type {tensor.kind}, which is not read. Choose a "
            f"file quantised as one of {', '.join(name for name, _, _ in BLOCK_SIZES.values())}."
        )
    _, elements, size = BLOCK_SIZES[tensor.kind]
    count = math.prod(tensor.shape)
    if not tensor.shape or count < 1 or tensor.shape[-1] % elements:
        raise ModelCorruptError(
            f"{where}: tensor {tensor.name} has shape {tensor.shape}, which is no whole number of "
            f"blocks of {elements}. Fetch the file again."
        )
    return count // elements * size


def check_complete(header: GgufHeader, *, where: str) -> None:
    """Verify that every announced tensor lies within the file.

    Raises:
        ModelCorruptError: The file is cut; names both sizes.
        UnsupportedModelError: A quantisation that is not read.
    """
    end = max(
        (t.offset + tensor_bytes(t, where=where) for t in header.tensors.values()),
        default=0,
    )
    if not header.tensors or end > header.file_bytes:
        raise ModelCorruptError(
            f"{where}: its header announces tensors up to byte {end}, but the file ends after "
            f"{header.file_bytes} bytes, so it is cut. Fetch the file again."
        )


def hf_config(header: GgufHeader, *, where: str) -> dict[str, Any]:
    """Translate GGUF metadata into an HF-style configuration.

    Raises:
        UnsupportedModelError: Another architecture, or a rope scaling that is not served.
    """
    meta = header.metadata
    arch = meta.get("general.architecture")
    if arch not in _FAMILIES:
        raise UnsupportedModelError(
            f"{where}: general.architecture is {arch!r}. This engine reads GGUF files of "
            f"{', '.join(_FAMILIES)}; choose a model of these families."
        )
    if "rope_freqs.weight" in header.tensors:
        raise UnsupportedModelError(
            f"{where}: rope frequencies are scaled by a tensor (rope_freqs), which is not served "
            "from GGUF. Give the model as a directory with safetensors."
        )
    scaling = meta.get(f"{arch}.rope.scaling.type", "none")
    if scaling not in {"none", ""}:
        raise UnsupportedModelError(
            f"{where}: rope scaling is {scaling!r}, which is not served from GGUF. "
            "Choose another model."
        )
    embedding = header.tensors.get("token_embd.weight")
    heads = meta.get(f"{arch}.attention.head_count")
    return {
        "model_type": _FAMILIES[arch],
        "num_hidden_layers": meta.get(f"{arch}.block_count"),
        "hidden_size": meta.get(f"{arch}.embedding_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.get(f"{arch}.attention.head_count_kv", heads),
        "head_dim": meta.get(f"{arch}.attention.key_length"),
        "intermediate_size": meta.get(f"{arch}.feed_forward_length"),
        "vocab_size": embedding.shape[0] if embedding else meta.get(f"{arch}.vocab_size"),
        "rms_norm_eps": meta.get(f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": meta.get(f"{arch}.rope.freq_base", 10_000.0),
        "max_position_embeddings": meta.get(f"{arch}.context_length"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "hidden_act": "silu",
    }


class GgufCheckpoint:
    """One GGUF file; tensors are dequantised one at a time."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        self.header = read_header(path)
        self.hf_config: Mapping[str, Any] = hf_config(self.header, where=self.where)
        check_complete(self.header, where=self.where)
        self.shape = LlamaShape.from_hf_config(self.hf_config, where=self.where)
        self.directory: Path | None = path.parent
        self.gguf_metadata: Mapping[str, Any] | None = self.header.metadata

    def tensor(self, name: str, part: Part | None = None) -> torch.Tensor:
        """Read and dequantise a tensor to float32; of rows only their own bytes are read."""
        import torch  # noqa: PLC0415 - headers are read where torch is absent

        entry = self.header.tensors.get(self.gguf_name(name))
        if entry is None:
            raise ModelCorruptError(
                f"{self.where}: tensor {self.gguf_name(name)} is missing. Fetch the file again."
            )
        rows = (part.start, part.stop) if part is not None and part.axis == 0 else None
        values = torch.from_numpy(self._dequantise(entry, rows))
        if self.shape.family == "llama" and name.endswith((".q_proj.weight", ".k_proj.weight")):
            # Rows change places within a head only, and parts are whole heads.
            values = unpermute(values, heads=len(values) // self.shape.head_dim)
        if part is not None and part.axis == 1:
            values = values[:, part.start : part.stop]
        return values

    def gguf_name(self, name: str) -> str:
        """Return the file's own name of a tensor."""
        match = _LAYER.fullmatch(name)
        if match is None:
            return _GLOBAL_NAMES[name]
        layer, part, kind = match.groups()
        return f"blk.{layer}.{_LAYER_NAMES[part]}.{kind}"

    def _dequantise(self, entry: GgufTensor, rows: tuple[int, int] | None) -> np.ndarray[Any, Any]:
        import numpy as np  # noqa: PLC0415 - headers are read where numpy is absent
        from gguf import GGMLQuantizationType, dequantize  # noqa: PLC0415 - half a second

        size = tensor_bytes(entry, where=self.where)
        start, stop = rows or (0, entry.shape[0])
        row = size // entry.shape[0]
        raw = np.fromfile(
            self._path,
            dtype=np.uint8,
            count=(stop - start) * row,
            offset=entry.offset + start * row,
        )
        blocks = raw.reshape(stop - start, -1) if len(entry.shape) > 1 else raw
        kind = GGMLQuantizationType(entry.kind)
        if kind in {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.F64}:
            values = blocks.view({0: np.float32, 1: np.float16, 28: np.float64}[entry.kind])
            return values.astype(np.float32)
        result: np.ndarray[Any, Any] = dequantize(blocks, kind)
        return np.ascontiguousarray(result, dtype=np.float32)

    def close(self) -> None:
        """Do nothing; the file is opened per tensor."""


def unpermute(weight: torch.Tensor, *, heads: int) -> torch.Tensor:
    """Undo llama.cpp's row order of q and k: pairs (2i, 2i+1) back to halves (i, i + d/2).

    Args:
        weight: Shape [heads · head_dim, hidden].
        heads: Query heads for q, key heads for k.
    """
    rows, hidden = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, hidden)
    return pairs.transpose(1, 2).reshape(rows, hidden)
