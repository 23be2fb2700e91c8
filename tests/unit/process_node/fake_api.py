"""A small fake API server: pods bound to one node, enough for the stand-in node's own life."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from typing import TYPE_CHECKING, Any

import yaml
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NODE = "stand-in"


def a_pod(name: str = "one", *, command: list[str], **spec: Any) -> dict[str, Any]:
    """Return a pod bound to the stand-in node with one container that runs `command`."""
    container = {"name": "main", "image": "python:3", "command": command}
    container |= spec.pop("container", {})
    return {
        "metadata": {
            "name": name,
            "namespace": "team-a",
            "uid": f"uid-{name}",
            "labels": {"app.kubernetes.io/part-of": "trimtab"},
        },
        "spec": {"nodeName": NODE, "containers": [container], **spec},
        "status": {"phase": "Pending"},
    }


class FakeApi:
    """Stores objects by path; patches merge shallowly except `status.conditions`, merged by type."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.version = 1
        self.refuse = False
        self._watchers: list[asyncio.Queue[dict[str, Any]]] = []
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.url = ""

    def path(self, pod: dict[str, Any]) -> str:
        meta = pod["metadata"]
        return f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"

    def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        known = path in self.objects
        self.version += 1
        body = copy.deepcopy(body)
        body["metadata"]["resourceVersion"] = str(self.version)
        self.objects[path] = body
        self._tell("MODIFIED" if known else "ADDED", path, body)
        return body

    def create(self, pod: dict[str, Any]) -> str:
        path = self.path(pod)
        self.put(path, pod)
        return path

    def remove(self, path: str) -> None:
        body = self.objects.pop(path)
        self._tell("DELETED", path, body)

    def ask_to_delete(self, path: str, *, grace_seconds: int) -> None:
        pod = copy.deepcopy(self.objects[path])
        pod["metadata"]["deletionTimestamp"] = "2026-11-23T00:00:00Z"
        pod["metadata"]["deletionGracePeriodSeconds"] = grace_seconds
        self.put(path, pod)

    def _tell(self, kind: str, path: str, body: dict[str, Any]) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        if "/pods/" in path:
            for queue in self._watchers:
                queue.put_nowait({"type": kind, "object": body})

    async def until(self, what: Callable[[], Any], *, seconds: float = 20) -> Any:
        """Wait until `what()` is truthy and return it; it is asked again at every change."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    waiter = self._changed
                    if answer := what():
                        return answer
                    await waiter.wait()
        except TimeoutError as error:
            raise AssertionError(json.dumps(self.objects, indent=1)) from error

    def phase(self, path: str) -> str:
        return self.objects.get(path, {}).get("status", {}).get("phase", "gone")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if self.refuse:
            return web.json_response({"message": "down"}, status=503)
        if request.path == "/api/v1/pods":
            return await self._pods(request)
        path = request.path.removesuffix("/status")
        if request.method == "POST":
            return await self._post(request)
        if path not in self.objects:
            return web.json_response({"message": "not found"}, status=404)
        if request.method == "PATCH":
            return self._patch(path, await request.json())
        if request.method == "DELETE":
            self.remove(path)
        return web.json_response(self.objects.get(path, {}))

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.json()
        if request.path.endswith("/token"):
            return web.json_response({"status": {"token": f"token-{len(self.requests)}"}})
        name = body["metadata"].get("name", f"event-{self.version}")
        return web.json_response(self.put(f"{request.path}/{name}", body))

    def _patch(self, path: str, body: dict[str, Any]) -> web.Response:
        live = copy.deepcopy(self.objects[path])
        status = body.pop("status", {})
        conditions = {c["type"]: c for c in live.get("status", {}).get("conditions", [])}
        conditions |= {c["type"]: c for c in status.get("conditions", [])}
        live["metadata"] |= body.get("metadata", {})
        live["status"] = live.get("status", {}) | status | {"conditions": [*conditions.values()]}
        return web.json_response(self.put(path, live))

    async def _pods(self, request: web.Request) -> web.StreamResponse:
        pods = [body for path, body in self.objects.items() if "/pods/" in path]
        if "watch" not in request.query:
            meta = {"resourceVersion": str(self.version)}
            return web.json_response({"items": pods, "metadata": meta})
        answer = web.StreamResponse()
        await answer.prepare(request)
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._watchers.append(queue)
        missed = [p for p in pods if int(p["metadata"]["resourceVersion"]) > int(request.query["resourceVersion"])]  # fmt: skip
        for pod in missed:
            queue.put_nowait({"type": "MODIFIED", "object": pod})
        try:
            while True:
                await answer.write(json.dumps(await queue.get()).encode() + b"\n")
        finally:
            self._watchers.remove(queue)

    async def start(self, folder: Path) -> Path:
        """Listen on loopback and return a kubeconfig."""
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self.handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        path = folder / "kubeconfig"
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "admin"}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    async def stop(self) -> None:
        if self._runner:
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner.cleanup()
