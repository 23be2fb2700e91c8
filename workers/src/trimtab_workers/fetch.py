"""Downloads one pinned revision of a model repository: `python -m trimtab_workers.fetch`.

Runs as an init container before a worker or an inspection. Only safetensors, GGUF and their
configuration are fetched, pickles never. A transfer that was cut goes on where it ended, also after
a restart of the container. `HF_ENDPOINT` names the hub or a mirror, `HF_TOKEN` the caller.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import aiohttp

from trimtab_workers.termination import fitting
from trimtab_workers.web import logs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger("trimtab_workers.fetch")

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
ATTEMPTS: Final = 6
_FIRST_BACKOFF_SECONDS: Final = 1.0
_CHUNK_BYTES: Final = 1 << 20
_PROGRESS_SECONDS: Final = 5.0
_LISTING_BYTES: Final = 16 << 20
_HEADER_BYTES: Final = 100 << 20
_GGUF_HEAD_BYTES: Final = 64 << 20
_REVISION: Final = re.compile(r"[0-9a-f]{40}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_EXTRAS: Final = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template|.*\.safetensors\.index)\.json|merges\.txt|chat_template\.jinja|tokenizer\.model"
)
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=30, sock_read=60)


class FetchError(Exception):
    """The model cannot be downloaded as asked; `reason` is a word for a condition."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class _InterruptedError(Exception):
    """A transfer ended early or was refused for now; it goes on after a pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of the revision; `sha256` is empty for small files that the hub keeps in git."""

    name: str
    size: int
    sha256: str = ""


def select(repository: str, siblings: Sequence[Mapping[str, Any]]) -> list[RemoteFile]:
    """Return the files that serve a model: safetensors before GGUF, and the configuration.

    Raises:
        FetchError: `PickleRefused` if the only weights are pickles, `ModelNotFound` without any or
            with several GGUF files to choose from.
    """
    files = [_remote(entry) for entry in siblings]
    # Folders of a repository hold other formats of the same weights; names are checked, for they
    # become paths.
    top = [f for f in files if _NAME.fullmatch(f.name)]
    tensors = [f for f in top if f.name.endswith(".safetensors")]
    gguf = [f for f in top if f.name.endswith(".gguf")]
    if not tensors and len(gguf) > 1:
        names = ", ".join(sorted(f.name for f in gguf)[:8])
        raise FetchError(
            "ModelNotFound",
            f"Repository {repository} holds several GGUF files ({names}) and no safetensors; "
            "put the one you want on a persistentVolumeClaim.",
        )
    if not tensors and not gguf:
        pickles = [f.name for f in files if Path(f.name).suffix in _PICKLES]
        if pickles:
            raise FetchError(
                "PickleRefused",
                f"Repository {repository} holds its weights as pickles ({', '.join(pickles[:3])}), "
                "which can run code when they are read. Use a revision with safetensors or GGUF "
                "files.",
            )
        raise FetchError(
            "ModelNotFound",
            f"Repository {repository} holds neither safetensors nor GGUF files at this revision. "
            "Correct spec.model.source.huggingFace.",
        )
    extras = [f for f in top if _EXTRAS.fullmatch(f.name)]
    return sorted([*extras, *(tensors or gguf)], key=lambda f: f.name)


