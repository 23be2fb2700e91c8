"""A small API server in memory that replays history from a resourceVersion.

One that does not replay hides the bugs of lost events. No schemas, no CEL, no apply: the
control-plane tier has a real server for those.
"""

from __future__ import annotations

import asyncio
import copy
import json
from dataclasses import dataclass, field
from typing import Any, Self

import jsonpatch
from aiohttp import web

from trimtab.kube.resources import CHILDREN, INTENT, NODE, POD, Resource

CRD = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition"
)
NAMESPACE = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
SERVED = (INTENT, *CHILDREN, POD, NODE, CRD, NAMESPACE)

Body = dict[str, Any]


@dataclass
class Seen:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str
    body: Any = None


@dataclass
class FakeApi:
    """Objects by plural, their history, and faults by request."""

    objects: dict[str, dict[tuple[str, str], Body]] = field(default_factory=dict)
    history: list[tuple[int, str, str, Body]] = field(default_factory=list)
    requests: list[Seen] = field(default_factory=list)
    version: int = 100
    tokens: set[str] = field(default_factory=lambda: {"first"})
    faults: list[tuple[str, str, int]] = field(default_factory=list)
    """(method, part of the path, status) for the next request that matches."""
    in_stream: dict[str, Body] = field(default_factory=dict)
    """An ERROR object to be sent to the next watch of a plural, instead of events."""
    url: str = ""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    # What tests do.

    async def put(self, resource: Resource, body: Body, *, silently: bool = False) -> Body:
        """Create or replace an object; `silently` leaves no history, as a compacted one."""
        meta = body["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        known = self.objects.setdefault(resource.plural, {})
        kind = "MODIFIED" if key in known else "ADDED"
        self.version += 1
        body = copy.deepcopy(body)
        body |= {"apiVersion": resource.api_version, "kind": resource.kind}
        body["metadata"]["resourceVersion"] = str(self.version)
        body["metadata"].setdefault("uid", f"uid-{meta['name']}")
        gone = body["metadata"].get("deletionTimestamp") and not body["metadata"].get("finalizers")
        if gone:
            known.pop(key, None)
            kind = "DELETED"
        else:
            known[key] = body
        if not silently:
            await self._record(resource.plural, kind, body)
        return body

    async def remove(self, resource: Resource, name: str, *, silently: bool = False) -> None:
        """Take an object away."""
        key = next(k for k in self.objects[resource.plural] if k[1] == name)
        body = self.objects[resource.plural].pop(key)
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        if not silently:
            await self._record(resource.plural, "DELETED", body)

    def get(self, resource: Resource, name: str) -> Body | None:
        found = self.objects.get(resource.plural, {})
        return next((body for key, body in found.items() if key[1] == name), None)

    def writes(self) -> list[Seen]:
        return [r for r in self.requests if r.method not in ("GET", "HEAD")]

    async def drop_watches(self) -> None:
        """Wake every watch, so that faults that were set are noticed."""
        async with self._changed:
            self._changed.notify_all()

    async def _record(self, plural: str, kind: str, body: Body) -> None:
        async with self._changed:
            self.history.append((self.version, plural, kind, copy.deepcopy(body)))
            self._changed.notify_all()

    # What the server does.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        seen = Seen(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            authorization=request.headers.get("Authorization", ""),
            body=json.loads(body) if body else None,
        )
        self.requests.append(seen)
        if seen.authorization.removeprefix("Bearer ") not in self.tokens:
            return _status(401, "Unauthorized")
        for fault in self.faults:
            method, part, code = fault
            if request.method == method and part in request.path:
                self.faults.remove(fault)
                return _status(code, "injected")
        parts = request.path.strip("/").split("/")
        found = _discovery(parts)
        if found is not None:
            return web.json_response(found)
        return await self._objects(request, parts, seen)

    async def _objects(
        self, request: web.Request, parts: list[str], seen: Seen
    ) -> web.StreamResponse:
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plural, name = rest[0], rest[1] if len(rest) > 1 else ""
        if request.method == "PATCH":
            return await self._patch(plural, namespace, name, seen)
        if request.query.get("watch") == "true":
            return await self._watch(request, plural)
        items = list(self.objects.get(plural, {}).values())
        return web.json_response(
            {"kind": "List", "metadata": {"resourceVersion": str(self.version)}, "items": items}
        )

    async def _patch(
        self, plural: str, namespace: str, name: str, seen: Seen
    ) -> web.StreamResponse:
        body = self.objects.get(plural, {}).get((namespace, name))
        if body is None:
            return _status(404, "not found")
        resource = next(r for r in SERVED if r.plural == plural)
        if isinstance(seen.body, list):
            patched = jsonpatch.apply_patch(body, seen.body)
        else:
            patched = _merged(body, seen.body)
        return web.json_response(await self.put(resource, patched))

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        position = int(request.query.get("resourceVersion") or self.version)
        while True:
            if error := self.in_stream.pop(plural, None):
                await answer.write(json.dumps({"type": "ERROR", "object": error}).encode() + b"\n")
                return answer
            for version, of, kind, body in list(self.history):
                if of == plural and version > position:
                    position = version
                    line = json.dumps({"type": kind, "object": body}).encode() + b"\n"
                    await answer.write(line)
            async with self._changed:
                try:
                    async with asyncio.timeout(1):
                        await self._changed.wait()
                except TimeoutError:
                    continue


def _merged(body: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    found = dict(body) if isinstance(body, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key), value)
    return found


def _status(code: int, message: str) -> web.Response:
    return web.json_response(
        {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "message": message,
        },
        status=code,
    )


def _discovery(parts: list[str]) -> Any:
    match parts:
        case ["api"]:
            return {"versions": ["v1"]}
        case ["apis"]:
            groups = {r.group: r.version for r in SERVED if r.group}
            return {
                "groups": [
                    {
                        "name": name,
                        "versions": [{"groupVersion": f"{name}/{v}", "version": v}],
                        "preferredVersion": {"groupVersion": f"{name}/{v}", "version": v},
                    }
                    for name, v in groups.items()
                ]
            }
        case ["version"]:
            return {"major": "1", "minor": "37"}
        case ["api", version]:
            return _resources("", version)
        case ["apis", group, version]:
            return _resources(group, version)
    return None


def _resources(group: str, version: str) -> Any:
    verbs = ["get", "list", "watch", "patch", "create", "delete"]
    found = [r for r in SERVED if (r.group, r.version) == (group, version)]
    rows = [
        {
            "name": r.plural,
            "singularName": r.kind.lower(),
            "kind": r.kind,
            "namespaced": r.namespaced,
            "verbs": verbs,
        }
        for r in found
    ]
    return {"groupVersion": f"{group}/{version}", "resources": rows}
