"""The tiny model of the PyPI package `glassllm` as a Hugging Face folder of the Llama family.

The package holds NumPy archives with `x @ W` matrices and rotary pairs that lie side by side; the
Llama layout has `W @ x` matrices and pairs half a head apart. Both describe the same function: the
tests compare logits and token ids with the package's own.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


LANGUAGES: Final = ("en", "pt")
_SPECIALS: Final = ("<pad>", "<unk>", "<bos>", "<eos>")
_SPACE: Final = "▁"
_TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def convert(folder: Path, *, language: str, destination: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer's files.

    Args:
        folder: The package's own folder.
        language: One of `LANGUAGES`.
        destination: An existing, empty folder.

    Raises:
        KeyError, ValueError: The archive is not the package's.
        OSError: A file cannot be read or written.
    """
    with np.load(folder / "weights" / f"{language}.npz", allow_pickle=False) as archive:
        config = json.loads(str(archive["__config__"]))
        arrays = {
            name: archive[name].astype(np.float32) for name in archive.files if name[0] != "_"
        }
    write_safetensors(destination / "model.safetensors", dict(_tensors(arrays, config=config)))
    _write_json(destination / "config.json", _llama_config(arrays, config=config))
    trained = json.loads((folder / "weights" / f"{language}.tokenizer.json").read_text())
    _write_json(destination / "tokenizer.json", _tokenizer(trained))
    _write_json(
        destination / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "model_max_length": config["max_len"],
            "chat_template": _TEMPLATE,
        },
    )


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write float32 arrays in the safetensors format.

    The format is a length, a JSON header and the bytes; the base installation has no `safetensors`.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.size * 4
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            stream.write(np.ascontiguousarray(tensor, dtype="<f4").tobytes())


def _tensors(arrays: Mapping[str, Any], *, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "model.embed_tokens.weight", arrays["E"]
    for layer in range(config["n_layers"]):
        ours, theirs = f"model.layers.{layer}", f"blocks.{layer}"
        yield f"{ours}.input_layernorm.weight", arrays[f"{theirs}.norm1.gamma"]
        yield f"{ours}.post_attention_layernorm.weight", arrays[f"{theirs}.norm2.gamma"]
        for name, heads in (("Q", config["n_heads"]), ("K", config["n_kv_heads"])):
            weight = arrays[f"{theirs}.attn.W_{name}"].T
            yield (
                f"{ours}.self_attn.{name.lower()}_proj.weight",
                _half_rotation(weight, heads=heads),
            )
        yield f"{ours}.self_attn.v_proj.weight", arrays[f"{theirs}.attn.W_V"].T
        yield f"{ours}.self_attn.o_proj.weight", arrays[f"{theirs}.attn.W_O"].T
        yield f"{ours}.mlp.gate_proj.weight", arrays[f"{theirs}.ffn.W1"].T
        yield f"{ours}.mlp.up_proj.weight", arrays[f"{theirs}.ffn.W3"].T
        yield f"{ours}.mlp.down_proj.weight", arrays[f"{theirs}.ffn.W2"].T
    yield "model.norm.weight", arrays["norm_f.gamma"]


def _half_rotation(weight: Any, *, heads: int) -> Any:  # any: float32 arrays (rows, columns)
    """Reorder each head's rows: rotary pairs lie side by side there, half a head apart here."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _llama_config(arrays: Mapping[str, Any], *, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["d_model"],
        "intermediate_size": arrays["blocks.0.ffn.W1"].shape[1],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": config["n_kv_heads"],
        "head_dim": config["d_model"] // config["n_heads"],
        "max_position_embeddings": config["max_len"],
        "rms_norm_eps": config["eps"],
        "rope_theta": config["rope_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": _SPECIALS.index("<bos>"),
        "eos_token_id": _SPECIALS.index("<eos>"),
        "pad_token_id": _SPECIALS.index("<pad>"),
    }


def _tokenizer(trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return the character BPE in the format of the `tokenizers` library."""
    merges = trained["merges"]
    vocabulary = [*_SPECIALS, *trained["alphabet"], *(left + right for left, right in merges)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": word,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, word in enumerate(_SPECIALS)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": rf"\n|{_SPACE}*[^{_SPACE}\n]+|{_SPACE}+"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {word: index for index, word in enumerate(vocabulary)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def _write_json(path: Path, value: Any) -> None:  # any: JSON
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False))