def _remote(entry: Mapping[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs")
    lfs = lfs if isinstance(lfs, dict) else {}
    size = lfs.get("size") or entry.get("size")
    return RemoteFile(
        name=str(entry.get("rfilename") or ""),
        size=max(0, size) if isinstance(size, int) else 0,
        sha256=str(lfs.get("sha256") or lfs.get("oid") or ""),
    )


def _object(body: bytes | bytearray) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


class Downloader:
    """Fetches a revision into a folder."""

    def __init__(
        self,
        *,
        endpoint: str,
        repository: str,
        revision: str,
        token: str = "",
        backoff_seconds: float = _FIRST_BACKOFF_SECONDS,
    ) -> None:
        """Prepare.

        Raises:
            FetchError: The revision is no full commit hash.
        """
        if not _REVISION.fullmatch(revision):
            raise FetchError(
                "DownloadFailed",
                f"Revision {revision!r} is no full commit hash; branches and tags may change under "
                "a running fleet. Give 40 hex digits.",
            )
        self._endpoint = endpoint.rstrip("/")
        self._repository = repository
        self._revision = revision
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._backoff = backoff_seconds
        self._told = 0.0

    async def fetch(self, directory: Path, *, headers_only: bool = False) -> list[RemoteFile]:
        """Download all files that serve the model; return them.

        Args:
            directory: Created if need be; complete files in it are kept.
            headers_only: Fetch of weights only their headers; the rest of such a file is a hole, so
                that names, sizes and headers are those of the real one.

        Raises:
            FetchError: Names repository, file and the hub's answer.
        """
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        # Redirects lead to other hosts; aiohttp takes the token off there.
        async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True) as session:
            files = select(self._repository, await self._listing(session))
            self._check_space(directory, files, headers_only=headers_only)
            for file in files:
                weights = file.name.endswith((".safetensors", ".gguf"))
                if headers_only and weights:
                    await self._repeat(file, lambda f=file: self._head(session, directory, f))
                else:
                    await self._repeat(file, lambda f=file: self._whole(session, directory, f))
        return files

    def _check_space(
        self, directory: Path, files: Sequence[RemoteFile], *, headers_only: bool
    ) -> None:
        have = sum(p.stat().st_size for p in directory.iterdir() if p.is_file())
        need = sum(f.size for f in files) - have
        free = shutil.disk_usage(directory).free
        if not headers_only and need > free:
            raise FetchError(
                "DownloadFailed",
                f"Repository {self._repository} needs {need >> 20} MiB more, but {directory} has "
                f"{free >> 20} MiB free. Use nodes with more ephemeral storage, or a claim.",
            )

    async def _listing(self, session: aiohttp.ClientSession) -> Sequence[Mapping[str, Any]]:
        url = (
            f"{self._endpoint}/api/models/{quote(self._repository)}/revision/{self._revision}"
            "?blobs=true"
        )
        found: list[Mapping[str, Any]] = []

        async def ask() -> None:
            async with session.get(url, headers=self._headers) as answer:
                self._check(answer, "the list of files")
                body = bytearray()
                # NB: read(n) returns whatever has arrived, not n bytes.
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    body += chunk
                    if len(body) > _LISTING_BYTES:
                        break
            document = _object(body)
            if document is None:
                raise _InterruptedError(f"{self._endpoint} sent a list of files that is no JSON")
            if document.get("sha") != self._revision:
                raise FetchError(
                    "DownloadFailed",
                    f"{self._endpoint} answered revision {document.get('sha')!r} of "
                    f"{self._repository} when asked for {self._revision}.",
                )
            siblings = document.get("siblings")
            if isinstance(siblings, list):
                found.extend(entry for entry in siblings if isinstance(entry, dict))

        await self._repeat(RemoteFile(name="the list of files", size=0), ask)
        return found

    def _check(self, answer: aiohttp.ClientResponse, what: str) -> None:
        if answer.status in (200, 206):
            return
        said = answer.headers.get("X-Error-Message", answer.reason or "")
        about = f"{self._endpoint} answered {answer.status} ({said}) for {what} of "
        about += f"{self._repository} at {self._revision}"
        if answer.status in (429, 500, 502, 503, 504):
            raise _InterruptedError(about)
        if answer.status in (401, 403):
            raise FetchError(
                "DownloadFailed",
                f"{about}. The repository does not exist, or needs a token: set "
                "spec.model.source.huggingFace.tokenSecretRef.",
            )
        if answer.status == 404:
            raise FetchError(
                "ModelNotFound",
                f"{about}. Correct repository and revision in spec.model.source.huggingFace.",
            )
        raise FetchError("DownloadFailed", f"{about}.")

    async def _repeat(self, file: RemoteFile, transfer: Any) -> None:
        last: Exception | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(min(30.0, self._backoff * 2.0 ** (attempt - 1)))
            try:
                await transfer()
            except (_InterruptedError, aiohttp.ClientError, TimeoutError, OSError) as error:
                last = error
                log.warning(
                    "transfer_interrupted",
                    extra={"file": file.name, "attempt": attempt + 1, "reason": str(error)},
                )
            else:
                return
        raise FetchError(
            "DownloadFailed",
            f"{file.name} of {self._repository} did not arrive in {ATTEMPTS} attempts; the last "
            f"one ended with: {last}. Check that pods reach {self._endpoint}.",
        )

    def _url(self, file: RemoteFile) -> str:
        return (
            f"{self._endpoint}/{quote(self._repository)}/resolve/{self._revision}/"
            f"{quote(file.name)}"
        )

    async def _whole(
        self, session: aiohttp.ClientSession, directory: Path, file: RemoteFile
    ) -> None:
        target, part = directory / file.name, directory / f".{file.name}.part"
        if target.is_file() and target.stat().st_size == file.size:
            return
        have = part.stat().st_size if part.is_file() else 0
        if have > file.size:
            part.unlink()
            have = 0
        if have < file.size or not file.size:
            await self._append(session, file, part, have)
        if part.stat().st_size != file.size:
            raise _InterruptedError(f"{part.stat().st_size} of {file.size} bytes arrived")
        if file.sha256 and await asyncio.to_thread(_sha256, part) != file.sha256:
            # What lies there is wrong somewhere: the next attempt begins anew.
            part.unlink()
            raise _InterruptedError("the bytes do not have the sha256 that the hub announced")
        part.rename(target)
        log.info("fetched", extra={"file": file.name, "bytes": file.size})

    async def _append(
        self, session: aiohttp.ClientSession, file: RemoteFile, part: Path, have: int
    ) -> None:
        headers = dict(self._headers)
        if have:
            headers["Range"] = f"bytes={have}-"
        # Identity, or Range and sizes would be those of a compressed transfer.
        headers["Accept-Encoding"] = "identity"
        async with session.get(self._url(file), headers=headers) as answer:
            self._check(answer, file.name)
            resumed = answer.status == 206
            with part.open("ab" if resumed else "wb") as sink:
                done = have if resumed else 0
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    done += len(chunk)
                    if done > file.size:
                        raise _InterruptedError(f"more than the announced {file.size} bytes")
                    sink.write(chunk)
                    self._progress(file, done)

    async def _head(
        self, session: aiohttp.ClientSession, directory: Path, file: RemoteFile
    ) -> None:
        target = directory / file.name
        if target.is_file():
            return
        if file.name.endswith(".gguf"):
            head = await self._range(session, file, min(file.size, _GGUF_HEAD_BYTES))
        else:
            length = int.from_bytes((await self._range(session, file, 8))[:8], "little")
            if length > min(_HEADER_BYTES, file.size):
                # A header that cannot be right is left for the inspection to name.
                length = min(1 << 20, max(0, file.size - 8))
            head = await self._range(session, file, 8 + length)
        with target.open("wb") as sink:
            sink.write(head)
            sink.truncate(file.size)
        log.info("fetched_header", extra={"file": file.name, "bytes": len(head)})

    async def _range(self, session: aiohttp.ClientSession, file: RemoteFile, length: int) -> bytes:
        headers = {"Range": f"bytes=0-{length - 1}", "Accept-Encoding": "identity"}
        async with session.get(self._url(file), headers=headers | self._headers) as answer:
            self._check(answer, file.name)
            data = bytearray()
            async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                data += chunk
                self._progress(file, len(data))
                if len(data) >= length:
                    break
        if len(data) < min(length, file.size):
            raise _InterruptedError(f"{len(data)} of {length} bytes arrived")
        return bytes(data[:length])

    def _progress(self, file: RemoteFile, done: int) -> None:
        now = time.monotonic()
        if now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            percent = round(100 * done / file.size) if file.size else 100
            log.info(
                "fetching",
                extra={"file": file.name, "bytes": done, "of": file.size, "percent": percent},
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Download; return the exit status. A refusal is also the container's termination message."""
    parser = argparse.ArgumentParser(prog="python -m trimtab_workers.fetch", description=__doc__)
    parser.add_argument("--repository", required=True, help="organisation/name")
    parser.add_argument("--revision", required=True, help="full commit hash")
    parser.add_argument("--directory", type=Path, required=True, help="where the files go")
    parser.add_argument(
        "--headers-only", action="store_true", help="leave the weights out, keep their sizes"
    )
    arguments = parser.parse_args(argv)
    logs.configure()
    try:
        downloader = Downloader(
            endpoint=os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT,
            repository=arguments.repository,
            revision=arguments.revision,
            token=os.environ.get("HF_TOKEN", ""),
        )
        asyncio.run(downloader.fetch(arguments.directory, headers_only=arguments.headers_only))
    except FetchError as error:
        log.error("fetch_failed", extra={"reason": error.reason, "text": str(error)})  # noqa: TRY400 - the sentence says all
        _report({"v": 1, "ok": False, "reason": error.reason, "message": str(error)[:3000]})
        return 1
    return 0


def _report(document: Mapping[str, Any]) -> None:
    path = Path(os.environ.get("TRIMTAB_TERMINATION_LOG", "/dev/termination-log"))
    try:
        path.write_text(fitting(document))
    except OSError as error:
        log.warning("no_termination_log", extra={"path": str(path), "reason": str(error)})


if __name__ == "__main__":
    sys.exit(main())
