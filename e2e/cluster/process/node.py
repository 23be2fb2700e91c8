"""The stand-in node: registers itself, renews its Lease, runs the pods that are bound to it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import platform
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e.cluster.process import addresses
from e2e.cluster.process.api import FAILED, STRATEGIC, Api, ApiError
from e2e.cluster.process.environment import Machine
from e2e.cluster.process.images import Images
from e2e.cluster.process.pod import NodeContext, Pod
from e2e.cluster.process.records import timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LOG = logging.getLogger("stand-in")
VERSION = "v0.0.0-trimtab-stand-in"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_LEASE_SECONDS = 40
_HEARTBEAT_SECONDS = 10.0
_STATUS_EVERY = 30
"""Heart-beats between two reports of the node's status."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one stand-in node behaves."""

    name: str
    state_dir: Path
    loopback: str = addresses.LOOPBACK
    pod_api_server: str | None = None
    """The API server's address in pods' kubeconfigs; by default the node's own."""
    back_off_seconds: float = 10.0
    all_pods: bool = False
    namespaces: frozenset[str] = frozenset()
    """Namespaces whose pods are run whatever their labels."""
    substitutes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Python modules that another command plays, by name; see `--substitutes`."""
    host: str = "127.0.0.1"
    certificate: Path | None = None
    """Serving certificate for `kubectl logs`, its key beside it as `.key`; None serves no logs."""
    client_authority: Path | None = None
    """Who may read logs: holders of a certificate that this one signed."""
    log_port: int = 0
    """Where `kubectl logs` is answered; 0 where it is not."""


def machine() -> Machine:
    """Return what this machine has; nothing of it is reserved or limited for a pod."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    memory_kib = int(fields["MemTotal"].split()[0])
    disk = shutil.disk_usage("/").total
    cpus = len(os.sched_getaffinity(0))
    return Machine(cpu=str(cpus), memory=f"{memory_kib}Ki", ephemeral_storage=f"{disk // 1024}Ki")


def node_object(settings: Settings, *, capacity: Machine, now: float) -> dict[str, Any]:
    """Return the Node to register; it says in its name plate that it is a stand-in."""
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    resources = {
        "cpu": capacity.cpu,
        "memory": capacity.memory,
        "ephemeral-storage": capacity.ephemeral_storage,
        "pods": "250",
    }
    told = (
        "stand-in node of Trimtab's testbed: pods are local processes; nothing is isolated, and "
        "nothing limits CPU or memory"
    )
    beat = timestamp(now)
    conditions = [
        {
            "type": "Ready",
            "status": "True",
            "reason": "StandInNode",
            "message": told,
            "lastHeartbeatTime": beat,
        }
    ]
    for kind in ("MemoryPressure", "DiskPressure", "PIDPressure"):
        message = "the stand-in node does not measure pressure"
        conditions.append(
            {
                "type": kind,
                "status": "False",
                "reason": "StandInNode",
                "message": message,
                "lastHeartbeatTime": beat,
            }
        )
    for condition in conditions:
        condition["lastTransitionTime"] = beat
    status: dict[str, Any] = {
        "capacity": resources,
        "allocatable": resources,
        "conditions": conditions,
        "addresses": [
            {"type": "InternalIP", "address": "127.0.0.1"},
            {"type": "Hostname", "address": settings.name},
        ],
        "nodeInfo": {
            "machineID": "stand-in", "systemUUID": "stand-in", "bootID": "stand-in",
            "kernelVersion": platform.release(), "osImage": "stand-in (local processes)",
            "containerRuntimeVersion": "stand-in://0", "kubeletVersion": VERSION,
            "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": arch,
        },
    }  # fmt: skip
    if settings.log_port:
        status["daemonEndpoints"] = {"kubeletEndpoint": {"Port": settings.log_port}}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": settings.name,
            "labels": {
                "kubernetes.io/hostname": settings.name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": arch,
                "trimtab.dev/stand-in": "true",
            },
            "annotations": {
                "trimtab.dev/stand-in": told,
                "trimtab.dev/address-rewrite": f"{addresses.ANNOUNCED}:{settings.loopback}",
            },
        },
        "status": status,
    }


