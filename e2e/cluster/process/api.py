"""The stand-in node's road to the API server: a kubeconfig, JSON in, JSON out, watches by lines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import yaml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
USER_AGENT: Final = "trimtab-stand-in-node"


class ApiError(Exception):
    """The API server refused a request; `code` is the HTTP status."""

    def __init__(self, *, method: str, path: str, code: int, message: str) -> None:
        super().__init__(f"{method} {path}: {code} {message}")
        self.code = code


UNREACHABLE: Final = (aiohttp.ClientError, TimeoutError, OSError)
FAILED: Final = (ApiError, *UNREACHABLE)


def lines(chunks: Iterable[bytes], *, rest: bytearray) -> list[bytes]:
    """Return the whole lines in `rest` + chunks and leave the unfinished one in `rest`.

    aiohttp's own readline refuses lines beyond its buffer, and a watch event has no such bound.
    """
    for chunk in chunks:
        rest += chunk
    *whole, last = bytes(rest).split(b"\n")
    rest[:] = last
    return [line for line in whole if line]


class Kubeconfig:
    """The current context of a kubeconfig file."""

    def __init__(self, path: Path) -> None:
        document = yaml.safe_load(path.read_text())
        contexts = {entry["name"]: entry["context"] for entry in document["contexts"]}
        context = contexts[document["current-context"]]
        clusters = {entry["name"]: entry["cluster"] for entry in document["clusters"]}
        users = {entry["name"]: entry.get("user") or {} for entry in document["users"]}
        self.folder = path.resolve().parent
        self.cluster: dict[str, Any] = clusters[context["cluster"]]
        self.user: dict[str, Any] = users[context["user"]]
        self.server: str = self.cluster["server"].rstrip("/")

    def bytes(self, source: Mapping[str, Any], name: str) -> bytes | None:
        """Return an entry that is given as `NAME-data` (base64) or as a file name."""
        if f"{name}-data" in source:
            return base64.b64decode(source[f"{name}-data"])
        return (self.folder / source[name]).read_bytes() if name in source else None

    def authority(self) -> bytes | None:
        """Return the certificates that the server's own is signed by, as PEM, if given."""
        return self.bytes(self.cluster, "certificate-authority")

    def headers(self) -> dict[str, str]:
        """Return the headers that authenticate a request."""
        token = self.user.get("token")
        if not token and "tokenFile" in self.user:
            token = (self.folder / self.user["tokenFile"]).read_text().strip()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def tls(self) -> ssl.SSLContext | bool:
        """Return how to trust the server and present the client's certificate."""
        if not self.server.startswith("https:"):
            return True
        authority = self.authority()
        context = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if self.cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate = self.bytes(self.user, "client-certificate")
        key = self.bytes(self.user, "client-key")
        if certificate and key:
            with tempfile.TemporaryDirectory() as folder:  # ssl loads key pairs from files only
                path = Path(folder) / "pair.pem"
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(certificate + b"\n" + key)
                context.load_cert_chain(path)
        return context


class Api:
    """Requests to one API server; an async context manager."""

    def __init__(self, config: Kubeconfig, *, user_agent: str = USER_AGENT) -> None:
        self.config = config
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self.config.tls(), limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, headers={"User-Agent": self._user_agent}
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        timeout_seconds: float = 15,
    ) -> dict[str, Any]:
        """Send one request and return the answer's JSON object.

        Raises:
            ApiError: The server refused.
            aiohttp.ClientError, TimeoutError: It did not answer (`UNREACHABLE`).
        """
        async with self._open(
            method,
            path,
            body=body,
            content_type=content_type,
            query=query,
            timeout_seconds=timeout_seconds,
        ) as answer:
            return dict(json.loads(await answer.read()))

    async def get(self, path: str) -> dict[str, Any] | None:
        """Return one object, or None where the server has none."""
        try:
            return await self.request("GET", path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def watch(
        self, path: str, *, query: Mapping[str, str], idle_seconds: float = 75
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of one watch until the server ends it or is silent for `idle_seconds`."""
        rest = bytearray()
        async with self._open(
            "GET", path, query={**query, "watch": "1"}, timeout_seconds=None
        ) as answer:
            chunks = answer.content.iter_any()
            while True:
                try:
                    chunk = await _within(anext(chunks), idle_seconds)
                except StopAsyncIteration:
                    return
                for line in lines([chunk], rest=rest):
                    yield json.loads(line)

    @contextlib.asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        timeout_seconds: float | None,
        body: object = None,
        content_type: str = "",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("Api is an async context manager: enter it before its first request")
        headers = self.config.headers()
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = json.dumps(body).encode()
        async with self._session.request(
            method, self.config.server + path, params=query, data=data, headers=headers,
            timeout=aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=5),
        ) as answer:  # fmt: skip
            if answer.status >= 300:
                text = await answer.text(errors="replace")
                try:
                    text = json.loads(text)["message"]
                except (ValueError, KeyError, TypeError):
                    text = text[:300]
                raise ApiError(method=method, path=path, code=answer.status, message=text)
            yield answer


async def _within(awaitable: Any, seconds: float) -> bytes:
    async with asyncio.timeout(seconds):
        return bytes(await awaitable)
