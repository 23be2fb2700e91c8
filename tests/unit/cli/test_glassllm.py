"""The tiny model's Hugging Face folder computes what the package it came from computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trimtab.cli.glassllm import LANGUAGES, convert

glassllm = pytest.importorskip("glassllm")
PACKAGE = Path(glassllm.__file__).parent
TEXTS = (
    "Alice was beginning to get very tired",
    "  two  spaces\nand a line\n\n",
    "unknown: \u4e2d",
    "",
)


@pytest.fixture(scope="module", params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(language: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted model."""
    destination = tmp_path_factory.mktemp(language)
    convert(PACKAGE, language=language, destination=destination)
    return destination


def test_token_ids_equal_those_of_the_package(folder: Path, language: str) -> None:
    """The tokenizer file gives the package's own ids, for spaces, newlines and unknown characters."""
    from glassllm.tokenizer import Tokenizer as Theirs
    from tokenizers import Tokenizer

    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs = Theirs.load(PACKAGE / "weights" / f"{language}.tokenizer.json")
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == theirs.encode(text)
        if "\u4e2d" not in text:
            assert ours.decode(ids) == theirs.decode(ids)


def test_logits_equal_those_of_the_package(folder: Path, language: str) -> None:
    """Rotary pairs, norms and matrices are carried over: logits agree to float32's accuracy."""
    import torch
    from glassllm.autograd import no_grad
    from glassllm.model import GlassLM
    from transformers import LlamaForCausalLM

    ids = np.random.default_rng(7).integers(4, 1024, size=(1, 64))
    original = GlassLM.load(PACKAGE / "weights" / f"{language}.npz")
    with no_grad():
        expected = original(ids).data
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found = model(torch.from_numpy(ids)).logits.numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_safetensors_file_is_read_by_the_library(folder: Path) -> None:
    """The library that everybody uses reads the file, with all 38 tensors."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="np") as opened:
        names = set(opened.keys())
        assert len(names) == 38
        assert opened.get_tensor("model.embed_tokens.weight").dtype == np.float32
