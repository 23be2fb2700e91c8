"""A small API server: lists, watches that replay history, reviews, and faults on demand.

History begins at version 1; a watch from version n gets every event after n, then waits. Versions
at or below `forgotten` are answered with 410, as etcd's compaction would.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class _Event:
    version: int
    path: str
    kind: str
    body: dict[str, Any]


@dataclass
class FakeApiServer:
    """Objects by collection path and name, and everything that ever happened to them."""

    objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    events: list[_Event] = field(default_factory=list)
    version: int = 1
    forgotten: int = 0
    page: int = 500
    status: int | None = None
    frozen: bool = False
    garbage: bool = False
    token: str | None = None
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)
    rights: set[tuple[str, str, str]] = field(default_factory=set)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._news = asyncio.Event()
        self._answered = asyncio.Event()
        self.faults: list[tuple[str, str]] = []
        self._runner: web.AppRunner | None = None
        self._watchers: set[asyncio.Task[Any]] = set()

    # What tests do to it.

    def put(self, path: str, body: dict[str, Any], *, quietly: bool = False) -> None:
        """Create or change an object; `quietly` keeps the event from watchers."""
        name = body["metadata"]["name"]
        known = self.objects.setdefault(path, {})
        self._happen(path, "MODIFIED" if name in known else "ADDED", body, quietly=quietly)
        known[name] = body

    def delete(self, path: str, name: str, *, quietly: bool = False) -> None:
        body = self.objects[path].pop(name)
        self._happen(path, "DELETED", body, quietly=quietly)

    def bookmark(self, path: str) -> None:
        """Tell watchers of a version without an object."""
        self._happen(path, "BOOKMARK", {"metadata": {}}, quietly=False)

    def forget(self) -> None:
        """Compact: no watch can resume from any version so far."""
        self.forgotten = self.version
        self.events.clear()

    async def hang_up(self) -> None:
        """Cut every watch."""
        tasks = list(self._watchers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def until_fault(self, path: str, kind: str) -> None:
        """Wait until a fault was injected, such as `500`."""
        async with asyncio.timeout(30):
            while (path, kind) not in self.faults:
                await self._answered.wait()

    def _fault(self, path: str, kind: str) -> None:
        self.faults.append((path, kind))
        self._answered.set()
        self._answered = asyncio.Event()

    def watches(self, path: str) -> list[dict[str, str]]:
        return [query for _, at, query in self.requests if at == path and "watch" in query]

    def lists(self, path: str) -> list[dict[str, str]]:
        return [
            query
            for method, at, query in self.requests
            if (method, at) == ("GET", path) and "watch" not in query
        ]

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", self._token_review)
        app.router.add_post(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews", self._access_review
        )
        app.router.add_get("/{path:.*}", self._get)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self.hang_up()
            await self._runner.cleanup()
            self._runner = None

    # What it answers.

    def _happen(self, path: str, kind: str, body: dict[str, Any], *, quietly: bool) -> None:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        if not quietly:
            self.events.append(_Event(self.version, path, kind, json.loads(json.dumps(body))))
            self._news.set()
            self._news = asyncio.Event()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(("GET", request.path, dict(request.query)))
        if (
            self.token is not None
            and request.headers.get("Authorization") != f"Bearer {self.token}"
        ):
            self._fault(request.path, "401")
            return _status(401)
        if self.status is not None:
            self._fault(request.path, str(self.status))
            return _status(self.status)
        if "watch" in request.query:
            return await self._watch(request)
        return self._list(request)

    def _list(self, request: web.Request) -> web.Response:
        found = [
            body
            for body in self.objects.get(request.path, {}).values()
            if _selected(body, request.query.get("labelSelector", ""))
        ]
        start = int(request.query.get("continue", "0"))
        if start and self.forgotten >= self.version:
            return _status(410)
        end = start + min(self.page, int(request.query["limit"]))
        metadata = {"resourceVersion": str(self.version)}
        if end < len(found):
            metadata["continue"] = str(end)
        return web.json_response({"metadata": metadata, "items": found[start:end]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._watchers.add(task)
        try:
            return await self._replay(request)
        finally:
            self._watchers.discard(task)

    async def _replay(self, request: web.Request) -> web.StreamResponse:
        sent = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            news = self._news
            if sent < self.forgotten:
                body = {"kind": "Status", "code": 410, "reason": "Expired"}
                await _send(response, {"type": "ERROR", "object": body})
                return response
            if self.garbage:
                await response.write(b"no json\n")
                self._fault(request.path, "garbage")
                return response
            for event in [] if self.frozen else list(self.events):
                if event.version > sent and event.path == request.path:
                    await _send(response, {"type": event.kind, "object": event.body})
                    sent = event.version
            await news.wait()

    async def _token_review(self, request: web.Request) -> web.Response:
        self.requests.append(("POST", request.path, {}))
        if self.status is not None:
            return _status(self.status)
        spec = (await request.json())["spec"]
        status = self.tokens.get(spec["token"], {"authenticated": False})
        return web.json_response({"spec": {}, "status": status}, status=201)

    async def _access_review(self, request: web.Request) -> web.Response:
        self.requests.append(("POST", request.path, {}))
        if self.status is not None:
            return _status(self.status)
        spec = (await request.json())["spec"]
        wanted = spec["resourceAttributes"]
        assert (wanted["verb"], wanted["group"]) == ("invoke", "trimtab.dev")
        key = (spec["user"], wanted["namespace"], wanted["name"])
        return web.json_response({"status": {"allowed": key in self.rights}}, status=201)


def _selected(body: dict[str, Any], selector: str) -> bool:
    labels = body["metadata"].get("labels", {})
    pairs = (term.partition("=") for term in selector.split(",") if term)
    return all(labels.get(key) == value for key, _, value in pairs)


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(json.dumps(event).encode() + b"\n")


def _status(code: int) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "reason": "Fault"}, status=code)
