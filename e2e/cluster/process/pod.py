"""One pod of the stand-in node, from its first sight to its removal."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e.cluster.process import environment, images, mounts, records, volumes
from e2e.cluster.process.api import FAILED, STRATEGIC, ApiError
from e2e.cluster.process.container import Container, Launch, Surroundings
from e2e.cluster.process.records import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from e2e.cluster.process.api import Api
    from e2e.cluster.process.environment import Machine
    from e2e.cluster.process.images import Images

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_SYNC_SECONDS = 60.0
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
_REMOVED_GRACE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """What all pods of the node share."""

    api: Api
    images: Images
    machine: Machine
    back_off_seconds: float
    rewrite: str
    """`TRIMTAB_ADDRESS_REWRITE`: announced prefix, colon, loopback prefix."""
    substitutes: Mapping[str, Sequence[str]]
    """Python modules that another command stands for, by name: played parts of a fake fleet."""
    pod_api_server: str
    """The API server's address in the kubeconfig that pods get."""
    event: Callable[[Mapping[str, Any], str, str, str], None]
    """(pod, type, reason, message)"""


def rejection(pod: Mapping[str, Any]) -> str | None:
    """Return why the stand-in node cannot run a pod as a kubelet would, or None."""
    spec = pod["spec"]
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            return f"init container {container['name']!r} is a sidecar, which the stand-in lacks"
    if spec.get("resourceClaims"):
        return "the stand-in node prepares no resource claims"
    return None


