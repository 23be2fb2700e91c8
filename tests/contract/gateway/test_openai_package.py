"""The real `openai` package through the gateway, unchanged: an API key is a ServiceAccount token."""

from __future__ import annotations

import openai
import pytest

from tests.contract.gateway.conftest import ROUTES, a_config_map, a_route

TALK = [{"role": "user", "content": "Capital of France?"}]


@pytest.fixture
async def guarded(bench):
    user = {"authenticated": True, "user": {"username": "ada"}, "audiences": ["trimtab"]}
    bench.api.tokens = {"ada": user}
    bench.api.rights = {("ada", "team-a", "chat")}
    bench.api.put(ROUTES, a_config_map(a_route(), a_route("secret")))
    bench.engine = await bench.add_worker("u1")
    await bench.start_gateway(auth="Kubernetes")
    await bench.settled(models=2)
    return bench


def a_client(bench, key="ada"):
    return openai.AsyncOpenAI(base_url=bench.url("/v1"), api_key=key, max_retries=0)


async def test_models_chat_and_streams(guarded):
    """Listing, looking up, answering and streaming work as against any OpenAI endpoint."""
    async with a_client(guarded) as client:
        assert [model.id async for model in client.models.list()] == ["team-a/chat"]
        assert (await client.models.retrieve("team-a/chat")).owned_by == "team-a"
        whole = await client.chat.completions.create(model="chat", messages=TALK)
        assert whole.choices[0].message.content == "Paris is nice"
        stream = await client.chat.completions.create(model="chat", messages=TALK, stream=True)
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Paris is nice"
        assert all(chunk.usage is None for chunk in chunks)
        options = {"include_usage": True}
        stream = await client.chat.completions.create(
            model="chat", messages=TALK, stream=True, stream_options=options
        )
        assert [chunk async for chunk in stream][-1].usage.completion_tokens == 3


async def test_errors_are_the_packages_own(guarded):
    """401, 403, 404 and a broken stream become the exceptions that its users catch."""
    async with a_client(guarded, "eve") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
    async with a_client(guarded) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model="team-a/secret", messages=TALK)
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nope", messages=TALK)
        guarded.engine.fail_after = 1
        stream = await client.chat.completions.create(model="chat", messages=TALK, stream=True)
        with pytest.raises(openai.APIError, match="NaN"):
            async for _ in stream:
                pass
