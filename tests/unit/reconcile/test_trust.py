"""What others may write, and what vanishes without a word: neither misleads the whole fleet."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.unit.planning.builders import a_fingerprint
from tests.unit.reconcile.builders import SETTINGS, VERDICT, a_record, facts
from trimtab.observe.caches import Caches
from trimtab.observe.capabilities import ASSUMED, newest
from trimtab.observe.inspections import Refusal, parse_verdict
from trimtab.observe.intents import Shown
from trimtab.observe.loads import LoadBook
from trimtab.observe.records import config_map
from trimtab.observe.workers import AdminClient
from trimtab.planning.fingerprint import FingerprintInvalidError, dump, parse
from trimtab.planning.plan import FingerprintNeed
from trimtab.planning.prices import PriceBook, parse_price_book
from trimtab.planning.snapshot import CpuPool, FleetSnapshot
from trimtab.reconcile.auditing import Auditor
from trimtab.reconcile.fingerprints import FingerprintKeeper
from trimtab.reconcile.fleet import Planned
from trimtab.reconcile.group.decide import parse_set
from trimtab.reconcile.naming import routed_models
from trimtab.reconcile.pollers import GatewayPoller, PricePoller, WorkerPoller, component_pods
from trimtab.reconcile.snapshot import Surroundings, cpu_models, fleet_snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trimtab.observe.cache import Change


def a_pod(name: str, *, namespace: str, component: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "trimtab", "app.kubernetes.io/component": component}
    meta = {"name": name, "namespace": namespace, "uid": name, "labels": labels}
    state = {"podIP": "10.0.0.1", "containerStatuses": [{"state": {"running": {}}}]}
    return {"metadata": meta | {"resourceVersion": "1"}, "status": state}


def a_world(caches: Caches) -> Any:
    return SimpleNamespace(
        caches=caches,
        settings=SETTINGS,
        worker_states={},
        engines={},
        clock=lambda: 0.0,
        utcnow=lambda: datetime(2026, 11, 23, tzinfo=UTC),
        loads=LoadBook(),
        capabilities=ASSUMED,
        prices=PriceBook(),
        price_problem="",
    )


def test_only_gateways_of_our_own_namespace_are_heard() -> None:
    """A tenant's pod with a gateway's labels reports nobody's traffic."""
    caches = Caches()
    caches.pods.put(a_pod("ours", namespace="trimtab-system", component="gateway"))
    caches.pods.put(a_pod("theirs", namespace="team-a", component="gateway"))
    assert [p.name for p in component_pods(a_world(caches), "gateway")] == ["ours"]


async def test_a_worker_that_talks_nonsense_silences_nobody_else() -> None:
    """One garbled state is passed over; the other workers' states are taken."""
    caches = Caches()
    caches.pods.put(a_pod("bad", namespace="team-a", component="worker"))
    caches.pods.put(a_pod("good", namespace="team-b", component="worker"))
    world = a_world(caches)
    answers = {"bad": {"models": ["x"], "capabilities": {}}, "good": {"revision": 1}}

    class Admin:
        async def get_all(self, addresses: Any, path: str) -> Any:
            return dict(answers)

    poller = WorkerPoller(
        world,
        Admin(),  # type: ignore[arg-type]
        wake=lambda *_: None,
        replan=lambda: None,
        moved=lambda: None,
        anchors=SimpleNamespace(take=lambda *_: None, keep_pods=lambda _: None),  # type: ignore[arg-type]
    )
    await poller.step()
    assert set(world.worker_states) == {"good"}


NESTED = "[" * 100_000


@pytest.mark.parametrize("group", [{}, {"trimtab.dev/group": "g"}])
def test_brackets_without_end_stop_nobodys_plan(group: dict[str, str]) -> None:
    """Whoever may edit one Deployment's annotation must not end planning for the whole fleet."""
    caches = Caches()
    caches.inferenceintents._store(a_record())
    meta = {
        "name": "chat",
        "namespace": "team-a",
        "uid": "d",
        "labels": {"trimtab.dev/owner-uid": "uid-chat", **group},
        "ownerReferences": [{"uid": "uid-chat"}],
        "annotations": {"trimtab.dev/rollout": NESTED},
    }
    caches.deployments.put({"metadata": meta, "spec": {"replicas": 1}})
    assert caches.deployments.owned_by("uid-chat")
    snapshot = fleet_snapshot(
        caches,
        loads=LoadBook(),
        settings=SETTINGS,
        surroundings=Surroundings(capabilities=ASSUMED),
    )
    assert snapshot.assignments == ()


