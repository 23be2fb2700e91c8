"""What parent and child say to each other over a socket pair: kind, length, payload.

One exchange is HEAD, DATA…, END (or ABORT) from the parent, then HEAD, DATA…, END from the child. The
child's END comes exactly once per HEAD, whatever happened, so both sides stay in step.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    import socket

HEAD: Final = 1
DATA: Final = 2
END: Final = 3
ABORT: Final = 4
READY: Final = 5
REFUSED: Final = 6

PIECE: Final = 256 * 1024
_PREFIX: Final = struct.Struct("!BI")


def pack(kind: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return _PREFIX.pack(kind, len(payload)) + payload


def pack_json(kind: int, document: dict[str, Any]) -> bytes:
    """Return one frame with a JSON object in it."""
    return pack(kind, json.dumps(document, separators=(",", ":")).encode())


async def read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read one frame.

    Raises:
        asyncio.IncompleteReadError: The other side ended.
    """
    kind, length = _PREFIX.unpack(await reader.readexactly(_PREFIX.size))
    return kind, await reader.readexactly(length)


class BlockingChannel:
    """The child's side, without an event loop: most functions need none."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def read(self) -> tuple[int, bytearray]:
        """Read one frame.

        Raises:
            EOFError: The parent ended.
        """
        kind, length = _PREFIX.unpack(self._exactly(_PREFIX.size))
        return kind, self._exactly(length)

    def write(self, frame: bytes) -> None:
        """Write a frame."""
        self.sock.sendall(frame)

    def write_data(self, body: bytes) -> None:
        """Write a body as frames of at most 256 KiB."""
        whole = memoryview(body)
        for start in range(0, len(whole), PIECE):
            piece = whole[start : start + PIECE]
            self.sock.sendall(_PREFIX.pack(DATA, len(piece)))
            self.sock.sendall(piece)

    def _exactly(self, length: int) -> bytearray:
        found = bytearray(length)
        view = memoryview(found)
        while view:
            count = self.sock.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]
        return found
