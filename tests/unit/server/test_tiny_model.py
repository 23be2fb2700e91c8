"""The server with the real engine and the tiny model, spoken to by the real `openai` package."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import openai
import pytest

from trimtab.cli.glassllm import convert
from trimtab_workers.engine.config import load_config
from trimtab_workers.engine.engine import Engine
from trimtab_workers.server.lifecycle import ServerSettings, WorkerServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

glassllm = pytest.importorskip("glassllm")
MODEL = "team-a/alice"
TALK = [{"role": "user", "content": "Alice was beginning to get very"}]


@pytest.fixture(scope="module")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model."""
    root = tmp_path_factory.mktemp("models")
    (root / "alice").mkdir()
    convert(Path(glassllm.__file__).parent, language="en", destination=root / "alice")
    return root


def a_model_set(file: Path, *names_and_paths: tuple[str, str], revision: int = 1) -> Path:
    models = [{"name": name, "path": path, "dtype": "fp32"} for name, path in names_and_paths]
    document = {
        "v": 1,
        "revision": revision,
        "memory_bytes": 64_000_000,
        "max_seqs": 8,
        "models": models,
    }
    file.write_text(json.dumps(document))
    return file


@contextlib.asynccontextmanager
async def a_worker(file: Path, model_root: Path) -> AsyncIterator[WorkerServer]:
    settings = ServerSettings(host="127.0.0.1", port=0, admin_port=0, metrics_port=0)
    engine = Engine(load_config(file, model_root=model_root))
    server = WorkerServer(settings, build=lambda: engine)
    await server.start()
    try:
        assert await asyncio.to_thread(engine.wait_loaded, 60)
        yield server
    finally:
        await server.close()


@pytest.fixture
async def worker(model_root: Path, tmp_path: Path) -> AsyncIterator[WorkerServer]:
    file = a_model_set(tmp_path / "models.json", (MODEL, "alice"), ("team-a/broken", "nope"))
    async with a_worker(file, model_root) as server:
        yield server


@pytest.fixture
async def client(worker: WorkerServer) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://127.0.0.1:{worker.listeners.ports['http']}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


async def admin(worker: WorkerServer, path: str, *, method: str = "GET") -> tuple[int, dict]:
    url = f"http://127.0.0.1:{worker.listeners.ports['admin']}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url) as reply:
        return reply.status, await reply.json()


async def test_chat_whole_and_streamed_agree(client):
    """Greedy decoding gives the same text, and the same usage, in one piece and in a stream."""
    ask = {"model": MODEL, "messages": TALK, "temperature": 0, "max_tokens": 12}
    whole = await client.chat.completions.create(**ask)
    stream = await client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


async def test_logprobs_and_choices(client):
    """With n = 2 and logprobs each greedy token is the first of its own alternatives."""
    reply = await client.chat.completions.create(
        model=MODEL,
        messages=TALK,
        temperature=0,
        max_tokens=5,
        n=2,
        logprobs=True,
        top_logprobs=3,
    )
    assert len(reply.choices) == 2
    assert reply.choices[0].message.content == reply.choices[1].message.content
    for choice in reply.choices:
        assert len(choice.logprobs.content) == 5
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 3
            assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0
            assert bytes(token.bytes).decode("utf-8", "replace") == token.token


async def test_seeded_choices_differ_and_repeat(client):
    """A seed makes a call repeatable, and its choices differ from each other."""
    ask = {"model": MODEL, "prompt": "Alice", "max_tokens": 16, "n": 3, "seed": 5}
    first, second = [await client.completions.create(**ask, temperature=1.5) for _ in range(2)]
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 3


async def test_token_prompts_and_stops(client):
    """Token ids are a prompt; a stop text ends the answer and is not part of it."""
    whole = await client.completions.create(
        model=MODEL, prompt="Alice was", temperature=0, max_tokens=12
    )
    text = whole.choices[0].text
    stop = text[3:5]
    cut = await client.completions.create(
        model=MODEL, prompt="Alice was", temperature=0, max_tokens=12, stop=[stop]
    )
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    by_id = await client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=2)
    assert by_id.usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"model": "no"}, openai.NotFoundError, "model_not_found", "model"),
        ({"max_tokens": 10_000}, openai.BadRequestError, "context_length_exceeded", "messages"),
        ({"tools": [{"type": "x"}]}, openai.BadRequestError, "unsupported_parameter", "tools"),
        ({"model": "team-a/broken"}, openai.InternalServerError, "model_unavailable", "model"),
    ],
)
async def test_the_package_understands_errors(client, fields, error, code, param):
    """Each refusal becomes the openai package's own exception, with code and param."""
    with pytest.raises(error) as caught:
        await client.chat.completions.create(**{"model": MODEL, "messages": TALK} | fields)
    assert (caught.value.code, caught.value.param) == (code, param)


async def test_one_broken_model_leaves_the_others_alone(worker, client):
    """A model that cannot be loaded is Failed with its reason; the other serves."""
    _, state = await admin(worker, "/-/state")
    models = {row["name"]: row for row in state["models"]}
    assert models[MODEL]["state"] == "Resident"
    assert models["team-a/broken"]["state"] == "Failed"
    assert models["team-a/broken"]["error"]["reason"] == "ModelNotFound"
    assert {model.id async for model in client.models.list()} == set(models)


async def test_disconnect_frees_the_blocks(worker, client):
    """After a client leaves its stream, nothing runs and no KV token is in use."""
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=TALK,
        max_tokens=90,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for _ in stream:
        break
    await stream.close()
    async with asyncio.timeout(30):
        while True:
            _, state = await admin(worker, "/-/state")
            if not state["models"][0]["running"]:
                break
    assert state["kv"]["used_tokens"] == 0


async def test_reload_serves_a_new_model(model_root, tmp_path):
    """A model added to the file is served after a reload; a bad file changes nothing."""
    file = a_model_set(tmp_path / "models.json", (MODEL, "alice"))
    async with a_worker(file, model_root) as worker:
        file.write_text("{")
        status, reply = await admin(worker, "/-/reload?revision=2", method="POST")
        assert status == 202
        assert "JSON" in reply["error"]
        assert (await admin(worker, "/-/state"))[1]["errors"]
        a_model_set(file, (MODEL, "alice"), ("team-a/second", "alice"), revision=2)
        async with asyncio.timeout(60):
            while (await admin(worker, "/-/state"))[1]["revision"] != 2:  # noqa: ASYNC110 - the state is polled by design
                await asyncio.sleep(0.05)
        status, reply = await admin(worker, "/-/reload?revision=2", method="POST")
        assert (status, reply) == (200, {"revision": 2})
