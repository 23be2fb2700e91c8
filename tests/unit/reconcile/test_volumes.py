"""Which claims are looked at, and what is made of what the server says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.reconcile.builders import SETTINGS, VERDICT, a_record
from trimtab.kube.errors import ApiError
from trimtab.observe.caches import Caches
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.loads import LoadBook
from trimtab.reconcile.inferenceintent import jobs
from trimtab.reconcile.labels import Owner
from trimtab.reconcile.snapshot import Surroundings, fleet_snapshot, parse_intent
from trimtab.reconcile.volumes import AGAIN_SECONDS, VolumeReader

KEY = ("team-a", "models")
ON_N0 = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n0"]}
AFFINITY = {"required": {"nodeSelectorTerms": [{"matchExpressions": [ON_N0]}]}}
BOUND = {"/models": {"spec": {"volumeName": "pv"}}, "/pv": {"spec": {"nodeAffinity": AFFINITY}}}


class Server:
    def __init__(self, **refuse: int) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self.objects: dict[str, Any] = dict(BOUND)
        self.refuse = refuse
        self.reader = VolumeReader(self, clock=lambda: self.now)  # type: ignore[arg-type]

    async def get(self, resource: Any, *, namespace: str | None, name: str) -> Any:
        self.asked.append(f"{resource.plural}/{namespace or ''}/{name}")
        if code := self.refuse.get(resource.plural):
            raise ApiError(method="GET", path=name, code=code, status={"message": "refused"})
        return self.objects.get(f"/{name}")


async def test_a_bound_claims_volume_is_read_once_in_a_while() -> None:
    """Plans are made often and volumes seldom change; one that nobody names is forgotten."""
    server, shared = Server(), a_record(sharing="Shared")
    for _ in range(2):
        assert await server.reader.read([shared]) == {KEY: BOUND["/pv"]}
    assert server.asked == ["persistentvolumeclaims/team-a/models", "persistentvolumes//pv"]
    server.now += AGAIN_SECONDS
    await server.reader.read([shared])
    assert len(server.asked) == 4
    assert await server.reader.read([]) == {}


@pytest.mark.parametrize(
    "spec",
    [
        {"sharing": "Exclusive"},
        {},
        {"sharing": "Shared", "model": {"source": {"hostPath": {"path": "/srv/models/m"}}}},
    ],
)
async def test_only_claims_of_shared_intents_are_read(spec: dict[str, Any]) -> None:
    """Nobody else's pod has to suit several volumes."""
    server = Server()
    assert await server.reader.read([a_record(**spec)]) == {}
    assert server.asked == []


async def test_a_claim_that_is_not_bound_is_asked_for_again() -> None:
    """It binds nobody yet, and may the next time."""
    server, shared = Server(), a_record(sharing="Shared")
    server.objects["/models"] = {"spec": {}}
    assert await server.reader.read([shared]) == {}
    server.objects = dict(BOUND)
    assert await server.reader.read([shared]) == {KEY: BOUND["/pv"]}


async def test_without_the_right_sharing_goes_on() -> None:
    """A role of an older chart is no reason to plan nothing."""
    assert await Server(persistentvolumes=403).reader.read([a_record(sharing="Shared")]) == {}


async def test_a_server_that_fails_makes_no_plan() -> None:
    """A plan that knows nothing of a volume could roll a group to where it never starts."""
    with pytest.raises(ApiError):
        await Server(persistentvolumes=503).reader.read([a_record(sharing="Shared")])


async def test_the_planner_sees_where_a_volume_can_be_mounted() -> None:
    """The snapshot has the names of the nodes, and nothing for a claim without a known volume."""
    caches, record = Caches(), a_record(sharing="Shared")
    caches.inferenceintents._store(record)
    source = jobs.source_digest(parse_intent(record).spec.model.source)
    owner = Owner(namespace=record.namespace, name=record.name, uid=record.uid)
    meta = {"name": jobs.facts_name(owner, source=source), "namespace": "trimtab-system"}
    caches.configmaps.put({"metadata": meta | {"uid": "x"}, "data": {"inspection.json": VERDICT}})
    for name in ("n0", "n1"):
        labels = {"kubernetes.io/hostname": name}
        caches.nodes.put({"metadata": {"name": name, "uid": name, "labels": labels}})

    def seen(volumes: Any) -> Any:
        around = Surroundings(capabilities=ASSUMED, volumes=volumes)
        (view,) = fleet_snapshot(
            caches, loads=LoadBook(), settings=SETTINGS, surroundings=around
        ).intents
        return view.volume_nodes

    assert seen({}) is None
    assert seen({KEY: BOUND["/pv"]}) == ("n0",)
