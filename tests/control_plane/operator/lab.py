"""The operator in this process against a real API server; kubelets and workers are played."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import kopf

from trimtab.api.v1alpha1.names import OPERATOR
from trimtab.handlers.watching import register
from trimtab.kube.client import MERGE, KubeClient
from trimtab.kube.errors import ApiError
from trimtab.kube.names import routes
from trimtab.kube.resources import (
    CHILDREN,
    CONFIG_MAP,
    EVENT,
    INTENT,
    JOB,
    POD,
    Manifest,
    Resource,
    resource_of,
)
from trimtab.kube.writer import TokenBucket, Writer
from trimtab.planning.plan import (
    Confidence,
    Findings,
    FingerprintNeed,
    FleetPlan,
    GroupPlan,
    IntentPlan,
    Latency,
    Option,
    Prediction,
)
from trimtab.planning.remap import RemapAdvice
from trimtab.planning.snapshot import Config
from trimtab.reconcile.operator import Operator
from trimtab.settings import HostPathPolicy, Settings, Sources

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trimtab.observe.loads import LoadBook
    from trimtab.planning.policy import PlannerPolicy
    from trimtab.planning.snapshot import FleetSnapshot, IntentView

STRATEGIC = "application/strategic-merge-patch+json"

ROUTES = "trimtab-routes-"
MANY = 99

VERDICT = json.dumps(
    {
        "v": 1,
        "ok": True,
        "family": "llama",
        "architecture": {
            "family": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "attention_heads": 9,
            "kv_heads": 3,
            "head_dim": 64,
            "vocab_size": 49152,
            "tied_embeddings": True,
        },
        "depth": 30,
        "precision": "bf16",
        "quantization": None,
        "format": "safetensors",
        "parameters": 134515008,
        "weightBytes": 269030016,
        "contextLength": 2048,
        "chatTemplate": True,
        "source": "abc",
        "cpuModel": "Test CPU",
        "cpus": 2,
    }
)


FINGERPRINT = json.dumps(
    {
        "v": 1,
        "key": {
            "architecture": "0" * 16,
            "layerKind": "full",
            "product": "cpu",
            "cpuModel": "Test CPU",
            "threads": 1,
            "precision": "bf16",
            "kvPrecision": "bf16",
            "tensorParallelSize": 1,
            "engine": "trimtab",
            "engineVersion": "0.1.0",
            "flags": [],
        },
        "source": "Measured",
        "tpMode": "Real",
        "depths": [1, 2],
        "decode": [[1, 64, 1000, 10, 1500, 10, 20]],
        "prefill": [[32, 0, 2000, 10, 3000, 10, 20]],
        "mixed": [],
        "memory": [],
        "collective": [],
        "notes": [],
        "gpuSeconds": 10,
        "taken": "2026-11-23T00:00:00Z",
    }
)


def an_option(view: IntentView, *, precision: str = "bf16", **changes: Any) -> Option:
    latency = Latency(
        mean_us=20_000,
        p50_us=20_000,
        p95_us=30_000,
        p99_us=40_000,
        percentile=95,
        percentile_us=30_000,
    )
    fields: dict[str, Any] = {
        "config": Config(product="cpu", cpu_model="Test CPU", precision=precision, threads=1),
        "replicas": 1,
        "memory_bytes": 900 * 2**20,
        "arena_bytes": 384 * 2**20,
        "kv_tokens": 4096,
        "max_model_len": 2048,
        "max_seqs": 8,
        "max_batch_tokens": 512,
        "predicted": Prediction(
            ttft=latency,
            tpot=latency,
            e2e=latency,
            unloaded_e2e_us=20_000,
            capacity_milli_rps=4000,
            utilisation_permille=250,
            mean_batch_milli=1000,
            overloaded=False,
        ),
        "margin_permille": 200,
        "ttft_margin_permille": 200,
        "confidence": Confidence(level="Low", reasons=("estimated",), source="Measured"),
        "cost_per_hour_micro_usd": 40_000,
        "cost_per_million_output_tokens_micro_usd": 700_000,
        "cost_per_million_at_capacity_micro_usd": 100_000,
        "fingerprint": "0123456789abcdef",
    }
    return Option(**(fields | changes))


def a_plan(view: IntentView, **changes: Any) -> IntentPlan:
    fields: dict[str, Any] = {
        "uid": view.uid,
        "namespace": view.namespace,
        "name": view.name,
        "generation": view.generation,
        "verdict": "Planned",
        "reason": "Chosen",
        "message": "cpu, bf16, one thread: cheapest that carries the load.",
        "option": an_option(view),
    }
    return IntentPlan(**(fields | changes))


def grouped(*names: str) -> Callable[[FleetSnapshot, IntentView], IntentPlan]:
    """Return a planner's decision that puts these intents into one group, the oldest founding it."""

    def decide(snapshot: FleetSnapshot, view: IntentView) -> IntentPlan:
        members = sorted(
            (v for v in snapshot.intents if v.namespace == view.namespace and v.name in names),
            key=lambda v: (v.created_seconds, v.name),
        )
        if view.name not in names:
            return a_plan(view)
        option = an_option(view)
        running = {
            a.group for a in snapshot.assignments if a.intent_uid in {m.uid for m in members}
        }
        group = GroupPlan(
            id=min(running - {""}, default=members[0].group_id),
            members=tuple(m.uid for m in members),
            config=option.config,
            memory_bytes=2 * option.memory_bytes,
            arena_bytes=2 * option.arena_bytes,
            least_memory_bytes=len(members) * 700 * 2**20,
            least_arena_bytes=len(members) * 300 * 2**20,
            max_model_len=option.max_model_len,
            max_seqs=option.max_seqs,
            max_batch_tokens=option.max_batch_tokens,
            slowest_tpot_us=20_000,
            advice=ADVICE,
        )
        return a_plan(view, group=group, remap_verdict="IdleOnly")

    return decide


