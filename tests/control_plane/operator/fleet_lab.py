"""A fleet of fake GPU nodes, intents whose models were read, and eyes for what was placed where."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from e2e.cluster.control_plane import FAKE_NODE
from tests.control_plane.operator.lab import an_intent
from trimtab.api.v1alpha1.inferenceintent import InferenceIntent
from trimtab.kube.resources import DEPLOYMENT, INTENT, NODE, POD, Manifest
from trimtab.observe.loads import LoadBook
from trimtab.reconcile.fleet import Pool
from trimtab.reconcile.inferenceintent import jobs
from trimtab.reconcile.labels import Owner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from tests.control_plane.operator.lab import Lab
    from trimtab.planning.plan import FleetPlan
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.snapshot import FleetSnapshot, Load
    from trimtab.settings import Settings

H100, A100, L40S = "NVIDIA-H100-80GB-HBM3", "NVIDIA-A100-SXM4-80GB", "NVIDIA-L40S"
WAIT_SECONDS = 180.0
"""For each thing that is waited for; on an idle machine of two cores the longest takes a tenth of it."""
FLEET_LABEL = "test-fleet"
"""Whose nodes they are: what a test before left behind is no part of this one's fleet."""
GPU = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"
MEMORY_MIB = {H100: 81559, A100: 81920, L40S: 46068}
TAINT = {"key": GPU, "value": "present", "effect": "NoSchedule"}
WORKERS = "app.kubernetes.io/component=worker"
PRICES = 'gpuHour: {"*H100*": "4.50", "*A100*": "3.50", "*L40S*": "1.20"}'

_8B = {
    "family": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "attention_heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tied_embeddings": False,
}
_70B = _8B | {"hidden_size": 8192, "intermediate_size": 28672, "attention_heads": 64}
MODELS = {"8b": (_8B, 32, 8_030_261_248), "70b": (_70B, 80, 70_553_706_496)}


class Recorder(Pool):
    """The operator's real planner, in its own process; what it was asked and answered is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: list[tuple[FleetSnapshot, FleetPlan]] = []

    async def plan(self, snapshot: FleetSnapshot, policy: PlannerPolicy) -> FleetPlan:
        found = await super().plan(snapshot, policy)
        self.plans.append((snapshot, found))
        return found


BUSY_MINUTES: Final = 30


class ScriptedLoads(LoadBook):
    """Loads as a script says: kwok pods serve nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.script: dict[str, Load] = {}
        self._past: dict[str, deque[Load]] = {}

    def minute(self, uid: str, load: Load) -> None:
        """Let a simulated minute begin."""
        self.script[uid] = load
        self._past.setdefault(uid, deque(maxlen=BUSY_MINUTES)).append(load)

    def of(self, uid: str) -> Load | None:
        return self.script.get(uid)

    def busy(self, uid: str) -> Load | None:
        """Return the busiest of the last half hour, as the real book does with its percentile."""
        return max(self._past.get(uid, ()), key=lambda load: load.requests_per_second, default=None)


def a_gpu_node(name: str, product: str, *, gpus: int, fleet: str) -> Manifest:
    key, value = FAKE_NODE.split("=")
    amounts = {"cpu": "128", "memory": "1Ti", "pods": "110", GPU: str(gpus)}
    labels = {
        "kubernetes.io/hostname": name,
        FLEET_LABEL: fleet,
        PRODUCT: product,
        "nvidia.com/gpu.memory": str(MEMORY_MIB[product]),
        "nvidia.com/gpu.count": str(gpus),
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {key: value}, "labels": labels},
        "spec": {"taints": [TAINT]},
        "status": {"allocatable": amounts, "capacity": amounts},
    }


@dataclass(frozen=True, slots=True)
class Placed:
    """One worker pod as the scheduler placed it."""

    intent: str
    node: str
    gpus: int


