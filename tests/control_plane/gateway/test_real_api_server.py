"""TokenReview, SubjectAccessReview and watches of a real API server, with the chart's rights."""

from __future__ import annotations

import asyncio

import pytest

from tests.control_plane.gateway.conftest import a_gateway

pytestmark = pytest.mark.control_plane


async def served(lab, letter="a", *models):
    """Publish models of a team, all served by the worker."""
    for name in models or ("chat",):
        await lab.endpoints(lab.team(letter), name)
    await lab.routes(lab.team(letter), *(models or ("chat",)))


async def test_tokens_and_rights(lab):
    """A token of audience trimtab with the right is served; without either it is 401 or 403."""
    team = lab.team("a")
    await served(lab, "a", "chat", "code")
    await served(lab, "b", "chat")
    for name in ("ada", "eve"):
        await lab.account(team, name)
    await lab.may_invoke((team, "ada"), team, "chat")
    ada, eve = [await lab.token(team, name) for name in ("ada", "eve")]
    await lab.until(f"{team}/chat", ada, (200, f"{team}/chat"))
    assert await lab.ask("chat", token=ada) == (200, f"{team}/chat")
    await lab.until(f"{team}/code", ada, (403, "permission_denied"))
    assert await lab.ask(f"{team}/chat", token=eve) == (403, "permission_denied")
    assert await lab.ask("chat", token=eve) == (404, "model_not_found")
    assert await lab.ask(f"{team}/chat") == (401, "invalid_api_key")
    assert await lab.ask(f"{team}/chat", token="garbage") == (401, "invalid_api_key")
    for audience in ("somebody-else", None):
        other = await lab.token(team, "ada", audience=audience)
        assert await lab.ask(f"{team}/chat", token=other) == (401, "invalid_api_key")
    assert await lab.models(ada) == [f"{team}/chat"]
    assert await lab.models(eve) == []


async def test_ambiguous_names(lab):
    """A caller with rights on two models of one name is told both names."""
    account = (lab.team("a"), "bob")
    await lab.account(*account)
    for letter in "ab":
        await served(lab, letter, "chat")
        await lab.may_invoke(account, lab.team(letter), "chat")
    token = await lab.token(*account)
    await lab.until("chat", token, (400, "ambiguous_model"))
    assert await lab.models(token) == [f"{lab.team('a')}/chat", f"{lab.team('b')}/chat"]


async def test_rights_taken_away_end_within_seconds(lab):
    """After its account is deleted, a caller is refused as soon as the cache has aged."""
    team = lab.team("a")
    await served(lab, "a", "chat")
    await lab.account(team, "ada")
    await lab.may_invoke((team, "ada"), team, "chat")
    token = await lab.token(team, "ada")
    await lab.until(f"{team}/chat", token, (200, f"{team}/chat"))
    path = f"/api/v1/namespaces/{team}/serviceaccounts/ada"
    await lab.client.request("DELETE", path)
    await lab.until(f"{team}/chat", token, (401, "invalid_api_key"))


async def test_watches_follow(lab):
    """Routing tables and endpoints are followed as they change and vanish."""
    team = lab.team("a")
    await lab.account(team, "ada")
    for name in ("chat", "code"):
        await lab.may_invoke((team, "ada"), team, name)
    token = await lab.token(team, "ada")
    await lab.routes(team, "chat")
    await lab.until(f"{team}/chat", token, (503, "no_ready_replica"))
    await lab.endpoints(team, "chat")
    await lab.until(f"{team}/chat", token, (200, f"{team}/chat"))
    await lab.endpoints(team, "chat", ready=False)
    await lab.until(f"{team}/chat", token, (503, "no_ready_replica"))
    await lab.endpoints(team, "code")
    await lab.routes(team, "code", revision=2)
    await lab.until(f"{team}/chat", token, (404, "model_not_found"))
    await lab.until(f"{team}/code", token, (200, f"{team}/code"))
    path = f"/api/v1/namespaces/{lab.system}/configmaps/trimtab-routes-{team}"
    await lab.client.request("DELETE", path)
    await lab.until(f"{team}/code", token, (404, "model_not_found"))


async def test_an_outage_of_the_api_server(fragile_lab, tmp_path):
    """While the API server is down, known callers are served, and a new gateway starts from disk.

    Callers that the new process has not seen get 503 until the API server is back.
    """
    lab, proxy, kubeconfig = fragile_lab
    team = lab.team("a")
    model = f"{team}/chat"
    await served(lab, "a", "chat")
    for name in ("ada", "bob"):
        await lab.account(team, name)
        await lab.may_invoke((team, name), team, "chat")
    ada, bob = [await lab.token(team, name) for name in ("ada", "bob")]
    async with a_gateway(lab, tmp_path, kubeconfig=kubeconfig, killed=True):
        await lab.until(model, ada, (200, model))
        async with asyncio.timeout(30):
            while not (tmp_path / "state" / "routes.json").exists():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.05)
        await proxy.stop_listening()
        assert await lab.ask(model, token=bob) == (503, "AuthUnavailable")
        await asyncio.sleep(11)  # past the 10 s in which an answer counts without a question
        assert await lab.ask(model, token=ada) == (200, model)
        assert await lab.ready()
    async with a_gateway(lab, tmp_path, kubeconfig=kubeconfig):
        assert await lab.ready()
        assert await lab.ask(model, token=ada) == (503, "AuthUnavailable")
        await proxy.listen_again()
        await lab.until(model, ada, (200, model))
        await lab.routes(team, "chat", "code", revision=2)
        await lab.until(f"{team}/code", ada, (403, "permission_denied"))
    assert proxy.injected["refuse"] == 1
