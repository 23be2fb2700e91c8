"""A bounded reader of GGUF headers (v2 and v3, little endian), standard library only.

Hostile files must not cost time or memory: every count and length is checked against the file's
size, and the whole header against 64 MiB, before anything is read.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab_workers.engine.errors import ModelCorruptError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"GGUF"
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MAX_TENSORS = 1 << 16
_MAX_KEYS = 1 << 14
_MAX_ARRAY = 1 << 21
_MAX_DIMENSIONS = 4
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor's place: `shape` in numpy order (rows first), bytes from the file's start."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata and tensor directory of a file."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    header_bytes: int
    file_bytes: int


class _Cursor:
    def __init__(self, data: mmap.mmap, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ModelCorruptError(
                f"{self.where}: the file ends after {len(self.data)} bytes, inside its header "
                f"({count} more bytes were announced at {self.at}). Fetch the file again."
            )
        if count > _MAX_HEADER_BYTES - self.at:
            raise ModelCorruptError(
                f"{self.where}: the header is longer than {_MAX_HEADER_BYTES} bytes. "
                "Fetch the file again."
            )
        chunk = self.data[self.at : self.at + count]
        self.at += count
        return chunk

    def scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self) -> str:
        return self.take(self.scalar("<Q")).decode("utf-8", errors="replace")

    def bounded(self, count: int, limit: int, what: str) -> int:
        if count > limit:
            raise ModelCorruptError(
                f"{self.where}: the header announces {count} {what}, more than {limit}. "
                "Fetch the file again."
            )
        return count


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        ModelCorruptError: No GGUF, or cut or inconsistent within the header.
        UnsupportedModelError: A version or value type that this reader does not know.
    """
    with path.open("rb") as stream:
        try:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise ModelCorruptError(f"{path}: the file is empty. Fetch it again.") from error
    with data:
        return _parse(_Cursor(data, str(path)))


def _parse(cursor: _Cursor) -> GgufHeader:
    if cursor.take(4) != MAGIC:
        raise ModelCorruptError(
            f"{cursor.where}: the file does not begin with 'GGUF', so it is no GGUF file. "
            "Give a GGUF file or a directory with safetensors."
        )
    version = cursor.scalar("<I")
    if version not in {2, 3}:
        raise UnsupportedModelError(
            f"{cursor.where}: GGUF version is {version}, and 2 and 3 are read. Convert the file."
        )
    tensor_count = cursor.bounded(cursor.scalar("<Q"), _MAX_TENSORS, "tensors")
    key_count = cursor.bounded(cursor.scalar("<Q"), _MAX_KEYS, "keys")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.text()
        metadata[key] = _value(cursor, cursor.scalar("<I"), nested=False)
    entries = [_tensor(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise ModelCorruptError(
            f"{cursor.where}: general.alignment is {alignment!r}. Fetch the file again."
        )
    base = -(-cursor.at // alignment) * alignment
    return GgufHeader(
        metadata=metadata,
        tensors={
            entry.name: GgufTensor(entry.name, entry.shape, entry.kind, base + entry.offset)
            for entry in entries
        },
        header_bytes=cursor.at,
        file_bytes=len(cursor.data),
    )


def _value(cursor: _Cursor, kind: int, *, nested: bool) -> Any:
    if kind in _SCALARS:
        return cursor.scalar(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind == _ARRAY and not nested:
        inner = cursor.scalar("<I")
        count = cursor.bounded(cursor.scalar("<Q"), _MAX_ARRAY, "array items")
        if inner in _SCALARS:
            layout = f"<{count}{_SCALARS[inner][1]}"
            return list(struct.unpack(layout, cursor.take(struct.calcsize(layout))))
        return [_value(cursor, inner, nested=True) for _ in range(count)]
    raise UnsupportedModelError(
        f"{cursor.where}: metadata value type {kind} at byte {cursor.at} is not known. "
        "Convert the file with a current llama.cpp."
    )


def _tensor(cursor: _Cursor) -> GgufTensor:
    name = cursor.text()
    dimensions = cursor.bounded(cursor.scalar("<I"), _MAX_DIMENSIONS, "dimensions of a tensor")
    sizes = [cursor.scalar("<Q") for _ in range(dimensions)]
    kind = cursor.scalar("<I")
    return GgufTensor(name, tuple(reversed(sizes)), kind, cursor.scalar("<Q"))
