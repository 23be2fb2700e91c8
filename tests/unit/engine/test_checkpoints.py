"""Bad checkpoints end in a sentence with a reason, never in a crash or a wait."""

import json
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.engine.builders import TINY, a_gguf
from trimtab_workers.engine.errors import (
    CheckpointError,
    ModelCorruptError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from trimtab_workers.engine.models.shape import LlamaShape
from trimtab_workers.engine.weights.gguf import unpermute
from trimtab_workers.engine.weights.inspect import inspect_checkpoint


def test_missing_path(tmp_path: Path):
    """A path without anything is ModelNotFound and names the path and the field."""
    with pytest.raises(
        ModelNotFoundError, match=r"nowhere: there is no such .*spec\.model\.source"
    ):
        inspect_checkpoint(tmp_path / "nowhere")


def test_empty_directory(tmp_path: Path):
    """A directory without weights is ModelNotFound."""
    with pytest.raises(ModelNotFoundError, match=r"no \*\.safetensors and no \*\.gguf"):
        inspect_checkpoint(tmp_path)


def test_pickles_are_refused(tmp_path: Path):
    """Weights as a pickle are refused without being opened."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    with pytest.raises(UnsupportedModelError, match=r"pickle.*Convert the checkpoint"):
        inspect_checkpoint(tmp_path)


def test_directory_is_inspected(glass_en: Path):
    """A safetensors directory gives family, depth, precision and sizes."""
    found = inspect_checkpoint(glass_en)
    assert (found.family, found.depth, found.parameters) == ("llama", 4, 852_609 - 1)
    assert (found.precision, found.format, found.quantization) == ("fp32", "safetensors", None)
    assert LlamaShape.from_hf_config(found.hf_config, where="x").layers == 4


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_type": "gpt2"}, UnsupportedModelError, "model_type is 'gpt2'.*llama"),
        ({"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act is 'gelu'"),
        ({"sliding_window": 32}, UnsupportedModelError, "sliding_window is 32"),
        ({"attention_bias": True}, UnsupportedModelError, "attention_bias is true"),
        ({"rope_scaling": {"type": "yarn"}}, UnsupportedModelError, "'yarn'"),
        ({"hidden_size": 0}, ModelCorruptError, "hidden_size is 0"),
        ({"num_hidden_layers": "four"}, ModelCorruptError, "num_hidden_layers is 'four'"),
        ({"num_hidden_layers": 5}, ModelCorruptError, "layers.4.* is missing"),
        ({"vocab_size": 1000}, ModelCorruptError, "embed_tokens.weight is of shape"),
        ({"rms_norm_eps": -1}, ModelCorruptError, "rms_norm_eps is -1"),
        ({"tie_word_embeddings": False}, ModelCorruptError, "lm_head.weight is missing"),
    ],
)
def test_configurations(
    change: dict, error: type[CheckpointError], words: str, glass_en: Path, tmp_path: Path
):
    """A configuration that cannot be served names its field and value."""
    folder = shutil.copytree(glass_en, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=words):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": ["F32"]},
        {"shape": ["a", 2]},
        {"shape": [-8, -4]},
        {"shape": 5},
        {"data_offsets": [0, 3]},
        {"data_offsets": [4]},
        {"data_offsets": ["0", "1"]},
    ],
)
def test_nonsense_in_a_header(change: dict, glass_en: Path, tmp_path: Path):
    """A header that describes a tensor by nonsense is ModelCorrupt, not a traceback."""
    folder = shutil.copytree(glass_en, tmp_path / "model")
    weights = folder / "model.safetensors"
    raw = weights.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    header["model.embed_tokens.weight"] |= change
    text = json.dumps(header).encode()
    weights.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])
    with pytest.raises(ModelCorruptError, match="Fetch"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 10**400},
        {"rope_scaling": "llama3"},
        {"rope_parameters": [1]},
        {"model_type": {"a": 1}},
    ],
)
def test_nonsense_in_a_configuration(change: dict, glass_en: Path, tmp_path: Path):
    """A configuration whose values are of a wrong kind is refused, not a traceback."""
    folder = shutil.copytree(glass_en, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        inspect_checkpoint(folder)


def test_a_header_is_bounded(tmp_path: Path):
    """64 arrays of 2 Mi numbers, a GiB in a sparse file, are refused before they take memory."""
    file = tmp_path / "x.gguf"
    entry = struct.pack("<Q1sIIQ", 1, b"a", 9, 10, 1 << 21)
    with file.open("wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 64))
        for _ in range(64):
            stream.write(entry)
            stream.seek(8 << 21, 1)
        stream.truncate()
    with pytest.raises(ModelCorruptError, match="longer than"):
        inspect_checkpoint(file)


@pytest.mark.parametrize("keep", [0, 4, 100, 1_000_000])
def test_cut_safetensors(keep: int, glass_en: Path, tmp_path: Path):
    """A cut safetensors file is ModelCorrupt."""
    folder = shutil.copytree(glass_en, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelCorruptError, match="Fetch"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        ({"general.architecture": "mamba"}, UnsupportedModelError, "'mamba'"),
        ({}, UnsupportedModelError, "general.architecture is None"),
        ({"general.architecture": "llama"}, ModelCorruptError, "hidden_size is None"),
    ],
)
def test_gguf_metadata(metadata: dict, error: type[CheckpointError], words: str, tmp_path: Path):
    """A GGUF file of another architecture, or without sizes, says so."""
    tensors = {"token_embd.weight": np.zeros((8, 4))}
    with pytest.raises(error, match=words):
        inspect_checkpoint(a_gguf(tmp_path / "x.gguf", metadata=metadata, tensors=tensors))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"GG",
        b"PK\x03\x04" + bytes(100),
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62),
        b"GGUF" + struct.pack("<IQQQ4sIIQ", 3, 0, 1, 4, b"name", 9, 4, 2**40),
    ],
)
def test_hostile_headers(raw: bytes, tmp_path: Path):
    """Absurd counts and lengths are refused before anything of that size is read."""
    file = tmp_path / "x.gguf"
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"x\.gguf"):
        inspect_checkpoint(file)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.gguf"


@given(at=st.integers(0, 200), value=st.integers(0, 255), keep=st.integers(0, 400))
def test_any_byte_may_be_wrong(at: int, value: int, keep: int, scratch: Path):
    """Whatever byte of a header is wrong, the result is a CheckpointError or a sound reading."""
    a_gguf(scratch, tensors={"token_embd.weight": np.zeros((8, 4))})
    raw = bytearray(scratch.read_bytes()[:keep])
    if at < len(raw):
        raw[at] = value
    scratch.write_bytes(raw)
    with pytest.raises(CheckpointError):
        inspect_checkpoint(scratch)


def test_unpermute():
    """Undoing llama.cpp's q/k row order inverts its own formula."""
    import torch

    heads, head_dim, hidden = 3, 8, 5
    original = torch.randn(heads * head_dim, hidden)
    permuted = (
        original.reshape(heads, 2, head_dim // 2, hidden).swapaxes(1, 2).reshape(original.shape)
    )
    assert torch.equal(unpermute(permuted, heads=heads), original)
