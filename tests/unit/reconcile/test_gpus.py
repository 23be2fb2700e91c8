"""GPUs of nodes in the snapshot, and workers that ask for them."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from tests.unit.reconcile.builders import SETTINGS, a_plan, a_record, an_observed, an_option
from tests.unit.reconcile.test_decide import of_kind
from trimtab.api.v1alpha1.names import COMPONENT_LABEL, OWNER_UID_LABEL, PART_OF_LABEL
from trimtab.observe.caches import Caches
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.loads import LoadBook
from trimtab.observe.records import deployment
from trimtab.observe.requests import Requested
from trimtab.planning.replan import Step
from trimtab.planning.snapshot import Config, GpuPool
from trimtab.reconcile.inferenceintent.decide import decide
from trimtab.reconcile.inferenceintent.rollout import Rollout
from trimtab.reconcile.pollers import ForeignPoller
from trimtab.reconcile.sealed import ROLLOUT_ANNOTATION
from trimtab.reconcile.snapshot import Surroundings, fleet_snapshot, several_nodes
from trimtab.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PRODUCT = "NVIDIA-H100-80GB-HBM3"
LABELS = {"nvidia.com/gpu.product": PRODUCT, "nvidia.com/gpu.memory": "81559"}
WITH_GPUS = SETTINGS.model_copy(update={"gpu_images": {"nvidia.com/gpu": "worker-cuda:1"}})
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def a_node(name: str, *, gpus: int = 0, **changes: Any) -> dict[str, Any]:
    allocatable: dict[str, Any] = {"cpu": "64", "memory": "512Gi"}
    allocatable |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
    labels = changes.get("labels", LABELS if gpus else {})
    return {
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": labels},
        "spec": {"taints": changes.get("taints", [])},
        "status": {
            "allocatable": allocatable | changes.get("allocatable", {}),
            "conditions": [{"type": "Ready", "status": changes.get("ready", "True")}],
        },
    }


def snapshot_of(
    *nodes: dict[str, Any],
    settings: Settings = WITH_GPUS,
    foreign: dict[str, Requested] | None = None,
) -> Any:
    caches = Caches()
    for body in nodes:
        caches.nodes.apply_event("ADDED", body)
    around = Surroundings(capabilities=ASSUMED, foreign=foreign or {})
    return fleet_snapshot(caches, loads=LoadBook(), settings=settings, surroundings=around)


def test_gpus_become_a_pool_less_what_others_use() -> None:
    """Healthy GPUs minus foreign pods' requests; the node's CPUs feed them and are no pool."""
    used = {"g0": Requested(millicores=500, memory_bytes=12 * 2**30, gpus=3)}
    found = snapshot_of(a_node("g0", gpus=8, taints=[TAINT]), a_node("c0"), foreign=used)
    assert found.gpu_pools == (
        GpuPool(
            node="g0",
            product=PRODUCT,
            gpus=5,
            gpu_memory_bytes=81559 * 2**20,
            memory_bytes=500 * 2**30,
            others=3,
        ),
    )
    assert [pool.node for pool in found.pools] == ["c0"]


def test_gpus_without_an_image_of_workers_are_left_out() -> None:
    """An installation that runs no engine on GPUs plans on the CPUs of all nodes, as ever."""
    found = snapshot_of(a_node("g0", gpus=8), settings=SETTINGS)
    assert found.gpu_pools == ()
    assert [pool.node for pool in found.pools] == ["g0"]
    assert "worker.gpuImages names no image for nvidia.com/gpu" in found.left_out[0].reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": {}}, "gpu.product is missing"),
        ({"allocatable": {"nvidia.com/mig-1g.10gb": "7"}}, "MIG"),
        ({"ready": "False"}, "not ready"),
        ({"taints": [{"key": "ours", "effect": "NoSchedule"}]}, "do not tolerate"),
    ],
)
def test_gpus_that_cannot_be_planned_on_are_left_out_with_a_reason(
    changes: dict[str, Any], said: str
) -> None:
    """The node is no pool of GPUs, and the snapshot says why."""
    found = snapshot_of(a_node("g0", gpus=8, **changes))
    assert found.gpu_pools == ()
    assert said in found.left_out[0].reason


def test_images_of_unknown_resources_are_refused() -> None:
    """A misspelt resource would leave all GPUs out without a word."""
    with pytest.raises(ValidationError, match=r"worker\.gpuImages has key 'nvidia\.com/gpus'"):
        Settings(gpu_images={"nvidia.com/gpus": "x"})


def _deployment(config: Config) -> Any:
    record = a_record()
    option = dataclasses.replace(an_option(), config=config, arena_bytes=4 * 60 * 2**30)
    observed = an_observed(record, plan=a_plan(record, option=option))
    plan = decide(observed, settings=WITH_GPUS)
    models = json.loads(of_kind(plan, "ConfigMap")["data"]["models.json"])
    return of_kind(plan, "Deployment"), models


GROUP = Config(
    product=PRODUCT,
    cpu_model="",
    precision="bf16",
    threads=0,
    tensor_parallel_size=2,
    pipeline_parallel_size=2,
)


def test_a_pod_asks_for_the_gpus_of_all_its_ranks() -> None:
    """Extended resource x TP·PP, product affinity, toleration, and the image of its device."""
    deployment, models = _deployment(GROUP)
    spec = deployment["spec"]["template"]["spec"]
    worker = spec["containers"][0]
    assert worker["image"] == "worker-cuda:1"
    for amounts in ("requests", "limits"):
        assert worker["resources"][amounts]["nvidia.com/gpu"] == "4"
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (expression,) = terms["nodeSelectorTerms"][0]["matchExpressions"]
    assert expression == {"key": "nvidia.com/gpu.product", "operator": "In", "values": [PRODUCT]}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec[
        "tolerations"
    ]
    assert any(v["name"] == "shm" for v in spec["volumes"])
    assert (models["device"], models["memory_bytes"]) == ("cuda", 60 * 2**30)
    assert (models["tensor_parallel_size"], models["pipeline_parallel_size"]) == (2, 2)


def test_a_pod_on_cpu_asks_for_no_gpus() -> None:
    """Its template stays what it was."""
    config = Config(product="cpu", cpu_model="x", precision="bf16", threads=2)
    spec = _deployment(config)[0]["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in spec["containers"][0]["resources"]["limits"]
    assert spec["containers"][0]["image"] == "worker:1"
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in str(spec.get("affinity"))
    assert "shm" not in str(spec["volumes"])


def test_a_rollout_on_gpus_is_read_back() -> None:
    """Threads are 0 there, and a roll-out that is not believed would be planned as if nothing ran."""
    deployment, _ = _deployment(GROUP)
    found = Rollout.from_json(deployment["metadata"]["annotations"][ROLLOUT_ANNOTATION])
    assert found is not None
    assert found.config == GROUP


def _moved(*, mode: str, kind: str = "Move", surge: bool = True, rolls: bool = False) -> Any:
    """Return the strategy and the roll-out of an intent on GPUs after one more step."""
    record = a_record()
    option = dataclasses.replace(an_option(), config=GROUP)
    plan = a_plan(record, option=option)
    first = of_kind(decide(an_observed(record, plan=plan), settings=WITH_GPUS), "Deployment")
    text = json.loads(first["metadata"]["annotations"][ROLLOUT_ANNOTATION]) | {"surge": surge}
    # As an older release wrote it, so that it is believed.
    del text["seal"]
    first["metadata"]["annotations"][ROLLOUT_ANNOTATION] = json.dumps(text)
    live = deployment(first | {"status": {} if rolls else DONE})
    step = Step(kind=kind, config=GROUP, replicas=1, mode=mode)  # type: ignore[arg-type]
    observed = an_observed(record, plan=plan, deployment=live)
    made = decide(dataclasses.replace(observed, step=step), settings=WITH_GPUS)
    found = of_kind(made, "Deployment")
    return found["spec"]["strategy"]["rollingUpdate"], Rollout.from_json(
        found["metadata"]["annotations"][ROLLOUT_ANNOTATION]
    )


DONE = {
    "observedGeneration": 0,
    "replicas": 1,
    "updatedReplicas": 1,
    "availableReplicas": 1,
    "readyReplicas": 1,
}


def test_a_move_without_a_free_gpu_takes_an_old_replica_first() -> None:
    """A pod beside the old ones would wait for a GPU for ever; with room new ones come first."""
    strategy, _ = _moved(mode="OneByOne")
    assert strategy == {"maxUnavailable": 1, "maxSurge": 0}
    strategy, _ = _moved(mode="MakeBeforeBreak")
    assert strategy == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_move_without_room_goes_on_as_it_began_and_is_forgotten_at_its_end() -> None:
    """A strategy that changed in the middle would stop the roll."""
    strategy, rollout = _moved(mode="None", kind="Keep", surge=False, rolls=True)
    assert (strategy["maxSurge"], rollout.surge) == (0, False)
    strategy, rollout = _moved(mode="None", kind="Keep", surge=False)
    assert (strategy["maxSurge"], rollout.surge) == (1, True)


def test_nodes_that_only_pods_on_gpus_may_use_are_nodes_to_choose_among() -> None:
    """Without preferred nodes the scheduler spreads small replicas, and no node is left for a whole group."""
    caches = Caches()
    for name in ("g0", "g1"):
        caches.nodes.apply_event("ADDED", a_node(name, gpus=8, taints=[TAINT]))
    assert several_nodes(caches.nodes, settings=WITH_GPUS)
    caches.nodes.apply_event("DELETED", a_node("g1", gpus=8, taints=[TAINT]))
    assert not several_nodes(caches.nodes, settings=WITH_GPUS)


class _Pods:
    """Stands in for the cluster's list of pods."""

    def __init__(self, *pods: dict[str, Any]) -> None:
        self._pods = pods

    async def items(self, *_: object, **__: object) -> AsyncIterator[dict[str, Any]]:
        for pod in self._pods:
            yield pod