ADVICE = RemapAdvice(
    verdict="IdleOnly",
    lend_units={},
    alpha=0,
    slots=0,
    hidden_m=0.0,
    kv_tokens_before=0,
    kv_tokens_after=0,
    switch_s=0.1,
    ratio_if_forced=1.0,
    reasons=(),
)


class PlayedPlanner:
    """Stands in for the planner's process."""

    def __init__(self) -> None:
        self.decide: Callable[[IntentView], IntentPlan] = a_plan
        self.group: Callable[[FleetSnapshot, IntentView], IntentPlan] | None = None
        self.snapshots: list[FleetSnapshot] = []
        self.missed: set[str] = set()
        """Names of the intents whose running replicas miss what the plan meets."""

    async def plan(self, snapshot: FleetSnapshot, policy: PlannerPolicy) -> FleetPlan:
        self.snapshots.append(snapshot)
        group = self.group
        return FleetPlan(
            intents=tuple(
                self.decide(view) if group is None else group(snapshot, view)
                for view in snapshot.intents
            ),
            policy=policy.digest(),
            findings=tuple(
                Findings(uid=view.uid, meets=True, running_meets=False, fewest=MANY)
                for view in snapshot.intents
                if view.name in self.missed
            ),
        )

    def close(self, *, kill: bool = False) -> None:
        pass


class PlayedAdmin:
    """Stands in for pods' admin ports: every worker has the models that were said to be resident."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.revision = 1
        self.asked: list[str] = []
        self.observed: Callable[[], dict[str, Any]] | None = None
        """What every gateway saw, asked anew each time."""

    async def get_all(self, addresses: Any, path: str) -> dict[str, Any]:
        models = [{"name": n, "state": "Resident"} for n in self.models]
        answer = {"v": 1, "revision": self.revision, "models": models}
        if path == "/-/observed" and self.observed is not None:
            return {uid: self.observed() for uid, _ in addresses}
        return {uid: answer if path == "/-/state" else None for uid, _ in addresses}

    async def post(self, address: str, path: str) -> bool:
        self.asked.append(path)
        return True


class Unobserved:
    def wrote(self, *, kind: str, verb: str, result: str) -> None:
        pass

    def forbidden(self, *, verb: str, resource: str) -> None:
        pass


class NotingWriter(Writer):
    """Notes writes to a lab's own namespaces: the operator also writes for what others left behind."""

    def __init__(self, client: KubeClient, *, lab: Lab, **rest: Any) -> None:
        super().__init__(client, observer=Unobserved(), **rest)
        self._lab = lab
        self.writes: list[tuple[str, str]] = []

    async def _write(self, method: str, path: str, resource: Resource, **rest: Any) -> Manifest:
        if self._lab.owns(path):
            self.writes.append((method, path))
        return await super()._write(method, path, resource, **rest)