@dataclass(slots=True)
class Fleet:
    """Nodes of one test; taken away at its end."""

    lab: Lab
    settings: Settings
    nodes: dict[str, tuple[str, int]] = field(default_factory=dict)
    loads: ScriptedLoads = field(default_factory=ScriptedLoads)

    async def build(self, counts: Mapping[str, tuple[int, int]]) -> None:
        """Create nodes: per product how many, and GPUs of each."""
        for product, (count, gpus) in counts.items():
            for n in range(count):
                name = f"{self.lab.namespace}-{product.split('-')[1].lower()}-{n:03d}"
                self.nodes[name] = (product, gpus)
        bodies = [
            a_gpu_node(name, p, gpus=count, fleet=self.lab.namespace)
            for name, (p, count) in self.nodes.items()
        ]
        await together(self.lab.client.request("POST", NODE.path(), body=body) for body in bodies)

        async def ready() -> bool:
            found = [
                n async for n in self.lab.client.items(NODE) if n["metadata"]["name"] in self.nodes
            ]
            return len(found) == len(self.nodes) and all(_is_ready(n) for n in found)

        await self.wait("all fake nodes ready", ready)

    async def wait(self, what: str, look: Callable[[], Awaitable[Any]]) -> Any:
        """Wait as the lab does, with rests: a list of the fleet is long."""

        async def rested() -> Any:
            found = await look()
            if not found:
                await asyncio.sleep(0.4)
            return found

        return await self.lab.wait(what, rested, seconds=WAIT_SECONDS)

    async def lose(self, node: str) -> None:
        """Take a node away with everything on it, as a cloud's controller does."""
        del self.nodes[node]
        await self.lab.delete(NODE, "", node)
        for pod in await self.lab.list(POD, self.lab.namespace, WORKERS):
            if pod["spec"].get("nodeName") == node:
                await self.lab.force_delete(pod)

    async def release(self, namespace: str, names: Iterable[str]) -> None:
        """Take strangers' pods away, and wait until they are gone."""
        wanted = set(names)
        await together(self.lab.delete(POD, namespace, name) for name in wanted)

        async def gone() -> bool:
            left = {p["metadata"]["name"] for p in await self.lab.list(POD, namespace)}
            return not left & wanted

        await self.wait("strangers gone", gone)

    async def remove(self) -> None:
        """Delete intents, what they own, and the nodes: no pod may wait for a node that is gone."""
        lab = self.lab

        async def drop(name: str) -> None:
            await lab.patch(INTENT, lab.namespace, name, {"metadata": {"finalizers": None}})
            await lab.delete(INTENT, lab.namespace, name)

        await together(drop(name) for name in await self.statuses())
        # One by one: the API server takes longer over a whole collection than its client waits.
        for resource in (DEPLOYMENT, POD):
            for namespace in (lab.namespace, lab.system):
                names = [o["metadata"]["name"] for o in await lab.list(resource, namespace)]
                await together(lab.delete(resource, namespace, name) for name in names)

        async def free() -> bool:
            return not await self.taken()

        await self.wait("GPUs free", free)
        await together(lab.delete(NODE, "", name) for name in self.nodes)

        async def gone() -> bool:
            left = {n["metadata"]["name"] async for n in lab.client.items(NODE)}
            return left.isdisjoint(self.nodes)

        await self.wait("nodes gone", gone)

    async def apply(self, name: str, model: str = "8b", **spec: Any) -> str:
        """Apply an intent whose model counts as read; return its uid."""
        manifest = an_intent(self.lab.namespace, name, **spec)
        manifest["spec"]["model"]["source"]["persistentVolumeClaim"]["path"] = model
        made = await self.lab.apply(manifest)
        uid = str(made["metadata"]["uid"])
        source = InferenceIntent.from_cluster(made).spec.model.source
        await self.lab.apply(
            jobs.facts_config_map(
                owner=Owner(namespace=self.lab.namespace, name=name, uid=uid),
                source=jobs.source_digest(source),
                message=_verdict(model),
                node="",
                settings=self.settings,
            )
        )
        return uid

    async def statuses(self) -> dict[str, dict[str, Any]]:
        """Return every intent's conditions by type, by name."""
        found = await self.lab.list(INTENT, self.lab.namespace)
        return {
            i["metadata"]["name"]: {
                c["type"]: c for c in (i.get("status") or {}).get("conditions", ())
            }
            for i in found
        }

    async def pods(self) -> list[Placed]:
        """Return the worker pods that have a node and are not on their way out."""
        found = await self.lab.list(POD, self.lab.namespace, WORKERS)
        return [
            Placed(
                intent=p["metadata"]["labels"]["trimtab.dev/intent"],
                node=p["spec"]["nodeName"],
                gpus=int(p["spec"]["containers"][0]["resources"]["limits"][GPU]),
            )
            for p in found
            if p["spec"].get("nodeName") and not p["metadata"].get("deletionTimestamp")
        ]

    async def templates(self) -> dict[str, tuple[str, int]]:
        """Return of every Deployment the plan that its pods follow, and how many it wants."""
        found = await self.lab.list(DEPLOYMENT, self.lab.namespace)
        return {
            d["metadata"]["labels"]["trimtab.dev/intent"]: (
                d["spec"]["template"]["metadata"]["annotations"]["trimtab.dev/plan-digest"],
                d["spec"]["replicas"],
            )
            for d in found
        }

    async def served(self, names: Iterable[str]) -> None:
        """Wait until these intents have every replica that they are planned to have."""
        wanted = set(names)

        async def look() -> bool:
            found = await self.lab.list(DEPLOYMENT, self.lab.namespace)
            full = {
                d["metadata"]["labels"]["trimtab.dev/intent"]
                for d in found
                if (d.get("status") or {}).get("availableReplicas", 0) >= d["spec"]["replicas"]
                and d["status"].get("observedGeneration") == d["metadata"]["generation"]
                and d["status"].get("updatedReplicas", 0) >= d["spec"]["replicas"]
                # A roll is over when the old ones are gone too.
                and d["status"].get("replicas", 0) == d["spec"]["replicas"]
            }
            return wanted <= full

        await self.wait(f"replicas of {len(wanted)} intents", look)

    async def taken(self) -> Counter[str]:
        """Return GPUs in use by node, whoever uses them."""
        used: Counter[str] = Counter()
        async for pod in self.lab.client.items(POD):
            node = pod["spec"].get("nodeName")
            if node not in self.nodes or pod["status"].get("phase") in ("Succeeded", "Failed"):
                continue
            for container in pod["spec"]["containers"]:
                limits = (container.get("resources") or {}).get("limits") or {}
                used[node] += int(limits.get(GPU, 0))
        return used

    async def starve(self, namespace: str) -> list[str]:
        """Let strangers' pods take every GPU that is free; return their names."""

        async def settled() -> bool:
            pods = await self.lab.list(POD, self.lab.namespace, WORKERS)
            return not any(p["metadata"].get("deletionTimestamp") for p in pods)

        # What drains would leave GPUs behind that nobody has taken.
        await self.wait("no pod that drains", settled)
        used = await self.taken()
        names = []
        bodies = []
        for node, (_, gpus) in self.nodes.items():
            if gpus > used[node]:
                names.append(f"stranger-{node}")
                bodies.append(_stranger(names[-1], namespace, node, gpus - used[node]))
        await together(
            self.lab.client.request("POST", POD.path(namespace=namespace), body=b) for b in bodies
        )
        return names


