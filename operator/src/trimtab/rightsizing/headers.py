"""Sizes from the first bytes of images and sound (rightsizer.md §6.1).

Own readers of a few dozen lines: these bytes are hostile, and a decoder is a large thing to trust with
them. Nothing is decoded, no reader raises, none takes longer than its prefix is long.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
_SCAN: Final = 0xDA
_END: Final = 0xD9


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What an image says about itself; it may lie.

    Attributes:
        format: jpeg, png, gif or webp.
        width: Pixels, at least 1.
        height: Pixels, at least 1.
    """

    format: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wav:
    """What a RIFF WAVE says about itself; it may lie.

    Attributes:
        channels: At least 1.
        rate: Frames per second, at least 1.
        seconds: Length by its data chunk's size, which streams write as 0 or as the most there is.
    """

    channels: int
    rate: int
    seconds: float


def image(prefix: bytes) -> Image | None:
    """Return format and size of a JPEG, PNG, GIF or WebP; None if the bytes do not say."""
    for name, begins, read in _IMAGES:
        if prefix.startswith(begins):
            try:
                size = read(prefix)
            except (struct.error, IndexError):
                return None
            if size is None or min(size) < 1:
                return None
            return Image(format=name, width=size[0], height=size[1])
    return None


def _png(data: bytes) -> tuple[int, int] | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> tuple[int, int] | None:
    if data[:6] not in (b"GIF87a", b"GIF89a"):
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _webp(data: bytes) -> tuple[int, int] | None:
    if data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(_take(data, 24, 3), "little"),
            1 + int.from_bytes(_take(data, 27, 3), "little"),
        )
    if kind == b"VP8L":
        if data[20] != 0x2F:
            return None
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _take(data: bytes, at: int, count: int) -> bytes:
    found = data[at : at + count]
    if len(found) < count:
        raise IndexError
    return found


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """Walk the segments to the first frame header."""
    at = 2
    while True:
        if data[at] != 0xFF:
            return None
        while data[at] == 0xFF:  # any number of fill bytes may stand before a marker
            at += 1
        marker = data[at]
        at += 1
        if marker in _STANDALONE:
            continue
        if marker in {_SCAN, _END, 0x00}:
            return None
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        (length,) = struct.unpack_from(">H", data, at)
        if length < 2:
            return None
        at += length


_IMAGES: Final[tuple[tuple[str, bytes, Callable[[bytes], tuple[int, int] | None]], ...]] = (
    ("jpeg", b"\xff\xd8", _jpeg),
    ("png", _PNG, _png),
    ("gif", b"GIF8", _gif),
    ("webp", b"RIFF", _webp),
)


def wav(prefix: bytes) -> Wav | None:
    """Return channels, rate and length of a RIFF WAVE; None if the bytes do not say."""
    if prefix[:4] != b"RIFF" or prefix[8:12] != b"WAVE":
        return None
    at, found = 12, None
    try:
        while True:
            kind = prefix[at : at + 4]
            (length,) = struct.unpack_from("<I", prefix, at + 4)
            if kind == b"fmt ":
                channels, rate, _, frame = struct.unpack_from("<HIIH", prefix, at + 10)
                found = (channels, rate, frame)
            elif kind == b"data" and found is not None:
                channels, rate, frame = found
                if min(found) < 1:
                    return None
                return Wav(channels=channels, rate=rate, seconds=length / frame / rate)
            at += 8 + length + length % 2
    except struct.error:
        return None