def test_brackets_without_end_are_as_good_as_no_document() -> None:
    """Python's reader tells them by another error than other nonsense."""
    meta = {"name": "set", "namespace": "team-a", "uid": "s"}
    assert parse_set(config_map({"metadata": meta, "data": {"models.json": NESTED}})) == {}
    assert routed_models(NESTED) == []
    assert isinstance(parse_verdict(NESTED), Refusal)
    with pytest.raises(FingerprintInvalidError):
        parse(NESTED)


async def test_a_worker_that_answers_brackets_without_end_has_not_answered() -> None:
    """All workers are asked at once, and one answer that cannot be read leaves the others'."""

    class Answer:
        status = 200

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def json(self, **_: Any) -> Any:
            return json.loads(NESTED)

    client = AdminClient(port=1)
    client._session = SimpleNamespace(get=lambda _: Answer())  # type: ignore[assignment]
    assert await client.get_all([("u", "10.0.0.1")], "/-/state") == {"u": None}


@pytest.mark.parametrize("garbled", ["all", [], {"tensor_parallel_sizes": ["many"]}])
def test_garbled_capabilities_are_as_good_as_none(garbled: Any) -> None:
    """The engine of this release is assumed where a worker does not say what it can."""
    found = newest([{"capabilities": garbled}])
    assert found.tensor_parallel_sizes == ASSUMED.tensor_parallel_sizes


def test_a_tenants_config_map_names_no_cpu() -> None:
    """CPU models come from what the operator keeps itself."""
    caches = Caches()
    for namespace, node in (("trimtab-system", "n1"), ("team-a", "n2")):
        meta: dict[str, Any] = {"name": "x", "namespace": namespace, "uid": node}
        meta["annotations"] = {"trimtab.dev/node": node}
        caches.configmaps.put({"metadata": meta, "data": {"inspection.json": VERDICT}})
    assert cpu_models(caches, settings=SETTINGS) == {"n1": "Test CPU"}


async def test_what_an_audit_finds_gone_is_told_like_a_deletion() -> None:
    """A node that vanished while the watch was cut must not be planned on."""
    caches = Caches()
    caches.nodes.put({"metadata": {"name": "n", "uid": "n", "resourceVersion": "1"}})
    told: list[tuple[str, Change[Any]]] = []
    now = 0.0

    class Client:
        async def items(self, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
            nothing: tuple[dict[str, Any], ...] = ()
            for item in nothing:
                yield item

    auditor = Auditor(
        client=Client(),  # type: ignore[arg-type]
        caches=caches,
        clock=lambda: now,
        wake=lambda *_: None,
        differs=lambda *_: None,
        changed=lambda plural, change: told.append((plural, change)),
    )
    await auditor.step()
    now = 61.0
    auditor.relisted("nodes")
    await auditor.step()
    assert len(caches.nodes) == 0
    assert [(plural, change.after) for plural, change in told] == [("nodes", None)]


async def test_a_measurement_that_no_model_fits_is_repeated() -> None:
    """Kept, it would count as measured, and the plan would rest on an estimate for ever."""
    caches = Caches()
    applied: list[Any] = []
    needed: list[str] = []

    class Executor:
        async def apply(self, manifest: Any) -> None:
            applied.append(manifest)

        async def delete(self, deletion: Any) -> None: ...

    keeper = FingerprintKeeper(
        caches=caches,
        executor=Executor(),  # type: ignore[arg-type]
        fleet=SimpleNamespace(ask=lambda: None),  # type: ignore[arg-type]
        settings=SETTINGS,
        clock=lambda: 0.0,
        changed=needed.append,
    )
    meta = {"name": "fp-k", "namespace": "trimtab-system", "uid": "j"}
    job, _ = caches.jobs.put({"metadata": meta})
    document = json.loads(dump(a_fingerprint()))
    await keeper._keep(job, "k", json.dumps(document))
    assert len(applied) == 1
    for row in document["decode"]:
        row[2], row[4] = 10 * row[4], row[2]
    await keeper._keep(job, "k", json.dumps(document))
    assert len(applied) == 1
    assert needed == ["k"]


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (PriceBook(), "No prices are known"),
        (parse_price_book({"memoryGiBHour": "1"}), "The last valid prices stay in force."),
    ],
)
async def test_a_broken_price_book_says_which_prices_hold(before: PriceBook, words: str) -> None:
    """After a restart there are no last valid prices, and nobody is told that there are."""
    world = a_world(Caches())
    world.prices = before

    class Client:
        async def get(self, *_: Any, **__: Any) -> Any:
            return {"data": {"prices.yaml": "cpuHours: 1"}}

    async def invalid(*_: Any) -> None: ...

    poller = PricePoller(
        world,
        Client(),  # type: ignore[arg-type]
        replan=lambda: None,
        wake_all=lambda _: None,
        invalid=invalid,
    )
    await poller.step()
    assert words in world.price_problem
    assert "cpuHours" in world.price_problem


