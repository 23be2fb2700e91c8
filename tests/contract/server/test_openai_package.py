"""The unchanged `openai` package, sync and async, against worker processes."""

from __future__ import annotations

import asyncio
import json
import urllib.request

import openai
import pytest

ALICE = "team-a/alice"
SMOL = "team-a/smollm2"
TALK = [{"role": "user", "content": "Alice was beginning to get very"}]
FRANCE = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


def a_client(worker) -> openai.OpenAI:
    return openai.OpenAI(base_url=worker.url("/v1"), api_key="none", max_retries=0)


def state(worker) -> dict:
    with urllib.request.urlopen(worker.url("/-/state", listener="admin"), timeout=30) as reply:
        return json.loads(reply.read())


@pytest.fixture
def client(worker):
    with a_client(worker) as made:
        yield made


def test_models(client):
    """Models are listed and looked up by their public names."""
    assert {model.id for model in client.models.list()} == {ALICE, "team-a/bruno"}
    assert client.models.retrieve(ALICE).owned_by == "trimtab"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("team-a/nobody")


def test_stream_and_whole_agree(client):
    """A greedy answer is the same in one piece and in chunks, text, usage and reason alike."""
    ask = {"model": ALICE, "messages": TALK, "temperature": 0, "max_completion_tokens": 12}
    whole = client.chat.completions.create(**ask)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options=options))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content != ""
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 12
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert whole.choices[0].finish_reason == "length"


def test_choices_seeds_and_logprobs(client):
    """`n`, `seed` and `logprobs` mean what the package's users expect, in both APIs."""
    ask = {"model": ALICE, "messages": TALK, "max_tokens": 6, "temperature": 1.5, "seed": 3, "n": 3}
    first, second = (
        client.chat.completions.create(**ask, logprobs=True, top_logprobs=2) for _ in range(2)
    )
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    for choice in first.choices:
        assert len(choice.logprobs.content) == 6
        for token in choice.logprobs.content:
            assert token.logprob <= token.top_logprobs[0].logprob <= 0
            assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
    legacy = client.completions.create(
        model=ALICE, prompt="Alice", max_tokens=4, temperature=0, logprobs=2
    )
    found = legacy.choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 4
    assert "".join(found.tokens) == legacy.choices[0].text
    assert found.token_logprobs[0] == max(found.top_logprobs[0].values())


def test_a_stream_of_choices(client):
    """Chunks of several choices come interleaved, and each choice is whole."""
    ask = {"model": ALICE, "prompt": "Alice", "max_tokens": 8, "n": 2, "seed": 1}
    whole = client.completions.create(**ask)
    texts = ["", ""]
    for chunk in client.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_biases_stops_and_penalties(client):
    """`logit_bias`, `stop`, penalties and vLLM's extra fields reach the sampler."""
    ask = {"model": ALICE, "prompt": "Alice was", "max_tokens": 12, "temperature": 0}
    free = client.completions.create(**ask).choices[0].text
    stopped = client.completions.create(**ask, stop=[free[4:6]]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (free[: free.index(free[4:6])], "stop")
    forced = client.completions.create(**ask, logit_bias={"7": 100}, logprobs=0).choices[0]
    assert len(set(forced.logprobs.tokens)) == 1
    varied = client.completions.create(**ask, frequency_penalty=2, logit_bias={"7": 2}).choices[0]
    assert varied.text != forced.text
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0, "ignore_eos": True}
    sampled = client.completions.create(**ask | {"temperature": 2}, extra_body=extra).choices[0]
    assert sampled.text == free


@pytest.mark.parametrize(
    ("fields", "error", "code", "param", "words"),
    [
        ({"model": "no"}, openai.NotFoundError, "model_not_found", "model", "team-a/alice"),
        (
            {"max_tokens": 10_000},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
            "is 128 tokens.*10000",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.BadRequestError,
            "unsupported_parameter",
            "tools",
            "not supported",
        ),
        (
            {"response_format": {"type": "json_object"}},
            openai.BadRequestError,
            "unsupported_parameter",
            "response_format",
            "not supported",
        ),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value", "temperature", "0 to 2"),
        ({"stop": ["x" * 2000]}, openai.BadRequestError, "invalid_value", "stop", "1024"),
        ({"user": "x" * (4 << 20)}, openai.APIStatusError, "request_too_large", None, "4 MiB"),
    ],
)
def test_errors(client, *, fields, error, code, param, words):
    """Each refusal is the package's own exception with code, param and a sentence."""
    with pytest.raises(error, match=words) as caught:
        client.chat.completions.create(**{"model": ALICE, "messages": TALK} | fields)
    assert (caught.value.code, caught.value.param) == (code, param)


