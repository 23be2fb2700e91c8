"""SmolLM2-135M-Instruct from its GGUF file against transformers' own reading of that file."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.builders import a_request, an_engine, run, spy_on_logits, submit
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import ModelCorruptError
from trimtab_workers.engine.sampling import sample
from trimtab_workers.engine.weights.gguf import GgufCheckpoint
from trimtab_workers.engine.weights.inspect import inspect_checkpoint

TEXTS = (
    "The capital of France is Paris, isn't it? I've 12345 reasons.",
    "  Leading spaces\n\n\tand tabs, ümlauts, 日本語, 🙂 emoji; x=3.14e-10 {json: [1,2]}",
    "<|im_start|>user\nspecial tokens in text<|im_end|>\n",
    "",
)


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tensors = load_gguf_checkpoint(str(smollm2), return_tensors=True, model_to_load=model)[
        "tensors"
    ]
    missing = model.load_state_dict(tensors, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    assert not missing.unexpected_keys
    model.tie_weights()
    return model


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Engine:
    return an_engine(smollm2, dtype="fp32", max_model_len=512, max_seqs=8)


def test_token_ids(smollm2: Path, engine: Engine):
    """Token ids, texts and the rendered chat equal those of transformers' tokenizer."""
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    tokenizer = engine.tokenizer("m")
    for text in TEXTS:
        ids = expected.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat) == list(
        expected.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    )


def test_greedy_and_logits(engine: Engine, reference: Any, monkeypatch: pytest.MonkeyPatch):
    """Greedy tokens equal transformers', fp32 logits are within 1e-3, for requests in one batch."""
    seen: dict[str, list[torch.Tensor]] = {"a": [], "b": []}

    def spy(logits: torch.Tensor, sequences: Any) -> object:
        for row, sequence in zip(logits, sequences, strict=True):
            seen[sequence.request.request_id].append(row.clone())
        return sample(logits, sequences)

    spy_on_logits(monkeypatch, spy)
    tokenizer = engine.tokenizer("m")
    prompts = {
        "a": tokenizer.apply_chat_template([{"role": "user", "content": "Name three colours."}]),
        "b": tokenizer.encode("Once upon a time, in a small village by the sea,"),
    }
    outputs = dict(
        zip(
            prompts,
            run(engine, *(a_request(k, p, max_tokens=16) for k, p in prompts.items())),
            strict=True,
        )
    )
    for key, prompt in prompts.items():
        # One forward over the whole output: greedy decoding takes each position's arg-max.
        with torch.inference_mode():
            logits = reference(torch.tensor([[*prompt, *outputs[key].tokens]])).logits[0]
        expected = logits[len(prompt) - 1 : -1]
        assert outputs[key].tokens == expected.argmax(-1).tolist()
        torch.testing.assert_close(torch.stack(seen[key]), expected, atol=1e-3, rtol=0)


def test_answers_paris(engine: Engine):
    """Asked for the capital of France, it says Paris, ends itself and hides its end token."""
    prompt = engine.tokenizer("m").apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}]
    )
    [output] = run(engine, a_request("r", prompt, max_tokens=40, ignore_eos=False))
    assert output.text == "The capital of France is Paris."
    assert output[-1].finish_reason == "stop"
    assert output[-1].stop_reason is None


def test_stop_text_over_three_tokens(engine: Engine):
    """A stop text that spans three tokens ends the request and not a character of it leaks."""
    tokenizer = engine.tokenizer("m")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}]
    )
    stop = "ital of Fr"
    assert len(tokenizer.encode(stop)) >= 3
    streamed = submit(engine, a_request("r", prompt, max_tokens=40, stop=(stop,)))
    while engine.step():
        assert "i" not in streamed.text.removeprefix("The cap"), streamed.text
    assert streamed.text == "The cap"
    assert (streamed[-1].finish_reason, streamed[-1].stop_reason) == ("stop", stop)


def test_inspection(smollm2: Path):
    """Headers alone give family, depth, sizes and template; weight bytes are those at bf16."""
    found = inspect_checkpoint(smollm2)
    assert (found.family, found.depth, found.parameters) == ("llama", 30, 134_515_008)
    assert (found.weight_bytes, found.precision, found.quantization) == (
        269_030_016,
        "bf16",
        "Q4_1",
    )
    assert (found.format, found.context_length, found.chat_template) == ("gguf", 8192, True)


@pytest.mark.parametrize("keep", [0.5, 0.01, 0.999])
def test_cut_file(keep: float, smollm2: Path, tmp_path: Path):
    """A file cut in half, in its header or near its end is ModelCorrupt and says that it is cut."""
    cut = tmp_path / "cut.gguf"
    with smollm2.open("rb") as stream:
        cut.write_bytes(stream.read(int(smollm2.stat().st_size * keep)))
    for read in (inspect_checkpoint, GgufCheckpoint):
        with pytest.raises(ModelCorruptError, match=r"cut\.gguf.*ends after .* Fetch"):
            read(cut)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_batch_independence(dtype: str, smollm2: Path, monkeypatch: pytest.MonkeyPatch):
    """The real model's logits alone and beside chunks of others are equal bit for bit."""
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def spy(logits: torch.Tensor, sequences: Any) -> object:
        for row, sequence in zip(logits, sequences, strict=True):
            seen[sequence.request.request_id, len(sequence.tokens)] = row.clone()
        return sample(logits, sequences)

    spy_on_logits(monkeypatch, spy)
    engine = an_engine(
        smollm2, dtype=dtype, max_model_len=512, max_batch_tokens=64, prefix_caching=False
    )
    prompts = {name: range(at, at + length) for name, at, length in (("a", 99, 203), ("b", 7, 30))}
    requests = [a_request(name, prompt, max_tokens=4) for name, prompt in prompts.items()]
    for request in requests:
        run(engine, request)
    alone = dict(seen)
    seen.clear()
    for request in requests:
        submit(engine, request)
        engine.step()
    run(engine, a_request("c", range(5), max_tokens=12))
    assert all(torch.equal(alone[key], seen[key]) for key in alone)
