"""Frames between rank 0 and one follower, over a pair of sockets that only these two hold.

A thread reads, so that the end of the other process is known at once, whatever this one computes.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from typing import TYPE_CHECKING

from trimtab_workers.engine.parallel.wire import HEAD, Frame, WireError, head

if TYPE_CHECKING:
    from collections.abc import Callable


class PeerGoneError(RuntimeError):
    """The other process has ended or does not answer; the group ends too."""


class Channel:
    """One side of the pair.

    Args:
        sock: Connected; taken over.
        on_end: Called once, on the reading thread, when the other side has gone.
    """

    def __init__(self, sock: socket.socket, *, on_end: Callable[[], None]) -> None:
        self._sock = sock
        self._frames: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._on_end = on_end
        self._closed = False
        threading.Thread(target=self._read, name="ranks", daemon=True).start()

    def send(self, frame: Frame) -> None:
        """Send a frame.

        Raises:
            PeerGoneError: The other side has gone.
        """
        try:
            self._sock.sendall(frame.encode())
        except OSError as error:
            raise PeerGoneError(f"a rank of the group cannot be reached: {error}") from error

    def receive(self, timeout_seconds: float | None = None) -> Frame:
        """Return the next frame.

        Raises:
            PeerGoneError: The other side has gone, or sent nothing for this long.
        """
        try:
            frame = self._frames.get(timeout=timeout_seconds)
        except queue.Empty:
            raise PeerGoneError(
                f"a rank of the group sent nothing for {timeout_seconds:.0f} s"
            ) from None
        if frame is None:
            self._frames.put(None)
            raise PeerGoneError("a rank of the group has ended")
        return frame

    def take(self) -> Frame | None:
        """Return a frame that has come already, or None."""
        try:
            frame = self._frames.get_nowait()
        except queue.Empty:
            return None
        if frame is None:
            self._frames.put(None)
        return frame

    def close(self) -> None:
        """Close this side; `on_end` is not called."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _read(self) -> None:
        try:
            with contextlib.suppress(OSError, WireError):
                while (frame := self._next()) is not None:
                    self._frames.put(frame)
        finally:
            self._frames.put(None)
            if not self._closed:
                self._on_end()

    def _next(self) -> Frame | None:
        top = self._exactly(HEAD.size)
        if top is None:
            return None
        length, kind, number = head(top)
        body = self._exactly(length)
        return None if body is None else Frame(kind, number, body)

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            piece = self._sock.recv(count - len(parts))
            if not piece:
                return None
            parts += piece
        return bytes(parts)
