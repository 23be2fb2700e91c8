"""The part of the hub's HTTP API that a model download uses, as huggingface.co answers it.

`/{repository}/resolve/{revision}/{file}` (HEAD, GET, Range), `/api/models/{repository}` with and
without `/revision/{revision}`, and `/tree/{revision}`. Weights are served by redirect from a second
address, like the hub's content network: a client that sends its token there as well leaks it, and
`leaked_tokens` counts that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import re
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from e2e.faults.loop import LoopThread

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_WEIGHTS = frozenset({".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt"})
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK_BYTES = 2**16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A folder served as a model repository; every revision shows the same files."""

    folder: Path
    revisions: frozenset[str] = frozenset({"main"})
    """Branches and tags; the commit itself always resolves."""
    token: str = ""
    """What a caller must present; empty for a public repository."""
    pinned: str = ""
    """The commit's name, 40 hex digits; by default it is made of the files."""

    @property
    def commit(self) -> str:
        """The commit that all revisions point to: a digest of names, sizes and contents."""
        if self.pinned:
            return self.pinned
        digest = hashlib.sha1(usedforsecurity=False)
        for path in self.files():
            digest.update(f"{path.name}:{sha256(path)}\n".encode())
        return digest.hexdigest()

    def files(self) -> list[Path]:
        """Return the files of the repository."""
        return sorted(p for p in self.folder.rglob("*") if p.is_file())

    def find(self, name: str) -> Path | None:
        """Return a file by its name in the repository; nothing outside the folder is found."""
        path = (self.folder / name).resolve()
        inside = path.is_relative_to(self.folder.resolve())
        return path if inside and path.is_file() else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HubRequest:
    """One request as the hub saw it."""

    method: str
    path: str
    range: str
    authorized: bool
    """Whether it carried an Authorization header, right or wrong."""


@dataclasses.dataclass(slots=True, kw_only=True)
class _CutPlan:
    name: str
    after_bytes: int
    times: int


_DIGESTS: dict[tuple[str, int, int], str] = {}