class Lab:
    """An administrator's hands on the cluster, and eyes with a deadline."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace
        self.system = f"{namespace}-system"

    def owns(self, path: str) -> bool:
        """Whether an object is this lab's; routes of others' namespaces lie in its system namespace."""
        name = path.rpartition("/")[2]
        others = name.startswith(ROUTES) and name != routes(self.namespace)
        places = (f"/namespaces/{n}/" for n in (self.namespace, self.system))
        return any(place in path for place in places) and not others

    async def apply(self, manifest: Manifest, *, manager: str = "user") -> Manifest:
        resource, meta = resource_of(manifest), manifest["metadata"]
        return await self.client.request(
            "PATCH",
            resource.path(namespace=meta["namespace"], name=meta["name"]),
            query={"fieldManager": manager},
            body=manifest,
            content_type="application/apply-patch+yaml",
        )

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Manifest, sub: str = ""
    ) -> Manifest:
        return await self.client.request(
            "PATCH",
            resource.path(namespace=namespace, name=name, subresource=sub),
            body=body,
            content_type=STRATEGIC if resource is POD else MERGE,
        )

    async def list(self, resource: Resource, namespace: str, selector: str = "") -> list[Manifest]:
        return [
            item
            async for item in self.client.items(
                resource, namespace=namespace, label_selector=selector
            )
        ]

    async def wait(
        self, what: str, look: Callable[[], Awaitable[Any]], *, seconds: float = 30
    ) -> Any:
        deadline = time.monotonic() + seconds
        seen: Any = None
        while time.monotonic() < deadline:
            seen = await look()
            if seen:
                return seen
            await asyncio.sleep(0.1)
        state = [i.get("status") for i in await self.list(INTENT, self.namespace)]
        raise AssertionError(f"no {what} within {seconds} s; statuses: {json.dumps(state)[:4000]}")

    async def intent(self, name: str = "chat") -> Manifest:
        found = await self.client.get(INTENT, namespace=self.namespace, name=name)
        assert found is not None
        return found

    async def condition(self, kind: str, reason: str, name: str = "chat") -> dict[str, Any]:
        async def look() -> Any:
            found = await self.client.get(INTENT, namespace=self.namespace, name=name) or {}
            conditions = (found.get("status") or {}).get("conditions") or ()
            return next(
                (c for c in conditions if c["type"] == kind and c["reason"] == reason), None
            )

        return await self.wait(f"{kind}/{reason}", look)

    async def job(
        self, namespace: str, component: str, *, after: Manifest | None = None
    ) -> Manifest:
        """Return a Job that is not complete; `after` is the one before, which may linger."""
        before = after["metadata"]["uid"] if after else ""

        async def look() -> Any:
            jobs = await self.list(JOB, namespace, f"app.kubernetes.io/component={component}")
            return [
                j
                for j in jobs
                if j["metadata"]["uid"] != before
                and not any(c["type"] == "Complete" for c in j["status"].get("conditions", ()))
            ]

        return (await self.wait(f"{component} Job", look))[0]

    async def end_job(
        self, namespace: str, component: str, message: str, *, after: Manifest | None = None
    ) -> Manifest:
        """Play the kubelet: the Job's pod ends with status 0 and this message."""
        job = await self.job(namespace, component, after=after)
        selector = f"batch.kubernetes.io/job-name={job['metadata']['name']}"
        pods = await self.wait("pod of the Job", lambda: self.list(POD, namespace, selector))
        container = pods[0]["spec"]["containers"][0]["name"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ended = {"exitCode": 0, "reason": "Completed", "message": message}
        ended |= {"startedAt": now, "finishedAt": now, "containerID": "played://1"}
        status = {
            "phase": "Succeeded",
            "containerStatuses": [
                {
                    "name": container,
                    "image": "x",
                    "imageID": "x",
                    "ready": False,
                    "restartCount": 0,
                    "state": {"terminated": ended},
                }
            ],
        }
        await self.patch(POD, namespace, pods[0]["metadata"]["name"], {"status": status}, "status")
        return job

    async def start_workers(self, *, count: int = 1) -> list[Manifest]:
        """Play the kubelet: worker pods run and are ready."""

        async def look() -> Any:
            pods = await self.list(POD, self.namespace, "app.kubernetes.io/component=worker")
            alive = [p for p in pods if not p["metadata"].get("deletionTimestamp")]
            return alive if len(alive) >= count else None

        pods: list[Manifest] = await self.wait(f"{count} worker pods", look)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for number, pod in enumerate(pods):
            if pod["status"].get("phase") == "Running":
                continue
            running = {"name": "worker", "image": "x", "imageID": "x", "ready": True}
            running |= {
                "restartCount": 0,
                "started": True,
                "state": {"running": {"startedAt": now}},
            }
            status = {
                "phase": "Running",
                "podIP": f"192.0.2.{number + 10 * count}",
                "podIPs": [{"ip": f"192.0.2.{number + 10 * count}"}],
                "conditions": [
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
                    {"type": "Ready", "status": "True", "lastTransitionTime": now},
                    {"type": "ContainersReady", "status": "True", "lastTransitionTime": now},
                ],
                "containerStatuses": [running],
            }
            await self.patch(
                POD, self.namespace, pod["metadata"]["name"], {"status": status}, "status"
            )
        return pods

    async def start_gateway(self) -> None:
        """Play a gateway of the installation: a pod that runs and can be asked."""
        safe = {
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        labels = {
            "app.kubernetes.io/name": "trimtab",
            "app.kubernetes.io/component": "gateway",
            "app.kubernetes.io/part-of": "trimtab",
            "app.kubernetes.io/managed-by": OPERATOR,
        }
        container = {"name": "gateway", "image": "x", "securityContext": safe}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "gateway", "namespace": self.system, "labels": labels},
            "spec": {"containers": [container]},
        }
        await self.apply(pod)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        state = {"name": "gateway", "image": "x", "imageID": "x", "ready": True, "restartCount": 0}
        status = {
            "phase": "Running",
            "podIP": "192.0.2.250",
            "podIPs": [{"ip": "192.0.2.250"}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
            "containerStatuses": [state | {"state": {"running": {"startedAt": now}}}],
        }
        await self.patch(POD, self.system, "gateway", {"status": status}, "status")

    async def force_delete(self, pod: Manifest) -> None:
        """Play the kubelet: a pod that was deleted is gone."""
        with contextlib.suppress(ApiError):
            await self.client.request(
                "DELETE",
                POD.path(namespace=self.namespace, name=pod["metadata"]["name"]),
                query={"gracePeriodSeconds": "0"},
            )

    async def events(self, namespace: str) -> list[Manifest]:
        return [
            e for e in await self.list(EVENT, namespace) if e["reportingController"] == OPERATOR
        ]

    async def versions(self) -> dict[str, str]:
        """ResourceVersions of the intents and of all that the operator owns."""
        found = {}
        for namespace in (self.namespace, self.system):
            for resource in (INTENT, *CHILDREN):
                for item in await self.list(resource, namespace):
                    meta = item["metadata"]
                    if not self.owns(resource.path(namespace=namespace, name=meta["name"])):
                        continue
                    found[f"{resource.plural}/{meta['name']}"] = meta["resourceVersion"]
        return found

    async def delete(self, resource: Resource, namespace: str, name: str) -> None:
        with contextlib.suppress(ApiError):
            await self.client.request("DELETE", resource.path(namespace=namespace, name=name))


def an_intent(namespace: str, name: str = "chat", **spec: Any) -> Manifest:
    source = {"persistentVolumeClaim": {"claimName": "models", "path": "smollm2-135m"}}
    return {
        "apiVersion": "trimtab.dev/v1alpha1",
        "kind": "InferenceIntent",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"source": source},
            "objective": "MinCost",
            "load": {"requestsPerSecond": "1", "promptTokens": 128, "outputTokens": 64},
        }
        | spec,
    }


