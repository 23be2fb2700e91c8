"""The `storage` that SeBS puts beside a benchmark, over a folder instead of an object store.

Buckets are folders below TRIMTAB_SEBS_STORAGE (default: `trimtab-sebs` in the folder for temporary
files). Uploads get a name of their own, as in SeBS, so that repeated calls do not meet.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any, ClassVar


class storage:  # noqa: N801 - SeBS's own name
    """One folder per bucket."""

    instance: ClassVar[storage | None] = None

    def __init__(self) -> None:
        default = Path(tempfile.gettempdir()) / "trimtab-sebs"
        self._root = Path(os.environ.get("TRIMTAB_SEBS_STORAGE") or default)

    @staticmethod
    def get_instance() -> storage:
        """Return the one storage of the process."""
        if storage.instance is None:
            storage.instance = storage()
        return storage.instance

    @staticmethod
    def unique_name(name: str) -> str:
        """Return the name with a random part before its suffix."""
        path = Path(name)
        return str(path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}"))

    def upload(self, bucket: str, file: str, filepath: str) -> str:
        """Store a file; return its key."""
        key = self.unique_name(file)
        shutil.copyfile(filepath, self._new(bucket, key))
        return key

    def download(self, bucket: str, file: str, filepath: str) -> None:
        """Copy an object into a file."""
        shutil.copyfile(self._path(bucket, file), filepath)

    def download_directory(self, bucket: str, prefix: str, path: str) -> None:
        """Copy all objects whose key begins with `prefix` into a folder."""
        base = self._path(bucket, "")
        for found in sorted(base.rglob("*")):
            key = str(found.relative_to(base))
            if found.is_file() and key.startswith(prefix):
                target = Path(path) / key
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, target)

    def upload_stream(self, bucket: str, file: str, bytes_data: Any) -> str:
        """Store a stream or bytes; return the key."""
        key = self.unique_name(file)
        whole = (
            bytes_data
            if isinstance(bytes_data, bytes)
            else io.BytesIO(bytes_data.read()).getvalue()
        )
        self._new(bucket, key).write_bytes(whole)
        return key

    def download_stream(self, bucket: str, file: str) -> memoryview:
        """Return an object's bytes."""
        return memoryview(self._path(bucket, file).read_bytes())

    def _new(self, bucket: str, key: str) -> Path:
        path = self._path(bucket, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _path(self, bucket: str, key: str) -> Path:
        path = (self._root / bucket / key).resolve()
        if not path.is_relative_to(self._root.resolve()):
            raise ValueError(f"Object {key!r} of bucket {bucket!r} is outside {self._root}.")
        return path
