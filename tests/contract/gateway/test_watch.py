from __future__ import annotations

import asyncio
import json

import pytest

from tests.contract.gateway.conftest import (
    ROUTES,
    SLICES,
    a_chat,
    a_config_map,
    a_route,
    a_slice,
    eventually,
)
from trimtab_workers.gateway.kube import watch


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses shrink to a hundredth; their growth is tested on its own."""
    monkeypatch.setattr(watch, "_FIRST_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(watch, "_LONGEST_PAUSE_SECONDS", 0.05)


def names(gateway):
    return [route.public_name for route in gateway.directory.table.models()]


async def test_changes_arrive(bench):
    """Models appear, change and vanish as their ConfigMaps do."""
    await bench.start_gateway()
    await bench.until(lambda gateway: gateway.directory.live)
    bench.api.put(ROUTES, a_config_map(a_route(), revision=1))
    await bench.until(lambda gateway: names(gateway) == ["team-a/chat"])
    bench.api.put(ROUTES, a_config_map(a_route(), a_route("code"), revision=2))
    await bench.until(lambda gateway: names(gateway) == ["team-a/chat", "team-a/code"])
    bench.api.put(ROUTES, a_config_map(a_route("other"), namespace="team-b"))
    await bench.until(lambda gateway: len(names(gateway)) == 3)
    bench.api.delete(ROUTES, "trimtab-routes-team-a")
    await bench.until(lambda gateway: names(gateway) == ["team-b/other"])
    assert len(bench.api.lists(ROUTES)) == 1


async def test_events_may_be_as_large_as_an_object(bench):
    """A ConfigMap of 600 KB passes through the watch, whether or not it holds routes."""
    await bench.start_gateway()
    await bench.until(lambda gateway: gateway.directory.live)
    large = a_config_map(name="fp-0123", text="x" * 600_000)
    bench.api.put(ROUTES, large)
    many = [a_route(f"model-{index}") for index in range(5_000)]
    bench.api.put(ROUTES, a_config_map(*many))
    await bench.until(lambda gateway: len(names(gateway)) == 5_000)
    assert len(bench.api.watches(ROUTES)) == 1


async def test_selectors_and_names_restrict(bench):
    """Only our managed-by label is asked for, and only routing ConfigMaps count."""
    stray = a_config_map(a_route("stray"), namespace="team-z", name="fp-0123")
    bench.api.put(ROUTES, stray)
    foreign = a_config_map(a_route("foreign"), namespace="team-y")
    foreign["metadata"]["labels"] = {}
    bench.api.put(ROUTES, foreign)
    bench.api.put(ROUTES, a_config_map(a_route()))
    await bench.start_gateway()
    await bench.until(lambda gateway: gateway.directory.live)
    assert names(bench.gateway) == ["team-a/chat"]
    for query in bench.api.lists(ROUTES) + bench.api.watches(ROUTES):
        assert query["labelSelector"] == "app.kubernetes.io/managed-by=trimtab-operator"
    for query in bench.api.lists(SLICES):
        assert query["labelSelector"] == "app.kubernetes.io/part-of=trimtab"


async def test_lists_come_in_pages(bench):
    """A list longer than a page is read whole."""
    bench.api.page = 2
    for index in range(5):
        bench.api.put(ROUTES, a_config_map(a_route(), namespace=f"team-{index}"))
    await bench.start_gateway()
    await bench.until(lambda gateway: len(names(gateway)) == 5)
    assert len(bench.api.lists(ROUTES)) == 3


async def test_watches_resume_where_they_were(bench):
    """After a cut the watch resumes from its last version; nothing is listed again."""
    bench.api.put(ROUTES, a_config_map(a_route()))
    await bench.start_gateway()
    await bench.until(lambda gateway: names(gateway) == ["team-a/chat"])
    bench.api.bookmark(ROUTES)
    bench.api.put(ROUTES, a_config_map(a_route("code"), revision=2))
    await bench.until(lambda gateway: names(gateway) == ["team-a/code"])
    version = bench.api.version
    await bench.api.hang_up()
    bench.api.put(ROUTES, a_config_map(a_route("third"), revision=3))
    await bench.until(lambda gateway: names(gateway) == ["team-a/third"])
    assert bench.api.watches(ROUTES)[-1]["resourceVersion"] == str(version)
    assert bench.api.watches(ROUTES)[-1]["allowWatchBookmarks"] == "true"
    assert len(bench.api.lists(ROUTES)) == 1


async def test_forgotten_versions_lead_to_a_new_list(bench):
    """410 means list again, which notices a deletion whose event never came."""
    bench.api.put(ROUTES, a_config_map(a_route()))
    bench.api.put(ROUTES, a_config_map(a_route(), namespace="team-b"))
    await bench.start_gateway()
    await bench.until(lambda gateway: len(names(gateway)) == 2)
    bench.api.delete(ROUTES, "trimtab-routes-team-b", quietly=True)
    bench.api.forget()
    await bench.api.hang_up()
    await bench.until(lambda gateway: names(gateway) == ["team-a/chat"])
    assert bench.metric(
        "trimtab_gateway_watch_restarts_total", resource="configmaps", reason="expired"
    )


async def test_errors_and_garbage_are_survived(bench):
    """500s and broken lines are retried; serving goes on meanwhile."""
    bench.api.put(ROUTES, a_config_map(a_route()))
    await bench.add_worker("u1")
    await bench.start_gateway()
    await bench.settled()
    bench.api.status = 500
    await bench.api.hang_up()
    await bench.api.until_fault(ROUTES, "500")
    assert (await bench.post(a_chat()))[0] == 200
    bench.api.garbage = True
    bench.api.status = None
    await bench.api.until_fault(ROUTES, "garbage")
    assert (await bench.post(a_chat()))[0] == 200
    bench.api.garbage = False
    bench.api.put(ROUTES, a_config_map(a_route("third"), revision=3))
    await bench.until(lambda gateway: names(gateway) == ["team-a/third"])
    assert bench.metric(
        "trimtab_gateway_watch_restarts_total", resource="configmaps", reason="failed"
    )


async def test_frozen_watches_are_left(bench, monkeypatch):
    """A watch whose connection lives but says nothing is given up and resumed."""
    monkeypatch.setattr(watch, "_SILENCE_SECONDS", 0.1)
    bench.api.frozen = True
    await bench.start_gateway()
    await bench.until(lambda gateway: gateway.directory.live)
    bench.api.put(ROUTES, a_config_map(a_route()))
    await eventually(lambda: len(bench.api.watches(ROUTES)) >= 2)
    assert names(bench.gateway) == []
    bench.api.frozen = False
    await bench.until(lambda gateway: names(gateway) == ["team-a/chat"])


async def test_rotated_tokens_are_read_again(bench, tmp_path, monkeypatch):
    """When the API server takes the old token no more, lists and watches go on with the new one."""
    file = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(file))
    config = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{bench.api.port}"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }

    def rotate(token):
        file.write_text(json.dumps(config | {"users": [{"name": "u", "user": {"token": token}}]}))
        bench.api.token = token

    rotate("first")
    bench.api.put(ROUTES, a_config_map(a_route()))
    await bench.start_gateway(own_config=False)
    await bench.until(lambda gateway: names(gateway) == ["team-a/chat"])
    await eventually(lambda: bench.api.watches(ROUTES))
    rotate("second")
    await bench.api.hang_up()
    await bench.api.until_fault(ROUTES, "401")
    bench.api.put(ROUTES, a_config_map(a_route("code"), revision=2))
    await bench.until(lambda gateway: names(gateway) == ["team-a/code"])
    assert len(bench.api.lists(ROUTES)) == 1


async def test_bad_documents_change_nothing(bench):
    """A routing document that cannot be read leaves its namespace as it was."""
    bench.api.put(ROUTES, a_config_map(a_route()))
    await bench.start_gateway()
    await bench.until(lambda gateway: names(gateway) == ["team-a/chat"])
    bench.api.put(ROUTES, a_config_map(text='{"v": 1}'))
    bench.api.put(ROUTES, a_config_map(a_route(), namespace="team-b"))
    await bench.until(lambda gateway: len(names(gateway)) == 2)
    assert bench.metric("trimtab_gateway_route_errors_total") == 1


async def test_the_last_good_copy_serves_without_api_server(bench, tmp_path):
    """A gateway that starts while the API server is down serves from disk, then catches up."""
    bench.api.put(ROUTES, a_config_map(a_route()))
    await bench.add_worker("u1")
    first = await bench.start_gateway(state_dir=tmp_path)
    await bench.settled()
    file = tmp_path / "routes.json"
    await eventually(lambda: file.exists() and json.loads(file.read_text())["slices"])
    await bench.api.stop()
    await first.close()

    await bench.start_gateway(state_dir=tmp_path)
    assert bench.gateway.directory.loaded
    assert not bench.gateway.directory.live
    assert (await bench.get("/readyz", listener="admin"))[0] == 200
    assert (await bench.post(a_chat()))[0] == 200
    assert bench.metric("trimtab_gateway_routes_live") == 0
    bench.api.put(ROUTES, a_config_map(a_route("code"), revision=2))
    await bench.api.start()
    await bench.until(lambda gateway: names(gateway) == ["team-a/code"])
    assert bench.metric("trimtab_gateway_routes_live") == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"routes": {"a": "x"}, "slices": []}', '{"routes": 3, "slices": 4}']
)
async def test_a_broken_copy_is_ignored(bench, tmp_path, text):
    """A copy that cannot be read is left aside; the gateway is not ready until it has a table."""
    (tmp_path / "routes.json").write_text(text)
    bench.api.status = 500
    await bench.start_gateway(state_dir=tmp_path)
    status, reason = await bench.get("/readyz", listener="admin")
    assert status == 503
    assert "routing table" in reason
    code, reply, _ = await bench.post(a_chat())
    assert (code, reply["error"]["code"]) == (503, "no_routes")
    assert (await bench.get("/v1/models"))[0] == 503


async def test_an_outage_later_changes_nothing(bench):
    """While the API server is away the gateway serves what it knows, and stays ready."""
    bench.api.put(ROUTES, a_config_map(a_route()))
    await bench.add_worker("u1")
    await bench.start_gateway()
    await bench.settled()
    await bench.api.stop()
    assert (await bench.post(a_chat()))[0] == 200
    assert (await bench.get("/readyz", listener="admin"))[0] == 200
    await bench.api.start()
    bench.api.put(ROUTES, a_config_map(a_route("code"), revision=2))
    await bench.until(lambda gateway: names(gateway) == ["team-a/code"])


async def test_replicas_work_on_their_own(bench):
    """Two gateways follow the same objects without knowing each other."""
    bench.api.put(ROUTES, a_config_map(a_route()))
    bench.api.put(SLICES, a_slice("u1", 1))
    one = await bench.start_gateway()
    await bench.settled()
    two = await bench.start_gateway()
    await bench.settled()
    assert names(one) == names(two) == ["team-a/chat"]


class Script:
    """A client whose lists and watches fail as told."""

    def __init__(self, *failures):
        self.failures = list(failures)

    async def request(self, *_, **__):
        if self.failures:
            raise self.failures.pop(0)
        raise asyncio.CancelledError


async def test_pauses_grow_and_are_jittered(bench, monkeypatch):
    """Failures in a row are retried after growing, jittered, bounded pauses; 429 is obeyed."""
    from trimtab.kube.errors import ApiError
    from trimtab_workers.gateway.metrics import GatewayMetrics

    monkeypatch.setattr(watch, "_FIRST_PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(watch, "_LONGEST_PAUSE_SECONDS", 30.0)
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)

    throttled = ApiError(method="GET", path="/", code=429, status={}, retry_after_seconds=77.0)
    reflector = watch.Reflector(
        client=Script(*[OSError("down")] * 9, throttled),
        collection=watch.Collection(name="x", path="/x", label_selector=""),
        sink=bench,
        metrics=GatewayMetrics(),
        jitter=lambda: 0.0,
        sleep=sleep,
    )
    with pytest.raises(asyncio.CancelledError):
        await reflector.run()
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0, 77.0]