async def test_many_at_once_and_one_that_leaves(worker):
    """Streams of both models run side by side; one that leaves early frees all that it held."""
    url = worker.url("/v1")
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def ask(model: str, *, leave: bool) -> int:
            stream = await client.chat.completions.create(
                model=model,
                messages=TALK,
                max_tokens=80,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            async with stream:
                async for chunk in stream:
                    if leave:
                        return 0
                    usage = chunk.usage
            return usage.completion_tokens

        models = [ALICE, "team-a/bruno"] * 4
        asked = [ask(model, leave=i < 2) for i, model in enumerate(models)]
        assert await asyncio.gather(*asked) == [0, 0] + [80] * 6
        async with asyncio.timeout(30):
            while (await asyncio.to_thread(state, worker))["kv"]["used_tokens"]:  # noqa: ASYNC110 - the state is polled by design
                await asyncio.sleep(0.02)


def test_counts_equal_requests(model_root, client, worker):
    """Each request is counted once, under the reason it ended for; refusals are not counted."""

    def counts() -> dict[str, float]:
        with urllib.request.urlopen(worker.url("/metrics"), timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        rows = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in rows if 'model_name="team-a/bruno"' in name}

    before = counts()
    ask = {"model": "team-a/bruno", "prompt": "Era uma vez", "max_tokens": 5, "temperature": 0}
    free = [client.completions.create(**ask) for _ in range(3)]
    client.completions.create(**ask, n=2)
    text = free[0].choices[0].text
    client.completions.create(**ask, stop=[text[:1]])
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**ask | {"max_tokens": 1000})
    after = counts()

    def grew(name: str, **labels: str) -> float:
        key = next(
            key
            for key in after
            if key.startswith(name + "{")
            and all(f'{label}="{value}"' in key for label, value in labels.items())
        )
        return after[key] - before[key]

    assert grew("vllm:request_success_total", finished_reason="length") == 5
    assert grew("vllm:request_success_total", finished_reason="stop") == 1
    assert grew("vllm:e2e_request_latency_seconds_count") == 6
    assert grew("vllm:time_to_first_token_seconds_count") == 6
    assert grew("vllm:request_params_n_count") == 5
    assert grew("vllm:request_params_n_sum") == 6
    assert grew("vllm:request_params_max_tokens_sum") == 30
    prompt = free[0].usage.prompt_tokens
    assert grew("vllm:prompt_tokens_total") == 6 * prompt
    generated = grew("vllm:generation_tokens_total")
    assert generated == 26
    assert grew("vllm:request_generation_tokens_sum") == generated
    assert grew("vllm:inter_token_latency_seconds_count") == generated - 6
    assert grew("vllm:time_per_output_token_seconds_count") == generated - 6
    assert grew("vllm:num_requests_running") == 0


def test_smollm2_answers(smollm2):
    """A real small model answers through the package: whole, streamed, with logprobs."""
    with a_client(smollm2) as client:
        ask = {"model": SMOL, "messages": FRANCE, "temperature": 0, "max_tokens": 8}
        whole = client.chat.completions.create(**ask, logprobs=True, top_logprobs=1)
        assert "Paris" in whole.choices[0].message.content
        assert whole.choices[0].finish_reason == "stop"
        tokens = [token.token for token in whole.choices[0].logprobs.content]
        assert "".join(tokens).startswith(whole.choices[0].message.content)
        with client.chat.completions.stream(**ask) as stream:
            text = "".join(e.delta for e in stream if e.type == "content.delta")
            final = stream.get_final_completion()
        assert text == final.choices[0].message.content == whole.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match=r"need 10000\d"):
            client.completions.create(model=SMOL, prompt="word", max_tokens=100_000)


def test_smollm2_streams_whole_characters(smollm2):
    """Characters that take several tokens arrive whole: no U+FFFD in the middle of a stream."""
    with a_client(smollm2) as client:
        stream = client.completions.create(
            model=SMOL,
            prompt="Emoji: 🙂🙃🙂🙃🙂🙃🙂🙃🙂",
            max_tokens=24,
            temperature=0,
            stream=True,
        )
        pieces = [chunk.choices[0].text for chunk in stream]
    body = "".join(pieces[:-1])
    assert any(ord(character) > 0xFFFF for character in body)
    assert "\ufffd" not in body