def _stranger(name: str, namespace: str, node: str, gpus: int) -> Manifest:
    amounts = {GPU: str(gpus), "cpu": "1", "memory": "1Gi"}
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": node,
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {
                    "name": "train",
                    "image": "x",
                    "resources": {"limits": amounts, "requests": amounts},
                    "securityContext": security,
                }
            ],
        },
    }


def _is_ready(node: Manifest) -> bool:
    conditions = {c["type"]: c["status"] for c in node["status"].get("conditions") or ()}
    keys = {t["key"] for t in node["spec"].get("taints") or ()}
    return conditions.get("Ready") == "True" and keys == {GPU}


def _verdict(model: str) -> str:
    architecture, depth, parameters = MODELS[model]
    return json.dumps(
        {
            "v": 1,
            "ok": True,
            "family": "llama",
            "architecture": architecture,
            "depth": depth,
            "precision": "bf16",
            "quantization": None,
            "format": "safetensors",
            "parameters": parameters,
            "weightBytes": 2 * parameters,
            "contextLength": 8192,
            "chatTemplate": True,
            "source": "abc",
            "cpuModel": "Test CPU",
            "cpus": 2,
        }
    )


async def together(requests: Iterable[Any]) -> None:
    """Send requests, a few at a time."""
    slots = asyncio.Semaphore(16)

    async def one(request: Any) -> None:
        async with slots:
            await request

    await asyncio.gather(*(one(request) for request in requests))