def a_worker(owner: str, *, node: str = "g0", deleting: bool = False) -> dict[str, Any]:
    labels = {PART_OF_LABEL: "trimtab", COMPONENT_LABEL: "worker", OWNER_UID_LABEL: owner}
    resources = {"requests": {"cpu": "4", "memory": "8Gi"}, "limits": {"nvidia.com/gpu": "2"}}
    return {
        "metadata": {"labels": labels} | ({"deletionTimestamp": "now"} if deleting else {}),
        "spec": {"containers": [{"resources": resources}]} | ({"nodeName": node} if node else {}),
    }


async def foreign_use(*pods: dict[str, Any]) -> dict[str, Requested]:
    world: Any = SimpleNamespace(foreign={})
    client: Any = _Pods(*pods)
    await ForeignPoller(world, client, replan=lambda: None).step()
    found: dict[str, Requested] = world.foreign
    return found


async def test_gpus_of_a_worker_that_drains_are_not_free() -> None:
    """Its plan holds them no more and it has them still; threads are shared, so they do not count."""
    assert await foreign_use(a_worker("a"), a_worker("b", deleting=True)) == {
        "g0": Requested(gpus=2)
    }


async def test_gpus_that_drain_for_a_pod_of_the_same_intent_are_its_own() -> None:
    """Otherwise an intent whose replicas are replaced one by one would find no room for its plan."""
    assert await foreign_use(a_worker("a", node=""), a_worker("a", deleting=True)) == {}