class Pod:
    """Runs one pod; `update` and `removed` tell it what the API server says."""

    def __init__(
        self, manifest: dict[str, Any], *, folder: Path, announced: str, node: NodeContext
    ) -> None:
        self.manifest = manifest
        self.uid: str = manifest["metadata"]["uid"]
        self.folder = folder
        self.announced = announced
        before, _, after = node.rewrite.partition(":")
        self.local = after + announced.removeprefix(before)
        self._node = node
        self._dirty = asyncio.Event()
        self._sync = asyncio.Event()
        self._ending = asyncio.Event()
        self._removed = False
        self._grace: float | None = None
        self._failure: tuple[str, str] | None = None
        self._sent: dict[str, Any] | None = None
        self._folders: dict[str, Path] = {}
        self._volumes = volumes.Volumes(
            folder / "volumes", api=node.api, images=node.images, machine=node.machine,
            address=announced,
        )  # fmt: skip
        spec = manifest["spec"]
        around = Surroundings(
            uid=self.uid,
            address=self.local,
            restart_policy=spec.get("restartPolicy", "Always"),
            grace_seconds=float(spec.get("terminationGracePeriodSeconds", 30)),
            back_off_seconds=node.back_off_seconds,
            prepare=self._prepare,
            changed=self._dirty.set,
            event=lambda kind, reason, message: node.event(self.manifest, kind, reason, message),
        )
        policy = "Never" if around.restart_policy == "Never" else "OnFailure"
        first = dataclasses.replace(around, restart_policy=policy)
        self.init = [self._container(c, first) for c in spec.get("initContainers") or ()]
        self.main = [self._container(c, around) for c in spec["containers"]]
        self._keep()

    def _container(self, spec: Mapping[str, Any], around: Surroundings) -> Container:
        return Container(spec, self.folder / "containers" / spec["name"], around)

    def _keep(self) -> None:
        write_json(self.folder / "pod.json", {"address": self.announced, "manifest": self.manifest})

    # What the API server says

    def update(self, manifest: dict[str, Any]) -> None:
        """Take the pod's newest manifest."""
        old = self.manifest
        self.manifest = manifest
        if _without_status(old) != _without_status(manifest):
            self._keep()
            self._sync.set()
        if old.get("status") != manifest.get("status"):
            self._dirty.set()
        meta = manifest["metadata"]
        if meta.get("deletionTimestamp"):
            self._grace = float(meta.get("deletionGracePeriodSeconds") or 0)
            self._ending.set()

    def removed(self) -> None:
        """Take note that the object is gone: end what still runs."""
        self._removed = True
        self._grace = min(self._grace or _REMOVED_GRACE_SECONDS, _REMOVED_GRACE_SECONDS)
        self._ending.set()

    # The pod's life

    async def run(self) -> None:
        """Run the pod until its object is gone, then forget it."""
        flow = asyncio.create_task(self._flow())
        reporter = asyncio.create_task(self._report())
        ending = asyncio.create_task(self._ending.wait())
        tasks = (flow, reporter, ending)
        try:
            await asyncio.wait({flow, ending}, return_when=asyncio.FIRST_COMPLETED)
            if flow.done():
                flow.result()
                await self._ending.wait()
            await self._end(flow)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._farewell()
        self._archive()

    async def _flow(self) -> None:
        why = rejection(self.manifest)
        if why:
            self._fail("StandInNode", why)
            return
        await self._mount()
        keeper = asyncio.create_task(self._keep_volumes())
        limit = self.manifest["spec"].get("activeDeadlineSeconds")
        try:
            async with asyncio.timeout(limit):
                for container in self.init:
                    await container.run()
                    if (container.record.termination or {}).get("exitCode"):
                        return
                await asyncio.gather(*(container.run() for container in self.main))
        except TimeoutError:
            self._fail("DeadlineExceeded", f"Pod was active longer than {limit} s")
            await self._stop_all(5.0)
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    def _fail(self, reason: str, message: str) -> None:
        self._failure = (reason, message)
        self._node.event(self.manifest, "Warning", reason, message)
        self._dirty.set()

    async def _end(self, flow: asyncio.Task[None]) -> None:
        """Stop what runs within the grace period, and only then the loop that would restart it."""
        self._node.event(self.manifest, "Normal", "Killing", "stand-in stops the pod")
        await self._stop_all(self._grace or 0.0)
        flow.cancel()
        await asyncio.gather(flow, return_exceptions=True)

    async def _stop_all(self, grace_seconds: float) -> None:
        containers = (*self.init, *self.main)
        await asyncio.gather(*(c.stop(grace_seconds=grace_seconds) for c in containers))
        await asyncio.gather(*(c.conclude() for c in containers))

    async def _farewell(self) -> None:
        """Report the last state and let the object go; the server may be away for a while."""
        delay = iter((*_RETRY_SECONDS, *([5.0] * 10_000)))
        meta = self.manifest["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        while not self._removed:
            try:
                with contextlib.suppress(ApiError):
                    await self._patch(self.status())
                await self._node.api.request(
                    "DELETE",
                    path,
                    body={"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}},
                )
            except ApiError as error:
                if error.code in {404, 409}:
                    return
                await asyncio.sleep(next(delay))
            except FAILED:
                await asyncio.sleep(next(delay))
            else:
                return

    def _archive(self) -> None:
        """Keep the logs for whoever looks for a cause, drop the rest (tokens among it)."""
        meta = self.manifest["metadata"]
        ended = self.folder.parent.parent / "ended"
        target = ended / f"{meta['namespace']}_{meta['name']}_{self.uid}"
        for log in self.folder.glob("containers/*/*/log"):
            place = target / log.parent.parent.name
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            log.rename(place / f"{log.parent.name}.log")
        shutil.rmtree(self.folder, ignore_errors=True)
        old = sorted(ended.glob("*"), key=lambda path: path.stat().st_mtime)[:-200]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)

    # Volumes

    async def _mount(self) -> None:
        """Provide the volumes; what is missing is waited for, and said in the status."""
        delays = iter(_RETRY_SECONDS)
        kept = self.folder / "folders.json"
        if kept.exists():  # after the node's own restart, pods do not wait for the API server
            self._folders = {k: Path(v) for k, v in json.loads(kept.read_text()).items()}
            self._sync.set()
            return
        while True:
            try:
                self._folders = await self._volumes.mount(self.manifest)
                write_json(kept, {name: str(path) for name, path in self._folders.items()})
            except (volumes.MountError, *FAILED) as error:
                self._node.event(self.manifest, "Warning", "FailedMount", str(error))
                await asyncio.sleep(next(delays, _RETRY_SECONDS[-1]))
            else:
                return

    async def _keep_volumes(self) -> None:
        """Bring volumes up to date when the pod's metadata changed, and every minute."""
        while True:
            renewal = self._volumes.token_renewal
            wait = _SYNC_SECONDS if renewal is None else max(1.0, renewal - time.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_SYNC_SECONDS, wait)):
                    await self._sync.wait()
            self._sync.clear()
            try:
                await self._volumes.mount(self.manifest)
            except (volumes.MountError, *FAILED) as error:
                self._node.event(self.manifest, "Warning", "FailedMount", str(error))
                await asyncio.sleep(1.0)

    # What a container is told

    async def _prepare(self, container: Mapping[str, Any], message: Path) -> Launch:
        image = self._node.images.find(container["image"])
        data = await environment.variables(
            container, pod=self.manifest, pod_ip=self.announced, host_ip="127.0.0.1",
            machine=self._node.machine, lookup=self._lookup,
        )  # fmt: skip
        home = self.folder / "home" / container["name"]
        (home / "tmp").mkdir(parents=True, exist_ok=True, mode=0o700)
        found = volumes.mounts(container, volumes=self._folders, variables=data)
        found[container.get("terminationMessagePath") or "/dev/termination-log"] = message
        found |= mounts.parents(self.folder / "parents" / container["name"], mounts=found)
        line = environment.arguments(container, entrypoint=image.entrypoint, variables=data)
        argv = [mounts.localise(word, mounts=found) for word in line]
        argv = images.substituted(argv, substitutes=self._node.substitutes)
        env = {
            "PATH": images.search_path(), "HOME": str(home), "TMPDIR": str(home / "tmp"),
            "LANG": "C.UTF-8", "HOSTNAME": self.manifest["metadata"]["name"],
        }  # fmt: skip
        for name, value in data.items():
            keep = name in mounts.PATHS_OF_OTHER_PODS
            env[name] = value if keep else mounts.localise(value, mounts=found)
        env["TRIMTAB_BIND_ADDRESS"] = self.local
        env["TRIMTAB_ADDRESS_REWRITE"] = self._node.rewrite
        env["TRIMTAB_TERMINATION_LOG"] = str(message)
        env["TRIMTAB_STAND_IN"] = "true"
        account = found.get(SERVICE_ACCOUNT)
        if account and "KUBECONFIG" not in data:
            env["KUBECONFIG"] = str(self._kubeconfig(account))
        cwd = found.get(container.get("workingDir", ""), home)
        return Launch(argv=argv, env=env, cwd=cwd)

    def _kubeconfig(self, account: Path) -> Path:
        path = self.folder / "kubeconfig"
        server = self._node.pod_api_server
        authority = self._node.api.config.authority() if server.startswith("https:") else None
        text = volumes.kubeconfig(server=server, authority=authority, folder=account)
        write_json(path, json.loads(text))
        return path

    async def _lookup(self, kind: str, name: str) -> dict[str, str] | None:
        plural = {"ConfigMap": "configmaps", "Secret": "secrets"}[kind]
        space = self.manifest["metadata"]["namespace"]
        try:
            found = await self._node.api.get(f"/api/v1/namespaces/{space}/{plural}/{name}")
        except FAILED as error:
            raise environment.CreateContainerConfigError(str(error)) from error
        if found is None:
            return None
        data = volumes.decoded(found, kind="secret" if kind == "Secret" else "configMap")
        return {key: value.decode(errors="replace") for key, value in data.items()}

    # What the API server is told

    def status(self) -> dict[str, Any]:
        """Return the status as a kubelet would report it now."""
        init = [c.record for c in self.init]
        main = {c.name: c.record for c in self.main}
        phase = "Failed" if self._failure else records.phase(init, list(main.values()))
        live = self.manifest.get("status") or {}
        gates = [g["conditionType"] for g in self.manifest["spec"].get("readinessGates") or ()]
        result: dict[str, Any] = {
            "phase": phase,
            "conditions": records.conditions(
                phase=phase, init=init, main=main, gates=gates,
                live=live.get("conditions") or (), now=time.time(),
            ),
            "hostIP": "127.0.0.1",
            "hostIPs": [{"ip": "127.0.0.1"}],
            "podIP": self.announced,
            "podIPs": [{"ip": self.announced}],
            "startTime": live.get("startTime") or records.timestamp(time.time()),
            "containerStatuses": [self._status(c) for c in self.main],
            "initContainerStatuses": [self._status(c) for c in self.init],
        }  # fmt: skip
        if self._failure:
            result["reason"], result["message"] = self._failure
        return result

    def _status(self, container: Container) -> dict[str, Any]:
        result = records.container_status(container.spec, container.record, uid=self.uid)
        waiting = result["state"].get("waiting")
        first = next((c for c in self.init if not c.record.over), None)
        if waiting and first is not None and container is not first:
            waiting["reason"] = "PodInitializing"
        return result

    async def _report(self) -> None:
        """Keep the server's status equal to ours; only the newest is ever sent."""
        self._dirty.set()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            status = self.status()
            if status == self._sent and _agrees(self.manifest.get("status") or {}, status):
                continue
            try:
                await self._patch(status)
            except ApiError as error:
                if error.code in {404, 409}:
                    continue
                self._dirty.set()
                await asyncio.sleep(1.0)
            except FAILED:
                self._dirty.set()
                await asyncio.sleep(1.0)

    async def _patch(self, status: dict[str, Any]) -> None:
        meta = self.manifest["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        body = {"metadata": {"uid": self.uid}, "status": status}
        await self._node.api.request("PATCH", path, body=body, content_type=STRATEGIC)
        self._sent = status


def _agrees(live: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Return whether the server still shows our phase and readiness: others may write them too."""
    mine = {c["type"]: c["status"] for c in ours["conditions"]}
    theirs = {c["type"]: c["status"] for c in live.get("conditions") or ()}
    return live.get("phase") == ours["phase"] and mine.items() <= theirs.items()


def _without_status(manifest: Mapping[str, Any]) -> dict[str, Any]:
    meta = {
        k: v
        for k, v in manifest["metadata"].items()
        if k not in {"resourceVersion", "managedFields"}
    }
    return {"metadata": meta, "spec": manifest["spec"]}
