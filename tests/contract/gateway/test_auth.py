from __future__ import annotations

import asyncio
import json

import pytest

from tests.contract.gateway.conftest import ROUTES, a_chat, a_config_map, a_route


def a_user(name, *, audiences=("trimtab",)):
    return {"authenticated": True, "user": {"username": name}, "audiences": list(audiences)}


@pytest.fixture
async def guarded(bench):
    """Models chat in team-a and team-b; ada may invoke team-a's, bob both, eve none."""
    bench.api.tokens = {
        "ada": a_user("ada"),
        "bob": a_user("bob"),
        "eve": a_user("eve"),
        "wrong-audience": a_user("ada", audiences=["https://kubernetes"]),
        "no-audience": a_user("ada", audiences=[]),
    }
    bench.api.rights = {("ada", "team-a", "chat"), ("bob", "team-a", "chat"), ("bob", "", "")}
    bench.api.rights.add(("bob", "team-b", "chat"))
    for namespace in ("team-a", "team-b"):
        bench.api.put(ROUTES, a_config_map(a_route(), namespace=namespace))
    bench.engine = await bench.add_worker("u1")
    await bench.start_gateway(auth="Kubernetes")
    await bench.settled(models=2)
    return bench


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("token", ["nobody", "wrong-audience", "no-audience"])
async def test_refused_tokens_are_401(guarded, token):
    """Unknown tokens, and tokens for another audience, are refused."""
    status, reply, headers = await guarded.post(a_chat(), **bearer(token))
    assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
    assert headers["WWW-Authenticate"] == "Bearer"
    assert guarded.engine.requests == []


async def test_missing_tokens_are_401(guarded):
    """A request without a token is refused, the list of models too."""
    assert (await guarded.post(a_chat()))[0] == 401
    assert (await guarded.get("/v1/models"))[0] == 401
    assert (await guarded.get("/healthz"))[0] == 200


async def test_bodies_of_strangers_are_not_read(guarded):
    """A caller without a token is refused before the body has arrived."""
    never = asyncio.Event()

    async def endless():
        yield b"{"
        await never.wait()

    url = guarded.url("/v1/chat/completions")
    async with guarded.session.post(url, data=endless()) as reply:
        assert reply.status == 401


async def test_rights_decide(guarded):
    """A caller with the right is served, one without gets a 403 that names the right."""
    assert (await guarded.post(a_chat(), **bearer("ada")))[0] == 200
    status, reply, _ = await guarded.post(a_chat(), **bearer("eve"))
    assert (status, reply["error"]["code"]) == (403, "permission_denied")
    assert "inferenceintents" in reply["error"]["message"]
    assert len(guarded.engine.requests) == 1


async def test_bare_names_follow_rights(guarded):
    """A bare name is unique for ada, ambiguous for bob, unknown to eve."""
    status, _, _ = await guarded.post(a_chat(model="chat"), **bearer("ada"))
    assert status == 200
    status, reply, _ = await guarded.post(a_chat(model="chat"), **bearer("bob"))
    assert (status, reply["error"]["code"]) == (400, "ambiguous_model")
    assert "team-a/chat, team-b/chat" in reply["error"]["message"]
    status, reply, _ = await guarded.post(a_chat(model="chat"), **bearer("eve"))
    assert (status, reply["error"]["code"]) == (404, "model_not_found")


async def test_models_listed_are_those_one_may_invoke(guarded):
    """Each caller sees its own models; a right on everything saves the questions."""

    async def listed(token):
        text = (await guarded.get("/v1/models", **bearer(token)))[1]
        return [row["id"] for row in json.loads(text)["data"]]

    assert await listed("ada") == ["team-a/chat"]
    assert await listed("eve") == []
    before = len(guarded.api.requests)
    assert await listed("bob") == ["team-a/chat", "team-b/chat"]
    posts = [row for row in guarded.api.requests[before:] if row[0] == "POST"]
    assert len(posts) == 2


async def test_answers_are_remembered(guarded):
    """Ten requests of one caller ask the API server twice, not twenty times."""
    before = len(guarded.api.requests)
    for _ in range(10):
        assert (await guarded.post(a_chat(), **bearer("ada")))[0] == 200
    assert len([row for row in guarded.api.requests[before:] if row[0] == "POST"]) == 2
    assert guarded.metric("trimtab_gateway_auth_cache_total", result="fresh") == 18


async def test_outage(guarded, monkeypatch):
    """With the API server gone, who was seen goes on, who was not gets 503 AuthUnavailable."""
    assert (await guarded.post(a_chat(), **bearer("ada")))[0] == 200
    monkeypatch.setattr("trimtab_workers.gateway.authcache.FRESH_SECONDS", 0.0)
    await guarded.api.stop()
    assert (await guarded.post(a_chat(), **bearer("ada")))[0] == 200
    status, reply, headers = await guarded.post(a_chat(), **bearer("bob"))
    assert (status, reply["error"]["code"]) == (503, "AuthUnavailable")
    assert "Retry-After" in headers
    assert guarded.metric("trimtab_gateway_auth_unavailable_total") == 1