class Node:
    """One stand-in node; `run` ends when it is cancelled and leaves its pods running."""

    def __init__(self, settings: Settings, *, api: Api) -> None:
        self.settings = settings
        self.pods: dict[str, Pod] = {}
        self._api = api
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._told: dict[tuple[str, str, str], float] = {}
        self._ignored: set[str] = set()
        self._machine = machine()
        self._folder = settings.state_dir / "pods"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._context = NodeContext(
            api=api,
            images=Images(settings.state_dir / "images.json"),
            machine=self._machine,
            back_off_seconds=settings.back_off_seconds,
            rewrite=f"{addresses.ANNOUNCED}:{settings.loopback}",
            substitutes=settings.substitutes,
            pod_api_server=settings.pod_api_server or api.config.server,
            event=self._event,
        )

    async def run(self) -> None:
        """Serve until cancelled; pods go on running and are found again at the next start."""
        self._recover()
        beats = asyncio.create_task(self._beat())
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(beats, watch)
        finally:
            tasks = [beats, watch, *self._tasks.values(), *self._background]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # Pods

    def _recover(self) -> None:
        for path in sorted(self._folder.glob("*/pod.json")):
            kept = json.loads(path.read_text())
            self._adopt(kept["manifest"], announced=kept["address"])
        if self.pods:
            _LOG.info("found %d pods of an earlier run", len(self.pods))

    def _adopt(self, manifest: dict[str, Any], *, announced: str) -> None:
        uid = manifest["metadata"]["uid"]
        pod = Pod(manifest, folder=self._folder / uid, announced=announced, node=self._context)
        self.pods[uid] = pod
        task = asyncio.create_task(self._run(pod))
        self._tasks[uid] = task

    async def _run(self, pod: Pod) -> None:
        meta = pod.manifest["metadata"]
        name = f"{meta['namespace']}/{meta['name']}"
        _LOG.info("pod %s at %s (announced as %s)", name, pod.local, pod.announced)
        try:
            await pod.run()
            _LOG.info("pod %s is gone", name)
        except Exception:
            _LOG.exception("pod %s: this is a bug of the stand-in node", name)
            raise
        finally:
            self.pods.pop(pod.uid, None)
            self._tasks.pop(pod.uid, None)

    def is_ours(self, manifest: Mapping[str, Any]) -> bool:
        """Return whether the stand-in node runs a pod: Trimtab's own and its release's hooks."""
        meta = manifest["metadata"]
        labels = meta.get("labels") or {}
        return (
            self.settings.all_pods
            or meta["namespace"] in self.settings.namespaces
            or labels.get("app.kubernetes.io/part-of") == "trimtab"
            or "helm.sh/hook" in (meta.get("annotations") or {})
        )

    def _see(self, manifest: dict[str, Any]) -> None:
        uid = manifest["metadata"]["uid"]
        if uid in self.pods:
            self.pods[uid].update(manifest)
            return
        if not self.is_ours(manifest):
            self._refuse(manifest)
            return
        over = manifest.get("status", {}).get("phase") in {"Succeeded", "Failed"}
        if over and not manifest["metadata"].get("deletionTimestamp"):
            return  # it ended before this node's state was lost
        announced = addresses.choose(
            taken=[pod.announced for pod in self.pods.values()],
            busy=addresses.listening(),
            loopback=self.settings.loopback,
        )
        self._adopt(manifest, announced=announced)
        self.pods[uid].update(manifest)

    def _refuse(self, manifest: dict[str, Any]) -> None:
        meta = manifest["metadata"]
        if meta.get("deletionTimestamp"):
            self._spawn(self._release(manifest))
        elif meta["uid"] not in self._ignored:
            self._ignored.add(meta["uid"])
            self._event(
                manifest, "Warning", "StandInNode",
                "the stand-in node runs Trimtab's own pods only; this one stays Pending",
            )  # fmt: skip

    async def _release(self, manifest: Mapping[str, Any]) -> None:
        meta = manifest["metadata"]
        with contextlib.suppress(*FAILED):
            await self._api.request(
                "DELETE",
                f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}",
                body={"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}},
            )

    async def _watch(self) -> None:
        """Follow the pods bound to this node for ever; every break ends in a fresh list."""
        selector = {"fieldSelector": f"spec.nodeName={self.settings.name}"}
        while True:
            try:
                answer = await self._api.request("GET", "/api/v1/pods", query=selector)
                items: Iterable[dict[str, Any]] = answer.get("items") or ()
                known = set()
                for item in items:
                    known.add(item["metadata"]["uid"])
                    self._see(item)
                for uid in set(self.pods) - known:
                    self.pods[uid].removed()
                version = answer["metadata"]["resourceVersion"]
                query = {**selector, "resourceVersion": version, "timeoutSeconds": "300",
                         "allowWatchBookmarks": "true"}  # fmt: skip
                # Bookmarks come about once a minute, so a silent watch is a dead one.
                async for event in self._api.watch("/api/v1/pods", query=query, idle_seconds=120):
                    self._handle(event)
            except FAILED as error:
                _LOG.warning("pods: %s; listing again", error)
                await asyncio.sleep(1.0)

    def _handle(self, event: Mapping[str, Any]) -> None:
        kind, body = event["type"], event["object"]
        if kind == "ERROR":
            raise ApiError(
                method="WATCH",
                path="pods",
                code=body.get("code", 500),
                message=body.get("message", ""),
            )
        if kind == "DELETED":
            uid = body["metadata"]["uid"]
            if uid in self.pods:
                self.pods[uid].removed()
        elif kind in {"ADDED", "MODIFIED"}:
            self._see(body)

    # The node itself

    async def _beat(self) -> None:
        count = 0
        while True:
            try:
                if count % _STATUS_EVERY == 0:
                    await self._register()
                await self._renew()
                count += 1
            except FAILED as error:
                _LOG.warning("node: %s; trying again", error)
                count = 0
                await asyncio.sleep(1.0)
            else:
                await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def _register(self) -> None:
        node = node_object(self.settings, capacity=self._machine, now=time.time())
        path = f"/api/v1/nodes/{self.settings.name}"
        live = await self._api.get(path)
        if live is None:
            live = await self._api.request("POST", "/api/v1/nodes", body=node)
        before = {c["type"]: c for c in live.get("status", {}).get("conditions") or ()}
        for condition in node["status"]["conditions"]:
            old = before.get(condition["type"], {})
            if old.get("status") == condition["status"] and old.get("lastTransitionTime"):
                condition["lastTransitionTime"] = old["lastTransitionTime"]
        meta = {k: node["metadata"][k] for k in ("labels", "annotations")}
        await self._api.request("PATCH", path, body={"metadata": meta}, content_type=STRATEGIC)
        status = {"status": node["status"]}
        await self._api.request("PATCH", f"{path}/status", body=status, content_type=STRATEGIC)

    async def _renew(self) -> None:
        name = self.settings.name
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": _LEASE_SECONDS,
            "renewTime": now,
        }
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name},
            "spec": spec,
        }
        try:
            await self._api.request(
                "PATCH", f"{_LEASES}/{name}", body={"spec": spec},
                content_type="application/merge-patch+json",
            )  # fmt: skip
        except ApiError as error:
            if error.code != 404:
                raise
            await self._api.request("POST", _LEASES, body=body)

    # Events

    def _event(self, pod: Mapping[str, Any], kind: str, reason: str, message: str) -> None:
        """Tell one thing once in five minutes, without waiting for the API server."""
        meta = pod["metadata"]
        key = (meta["uid"], reason, message)
        if time.monotonic() - self._told.get(key, -1e9) < 300:
            return
        self._told[key] = time.monotonic()
        while len(self._told) > 5000:
            self._told.pop(next(iter(self._told)))
        now = timestamp(time.time())
        reference = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        reference["namespace"] = meta["namespace"]
        body = {
            "metadata": {"generateName": f"{meta['name'][:200]}.", "namespace": meta["namespace"]},
            "involvedObject": reference, "type": kind, "reason": reason, "message": message[:1000],
            "source": {"component": "stand-in-node", "host": self.settings.name},
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        }  # fmt: skip
        self._spawn(self._post_event(meta["namespace"], body))

    async def _post_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        with contextlib.suppress(*FAILED):
            await self._api.request("POST", f"/api/v1/namespaces/{namespace}/events", body=body)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