class Running:
    """An operator that runs, and what it was given."""

    def __init__(self, lab: Lab, settings: Settings) -> None:
        self.lab = lab
        self.settings = settings
        self.planner: Any = PlayedPlanner()
        self.admin = PlayedAdmin()
        self.writes: list[tuple[str, str]] = []
        self.operator: Operator | None = None

    def steps(self, uid: str) -> int:
        assert self.operator is not None
        loops = self.operator.beats.document()["loops"].values()
        return sum(loop["steps"] for loop in loops if loop["uid"] == uid)

    async def stepped_past(self, uid: str, count: int) -> bool:
        return self.steps(uid) > count

    async def poll(self, name: str) -> None:
        assert self.operator is not None
        self.operator._run_job(name)

    async def quiet(self, *, seconds: float = 1.5) -> None:
        """Return once nothing was written for a while."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            before = len(self.writes)
            await asyncio.sleep(seconds)
            if len(self.writes) == before:
                return
        raise AssertionError(f"the operator keeps writing: {self.writes[-10:]}")


@contextlib.asynccontextmanager
async def running(
    lab: Lab, *, planner: Any = None, loads: LoadBook | None = None, **changes: Any
) -> AsyncIterator[Running]:
    """Run the operator, kopf included, for the length of the block.

    `planner` stands in for the played one, `loads` for what gateways would count.
    """
    fields: dict[str, Any] = {
        "system_namespace": lab.system,
        "policy_time_divisor": 20,
        "worker_image": "worker:test",
        "sources": Sources(hostPath=HostPathPolicy(enabled=True, allowedPrefixes=("/srv/models",))),
        "network_error_seconds": 5,
    }
    found = Running(lab, Settings(**(fields | changes)))
    found.planner = planner or found.planner
    async with await KubeClient.connect(manager="trimtab-operator") as client:
        writer = NotingWriter(
            client,
            lab=lab,
            bucket=TokenBucket(rate_per_second=50, burst=100, clock=time.monotonic),
            may_write=lambda: True,
        )
        found.writes = writer.writes
        operator = Operator(
            settings=found.settings,
            client=client,
            writer=writer,
            admin=found.admin,  # type: ignore[arg-type]
            clock=time.monotonic,
            utcnow=lambda: datetime.now(UTC),
            pool=found.planner,
        )
        found.operator = operator
        operator.world.loads = loads or operator.world.loads
        stop = asyncio.Event()
        jobs = asyncio.create_task(operator.run())
        watching = asyncio.create_task(
            kopf.operator(
                registry=register(operator), clusterwide=True, standalone=True, stop_flag=stop
            )
        )
        try:
            yield found
            assert not jobs.done(), jobs
            assert not watching.done(), watching
        finally:
            await operator.drain(timeout_seconds=5)
            stop.set()
            await asyncio.wait({watching}, timeout=10)
            jobs.cancel()
            await asyncio.gather(jobs, watching, return_exceptions=True)


async def config_map(lab: Lab, name: str) -> Manifest | None:
    return await lab.client.get(CONFIG_MAP, namespace=lab.system, name=name)


def a_need(view: IntentView, **changes: Any) -> FingerprintNeed:
    assert view.model is not None
    fields: dict[str, Any] = {
        "key": "00112233445566ff",
        "architecture": view.model.architecture,
        "product": "cpu",
        "cpu_model": "Test CPU",
        "threads": 1,
        "precision": "bf16",
        "kv_precision": "bf16",
        "tensor_parallel_size": 1,
        "priority": 0,
    }
    return FingerprintNeed(**(fields | changes))


def prices(lab: Lab, text: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "trimtab-prices", "namespace": lab.system},
        "data": {"prices.yaml": text},
    }
