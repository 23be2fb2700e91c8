"""Write a docker-archive tar: one layer, a config and a manifest. No container engine, no registry."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import platform
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One path of an image: a file's bytes, a symbolic link's target, or a folder if both are None."""

    content: bytes | None = None
    link: str | None = None
    mode: int = 0o755


def _add(archive: tarfile.TarFile, name: str, entry: Entry) -> None:
    info = tarfile.TarInfo(name)
    info.mode = entry.mode
    if entry.link is not None:
        info.type, info.linkname = tarfile.SYMTYPE, entry.link
        archive.addfile(info)
    elif entry.content is None:
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    else:
        info.size = len(entry.content)
        archive.addfile(info, io.BytesIO(entry.content))


def _layer(entries: Mapping[str, Entry]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in sorted(entries):
            _add(archive, name, entries[name])
    return buffer.getvalue()


def write(
    target: Path, *, tags: Sequence[str], entries: Mapping[str, Entry], config: Mapping[str, Any]
) -> None:
    """Write an image with one layer; equal arguments give equal bytes.

    Args:
        target: The tar to write.
        tags: References, as `name:tag`.
        entries: Path without a leading slash → content.
        config: The image's `config` (Env, Entrypoint, User, ...).
    """
    layer = _layer(entries)
    described = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    text = json.dumps(described).encode()
    name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": list(tags), "Layers": ["layer.tar"]}]
    with tarfile.open(target, mode="w") as archive:
        for path, content in (
            ("layer.tar", layer),
            (name, text),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            _add(archive, path, Entry(content=content, mode=0o644))
