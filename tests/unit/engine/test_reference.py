"""The engine's numbers against independent implementations."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.engine.builders import a_request, an_engine, run, spy_on_logits
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.sampling import sample

PROMPTS = ("Once upon a time there was", "The king said to her", "O")


def _logits(engine: Engine, tokens: list[int], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Return the logits after every one of four decoded tokens and the prompt, by real steps."""
    seen: list[torch.Tensor] = []

    def spy(logits: torch.Tensor, sequences: object) -> object:
        seen.append(logits.clone())
        return sample(logits, sequences)

    spy_on_logits(monkeypatch, spy)
    run(engine, a_request("r", tokens, max_tokens=5))
    return torch.cat(seen)


@pytest.mark.parametrize("language", ["en", "pt"])
@pytest.mark.parametrize("budget", [16, 512], ids=["chunked", "whole"])
def test_glassllm_numpy(
    language: str, budget: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    """Logits of the tiny model are within 1e-4 of its own NumPy forward, in chunks or whole."""
    from glassllm import load_pretrained

    model, tokenizer = load_pretrained(language)
    engine = an_engine(request.getfixturevalue(f"glass_{language}"), max_batch_tokens=budget)
    prompt = tokenizer.encode("A long sentence that needs more than one chunk of sixteen tokens.")
    logits = _logits(engine, prompt, monkeypatch)
    tokens = list(prompt)
    for row in logits:
        expected = model.forward(tokens).data[0, -1]
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-4, rtol=0)
        tokens.append(int(expected.argmax()))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_glassllm_greedy(prompt: str, glass_en: Path):
    """Greedy tokens equal those of glassllm's own generation."""
    from glassllm import load_pretrained

    model, tokenizer = load_pretrained("en")
    ids = tokenizer.encode(prompt)
    expected = [step.token for step in model.generate(ids, 24, greedy=True)]
    engine = an_engine(glass_en)
    assert engine.tokenizer("m").encode(prompt) == ids
    [output] = run(engine, a_request("r", ids, max_tokens=24))
    assert output.tokens == expected
    assert output.text == tokenizer.decode(expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llama"},
        {"model_type": "llama", "tie_word_embeddings": False},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2"},
        {"model_type": "qwen3"},
        {
            "model_type": "llama",
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ],
    ids=["llama", "untied", "mistral", "qwen2", "qwen3", "llama3-rope"],
)
def test_transformers_families(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every served family's fp32 logits are within 2e-4 of transformers', random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.unit.engine.builders import TINY

    torch.manual_seed(0)
    fields = TINY | changes
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    reference.save_pretrained(tmp_path)
    _glass_tokenizer_into(tmp_path)
    prompt = list(range(3, 90))
    logits = _logits(an_engine(tmp_path, max_batch_tokens=64), prompt, monkeypatch)
    tokens = list(prompt)
    for row in logits:
        with torch.inference_mode():
            expected = reference(torch.tensor([tokens])).logits[0, -1]
        torch.testing.assert_close(row, expected, atol=2e-4, rtol=2e-4)
        tokens.append(int(row.argmax()))


def _glass_tokenizer_into(folder: Path) -> None:
    from glassllm import load_pretrained

    from tests.unit.engine.builders import _glass_tokenizer

    _glass_tokenizer(load_pretrained("en")[1]).save(str(folder / "tokenizer.json"))