def sha256(path: Path) -> str:
    """Return a file's digest, kept as long as its size and time stay."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _DIGESTS[key]


def byte_range(header: str, *, size: int) -> tuple[int, int] | None:
    """Return (first, end) of a Range header, the whole file without one, None if it cannot be met."""
    if not header:
        return 0, size
    match = _RANGE.fullmatch(header.strip())
    if not match or not (match[1] or match[2]):
        return 0, size  # a header that is not understood is ignored (RFC 9110)
    if not match[1]:
        return max(0, size - int(match[2])), size
    first = int(match[1])
    end = min(size, int(match[2]) + 1) if match[2] else size
    return (first, end) if first < end else None


class Hub:
    """Serves repositories by name; an async context manager.

    Args:
        repositories: By `organisation/name`.
        redirect_weights: Answer for weights with a redirect to the content address, as the hub does.
        host: Where to listen; at the node level an address that pods reach.
    """

    def __init__(
        self,
        repositories: dict[str, Repository],
        *,
        redirect_weights: bool = True,
        host: str = "127.0.0.1",
    ) -> None:
        self.repositories = repositories
        self.host = host
        self.requests: list[HubRequest] = []
        self.leaked_tokens = 0
        self.cuts = 0
        """How often a transfer was cut."""
        self.bytes_sent = 0
        self._redirect_weights = redirect_weights
        self._plans: list[_CutPlan] = []
        self._runners: list[web.AppRunner] = []
        self.url = ""
        self.content_url = ""

    async def __aenter__(self) -> Self:
        """Start to listen at two ports: the hub's and the content network's."""
        self.url = await self._listen(self._hub_routes())
        self.content_url = await self._listen(self._content_routes())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening."""
        for runner in self._runners:
            await runner.cleanup()

    @property
    def ranges(self) -> int:
        """How many requests asked for a part of a file."""
        return sum(bool(seen.range) for seen in self.requests)

    def cut(self, name: str, *, after_bytes: int, times: int = 1) -> None:
        """Cut the next transfers of a file (of any weights if `name` is empty) that are longer."""
        self._plans.append(_CutPlan(name=name, after_bytes=after_bytes, times=times))

    async def _listen(self, routes: Iterable[web.RouteDef]) -> str:
        app = web.Application()
        app.router.add_routes(routes)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, self.host, 0).start()
        self._runners.append(runner)
        return f"http://{self.host}:{runner.addresses[0][1]}"

    def _hub_routes(self) -> list[web.RouteDef]:
        model = "/api/models/{repository:.+?}"
        return [
            web.get(f"{model}/revision/{{revision}}", self._info),
            web.get(f"{model}/tree/{{revision}}", self._tree),
            web.get(model, self._info),
            web.get("/{repository:.+?}/resolve/{revision}/{file:.+}", self._resolve),
        ]

    def _content_routes(self) -> list[web.RouteDef]:
        return [web.get("/content/{digest}", self._content)]

    # Answers

    def _note(self, request: web.Request) -> None:
        headers = request.headers
        seen = HubRequest(
            method=request.method,
            path=request.path,
            range=headers.get("Range", ""),
            authorized="Authorization" in headers,
        )
        self.requests.append(seen)

    def _open(self, request: web.Request) -> Repository:
        """Return the repository asked for, or raise the hub's own refusal."""
        authorization = request.headers.get("Authorization", "")
        self._note(request)
        repository = self.repositories.get(request.match_info["repository"])
        given = authorization.removeprefix("Bearer ")
        if repository is None or (repository.token and not given):
            # The hub does not tell a stranger whether a repository exists.
            _refuse(web.HTTPUnauthorized, "RepoNotFound", "Repository not found")
        if repository.token and given != repository.token:
            _refuse(web.HTTPUnauthorized, "", "Invalid credentials in Authorization header")
        revision = request.match_info.get("revision", "main")
        if revision not in repository.revisions and revision != repository.commit:
            _refuse(web.HTTPNotFound, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository

    async def _info(self, request: web.Request) -> web.Response:
        repository = self._open(request)
        blobs = request.query.get("blobs", "").lower() in {"1", "true"}
        siblings = []
        for entry in _entries(repository):
            sibling = {"rfilename": entry["path"]}
            if blobs:
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                sibling |= {"lfs": entry["lfs"]} if "lfs" in entry else {}
            siblings.append(sibling)
        name = request.match_info["repository"]
        body = {
            "_id": "0" * 24, "id": name, "modelId": name, "sha": repository.commit,
            "private": bool(repository.token), "gated": False, "disabled": False,
            "tags": [], "siblings": siblings,
        }  # fmt: skip
        return web.json_response(body)

    async def _tree(self, request: web.Request) -> web.Response:
        return web.json_response(_entries(self._open(request)))

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        repository = self._open(request)
        path = repository.find(request.match_info["file"])
        if path is None:
            _refuse(web.HTTPNotFound, "EntryNotFound", "Entry not found")
        digest, size = sha256(path), path.stat().st_size
        headers = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if path.suffix in _WEIGHTS:
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(size)}
            if self._redirect_weights:
                headers["Location"] = f"{self.content_url}/content/{digest}"
                return web.Response(status=302, headers=headers)
        return await self._send(request, path, headers | {"ETag": f'"{digest}"'})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        self.leaked_tokens += "Authorization" in request.headers
        digest = request.match_info["digest"]
        self._note(request)
        found = (p for r in self.repositories.values() for p in r.files() if sha256(p) == digest)
        path = next(found, None)
        if path is None:
            _refuse(web.HTTPNotFound, "EntryNotFound", "no such content")
        return await self._send(request, path, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"})

    async def _send(
        self, request: web.Request, path: Path, headers: dict[str, str]
    ) -> web.StreamResponse:
        size = _size(path)
        wanted = byte_range(request.headers.get("Range", ""), size=size)
        if wanted is None:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        first, end = wanted
        partial = (first, end) != (0, size)
        if partial:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        answer = web.StreamResponse(status=206 if partial else 200, headers=headers)
        answer.content_type = "application/octet-stream"
        answer.content_length = end - first
        await answer.prepare(request)
        if request.method == "HEAD":
            return answer
        limit = self._limit(path, length=end - first)
        with path.open("rb") as file:
            file.seek(first)
            left = end - first if limit is None else min(limit, end - first)
            while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
                await answer.write(chunk)
                left -= len(chunk)
                self.bytes_sent += len(chunk)
        if limit is not None:
            self.cuts += 1
            if request.transport:
                request.transport.close()  # what was written is still sent, then the end comes
            return answer
        await answer.write_eof()
        return answer

    def _limit(self, path: Path, *, length: int) -> int | None:
        for plan in self._plans:
            meant = path.name == plan.name if plan.name else path.suffix in _WEIGHTS
            if meant and plan.times > 0 and length > plan.after_bytes:
                plan.times -= 1
                return plan.after_bytes
        return None


def _size(path: Path) -> int:
    return path.stat().st_size


def _entries(repository: Repository) -> list[dict[str, Any]]:
    entries = []
    for path in repository.files():
        digest, size = sha256(path), path.stat().st_size
        entry: dict[str, Any] = {
            "type": "file",
            "path": str(path.relative_to(repository.folder)),
            "size": size,
            "oid": digest[:40],
        }
        if path.suffix in _WEIGHTS:
            entry["lfs"] = {"oid": digest, "sha256": digest, "size": size, "pointerSize": 135}
        entries.append(entry)
    return entries


def _refuse(kind: type[web.HTTPException], code: str, message: str) -> Any:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    raise kind(headers=headers, text=f'{{"error": "{message}"}}', content_type="application/json")


def pickle_only(folder: Path) -> Path:
    """Make a repository whose only weights are pickles, which Trimtab refuses; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": [0.0] * 64}))
    return folder


class ThreadedHub:
    """A `Hub` in a thread, for tests that block; a context manager. Takes the same arguments."""

    def __init__(self, repositories: dict[str, Repository], **settings: Any) -> None:
        self.hub = Hub(repositories, **settings)
        self._loop = LoopThread()

    def __enter__(self) -> Hub:
        """Start the thread and listen; the hub's counters may be read from here."""
        self._loop.start()
        self._loop.call(self.hub.__aenter__())
        return self.hub

    def __exit__(self, *_: object) -> None:
        """Stop listening and end the thread."""
        self._loop.call(self.hub.__aexit__())
        self._loop.stop()
