"""A sharing group whose operator is killed between writes: joins, the founder's deletion, nobody lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.faults import KillAfterWrite, Match

if TYPE_CHECKING:
    from e2e.faults.bench import Bench
    from e2e.faults.seen import Seen

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(900)]

GROUPED = "trimtab.dev/group"
LOAD = {"requestsPerSecond": "0.2", "promptTokens": 64, "outputTokens": 32}


def _shared(bench: Bench, name: str) -> dict[str, Any]:
    return bench.intent(name, sharing="Shared", load=LOAD)


def _group(bench: Bench, kind: str) -> list[dict[str, Any]]:
    return [o for o in bench.list(kind) if GROUPED in o["metadata"].get("labels", {})]


def _models(bench: Bench) -> list[str]:
    sets = _group(bench, "configmaps")
    found = [m["name"] for s in sets for m in json.loads(s["data"]["models.json"])["models"]]
    return [name.partition("/")[2] for name in found]


def _killing(bench: Bench, *resources: str) -> KillAfterWrite:
    """Kill the operator after its first write to each of these resources of the scenario's namespace."""
    rest = list(resources)
    writes = Match(namespace=bench.namespace, verbs=frozenset({"patch"}), mutating=True)

    def first(seen: Seen) -> bool:
        if seen.resource not in rest or not writes(seen):
            return False
        rest.remove(seen.resource)
        return True

    fault = KillAfterWrite(match=first, times=None, kill=bench.operator.kill)
    bench.proxy.add(fault)
    return fault


def test_killed_between_the_writes_of_a_join_and_of_the_founders_end(bench: Bench) -> None:
    """A joiner is served by the pod that runs, and the founder's deletion takes nothing of the other's."""
    bench.apply(_shared(bench, "chat"))
    bench.wait_settled("chat")
    pods = bench.worker_pods()
    (group,) = {d["metadata"]["labels"][GROUPED] for d in _group(bench, "deployments")}

    joining = _killing(bench, "deployments", "configmaps", "pods")
    bench.apply(_shared(bench, "tiny"))
    bench.wait_settled("tiny", seconds=240)
    bench.wait("both in the set", lambda: _models(bench) == ["chat", "tiny"])
    bench.proxy.clear()
    assert joining.injected == 3
    assert bench.worker_pods() == pods

    leaving = _killing(bench, "configmaps")
    bench.delete("chat", wait=False)
    bench.wait("the founder to go", lambda: bench.get("chat") is None, seconds=120)
    bench.wait("the founder's model to go", lambda: _models(bench) == ["tiny"], seconds=120)
    bench.proxy.clear()
    bench.wait("operator leads", bench.operator.ready)
    bench.wait_settled("tiny")
    assert leaving.injected == 1
    assert bench.worker_pods() == pods
    (left,) = _group(bench, "deployments")
    assert left["metadata"]["labels"][GROUPED] == group
    assert [o["name"] for o in left["metadata"]["ownerReferences"]] == ["tiny"]
    status = (bench.get("tiny") or {})["status"]
    assert status["plan"]["group"] == group
    condition = st.condition(bench.get("tiny") or {}, "Serving")
    assert condition["status"] == "True"