async def test_figures_that_no_gateway_knows_any_more_judge_nothing() -> None:
    """Gateways that start anew have seen no traffic; a verdict on the old figures would stay for ever."""
    caches = Caches()
    caches.inferenceintents._store(a_record())
    caches.pods.put(a_pod("gateway", namespace="trimtab-system", component="gateway"))
    world = a_world(caches)
    world.gateway_answers = True
    world.shown = {"uid-chat": Shown(figures={"requestsPerSecond": "9"}, enough=True)}
    woken: list[tuple[str, str]] = []

    class Admin:
        async def get_all(self, addresses: Any, path: str) -> Any:
            return {"gateway": {"now": 1.0, "intents": {}}}

    poller = GatewayPoller(
        world,
        Admin(),  # type: ignore[arg-type]
        wake=lambda uid, cause: woken.append((uid, cause)),
        replan=lambda: None,
    )
    await poller.step()
    await poller.step()
    assert world.shown == {}
    assert woken == [("uid-chat", "observed")]


def a_need(*, cpu_model: str, threads: int) -> FingerprintNeed:
    return FingerprintNeed(
        key="0123456789abcdef",
        architecture=facts().model.architecture,
        product="cpu",
        cpu_model=cpu_model,
        threads=threads,
        precision="bf16",
        kv_precision="bf16",
        tensor_parallel_size=1,
        priority=0,
    )


@pytest.mark.parametrize(
    ("cpu_model", "threads", "nodes"),
    [("old", 1, ["n1"]), ("new", 4, ["n3"]), ("new", 1, ["n2", "n3"]), ("unknown", 1, [])],
)
async def test_a_measurement_runs_where_its_answer_is(
    cpu_model: str, threads: int, nodes: list[str]
) -> None:
    """On another CPU it would answer another question; two on one node measure each other."""
    applied: list[Any] = []

    class Executor:
        async def apply(self, manifest: Any) -> None:
            applied.append(manifest)

    pools = tuple(
        CpuPool(node=node, cpu_model=model, millicores=cores * 1000, memory_bytes=1)
        for node, model, cores in (("n1", "old", 4), ("n2", "new", 2), ("n3", "new", 8))
    )
    snapshot = FleetSnapshot(intents=(), pools=pools, capabilities=ASSUMED)
    keeper = FingerprintKeeper(
        caches=Caches(),
        executor=Executor(),  # type: ignore[arg-type]
        fleet=SimpleNamespace(  # type: ignore[arg-type]
            current=Planned(revision=1, snapshot=snapshot, by_uid={})
        ),
        settings=SETTINGS,
        clock=lambda: 0.0,
        changed=lambda _: None,
    )
    await keeper._start(a_need(cpu_model=cpu_model, threads=threads))
    affinity = applied[0]["spec"]["template"]["spec"]["affinity"]
    chosen = affinity.get("nodeAffinity", {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution", {}
    )
    named = [t["matchFields"][0]["values"][0] for t in chosen.get("nodeSelectorTerms", ())]
    assert named == nodes
    assert affinity["podAntiAffinity"]
