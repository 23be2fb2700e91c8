"""One request on its way through the child: body in, answer out, metered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import h11

from trimtab_workers.runner import frames
from trimtab_workers.runner.connection import NO_BODY, ClientGoneError, end_to_end, problem
from trimtab_workers.usage import to_wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.runner.connection import Connection
    from trimtab_workers.runner.meter import Meter
    from trimtab_workers.runner.process import Child

log = logging.getLogger(__name__)

EXCLUDE: Final = "trimtab-exclude"
INVOCATION: Final = "trimtab-invocation"
_LET_GO_SECONDS: Final = 30.0


class FunctionDiedError(Exception):
    """The child ended during a call."""


class Call:
    """One request on its way through the child."""

    def __init__(
        self, connection: Connection, child: Child, *, meter: Meter, request: h11.Request, streams: bool,
        over: Callable[[], None],
    ) -> None:  # fmt: skip
        self.connection = connection
        self.usage: dict[str, Any] | None = None
        self._child = child
        self._meter = meter
        self._headers = [(n.decode("ascii"), v.decode("latin-1")) for n, v in request.headers]
        self._method = request.method.decode("ascii")
        self._target = request.target.decode("latin-1")
        self._streams = streams
        self._over = over
        self._left: int | None = None
        self._held: list[tuple[int, bytes]] = []
        self._excluded = False
        self._first = child.calls == 0
        self._answering: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._replaced = False
        self._given = streams
        self.invocation = next((v for n, v in self._headers if n == INVOCATION), "")[:128]

    async def run(self) -> None:
        """Give the request to the child and its answer to the client.

        Raises:
            ClientGoneError: The client went away; the child may still be at work.
            FunctionDiedError: The child ended.
        """
        self._meter.begin(self._child.pid)
        if self._streams:
            self._child.calls += 1
        self._child.writer.write(frames.pack_json(frames.HEAD, self._head()))
        self._answering = asyncio.create_task(self._answer())
        uploading = asyncio.create_task(self._upload())
        try:
            await asyncio.wait({uploading, self._answering}, return_when=asyncio.FIRST_COMPLETED)
            if not self._answering.done():
                uploading.result()  # raises if the client went away
                await self._watch(self._answering)
        except ClientGoneError:
            self._gone.set()
            with contextlib.suppress(ConnectionError):
                self._child.writer.write(frames.pack(frames.ABORT))
            raise
        finally:
            uploading.cancel()
            if not self._gone.is_set():
                self._answering.cancel()
            await asyncio.gather(uploading, return_exceptions=True)
        self._answering.result()

    async def settled(self, *, within_seconds: float) -> bool:
        """Wait until a child whose client went away has ended its call; return whether it has."""
        if self._answering is None:
            return True
        # A function that has not all of its input has not begun, and its process lets go at once.
        patience = within_seconds if self._given else max(within_seconds, _LET_GO_SECONDS)
        # Its frames are read on: whoever stops in the middle of one is out of step for ever.
        await asyncio.wait({self._answering}, timeout=patience)
        settled = self._answering.done()
        self._answering.cancel()
        await asyncio.gather(self._answering, return_exceptions=True)
        self.finish(child_cpu_s=0.0)
        return settled

    async def _watch(self, answering: asyncio.Task[None]) -> None:
        """Wait for the answer's end, and no longer than the client does."""
        leaving = asyncio.create_task(self.connection.gone())
        failing = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({leaving, failing, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ClientGoneError("The client closed its connection.")
        finally:
            for task in (leaving, failing):
                task.cancel()
            await asyncio.gather(leaving, failing, return_exceptions=True)

    def finish(self, *, child_cpu_s: float) -> dict[str, Any]:
        """End the metering, once; return what was used."""
        if self.usage is None:
            self._child.cpu_s += child_cpu_s
            usage = self._meter.end(child_cpu_s=child_cpu_s)
            self.usage = {
                **to_wire(usage),
                "firstCall": self._first,
                "excluded": self._excluded,
                "transferMicros": round(self._meter.transfer_seconds() * 1e6),
                "floorKib": self._meter.floor_bytes() // 1024,
            }
        return self.usage

    def usage_headers(self, outcome: str, usage: dict[str, Any] | None) -> dict[str, str]:
        """Return the runner's own headers, underscores for hyphens."""
        found = {"Trimtab_Outcome": outcome}
        if usage is not None:
            found["Trimtab_Used_Cpu"] = f"{usage['cpuMicros'] / 1e6:.6f}"
            found["Trimtab_Peak_Mib"] = str(math.ceil(usage["peakKib"] / 1024))
            found["Trimtab_Usage"] = json.dumps(usage, separators=(",", ":"))
        return found

    def _head(self) -> dict[str, Any]:
        raw_path, _, query = self._target.partition("?")
        return {
            "method": self._method,
            "path": unquote(raw_path),
            "rawPath": raw_path,
            "query": query,
            "headers": self._forwarded(),
            "peer": self.connection.peer,
        }

    def _forwarded(self) -> list[tuple[str, str]]:
        """Return the headers for the function; beside chunks a length is nobody's, and often a lie."""
        chunked = any(name == "transfer-encoding" for name, _ in self._headers)
        return [
            (name, value)
            for name, value in end_to_end(self._headers)
            if not (chunked and name == "content-length")
        ]

    async def _upload(self) -> None:
        writer = self._child.writer
        async for piece in self.connection.body():
            writer.write(frames.pack(frames.DATA, piece))
            with contextlib.suppress(ConnectionError):  # it died; `_answer` says so
                await writer.drain()
        self._given = True
        if not self._streams:
            self._child.calls += 1
        self._meter.body_received(runs_already=self._streams)
        writer.write(frames.pack(frames.END))

    async def _answer(self) -> None:
        """Read the child's frames to their END, whether or not somebody still listens."""
        head: dict[str, Any] | None = None
        while True:
            try:
                kind, payload = await frames.read(self._child.reader)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                raise FunctionDiedError from error
            if kind == frames.HEAD:
                head = json.loads(payload)
                self._excluded = any(
                    n.lower() == EXCLUDE and v.lower() == "true" for n, v in head["headers"]
                )
                if head["whole"]:
                    self.finish(child_cpu_s=head["cpu"] / 1e6)
                self._left = _length(head, method=self._method)
            elif kind == frames.END:
                self.finish(child_cpu_s=_cpu_s(payload))
                self._over()
            if not self._gone.is_set():
                try:
                    await self._pass_on(kind, payload, head)
                except (ConnectionError, h11.LocalProtocolError) as error:
                    log.info("answer_cut", extra={"reason": str(error)})
                    self.connection.abort()
                    self._gone.set()
            if kind == frames.END:
                if self._gone.is_set():
                    raise ClientGoneError("The client did not take the whole answer.")
                return

    async def _pass_on(self, kind: int, payload: bytes, head: dict[str, Any] | None) -> None:
        """Send a frame to the client; what completes the answer waits until the child is free.

        Otherwise a client that has its answer and asks again at once could find the runner busy.
        """
        if kind == frames.DATA and self._left is not None:
            self._left -= len(payload)
        if kind in {frames.HEAD, frames.DATA} and self._left is not None and self._left <= 0:
            self._held.append((kind, payload))
            return
        if kind == frames.END:
            for held_kind, held_payload in self._held:
                await self._write(held_kind, held_payload, head)
        await self._write(kind, payload, head)

    async def _write(self, kind: int, payload: bytes, head: dict[str, Any] | None) -> None:
        if kind == frames.HEAD and head is not None:
            await self._begin(head)
        elif kind == frames.DATA and not self._replaced:
            await self.connection.piece(payload)
        elif kind == frames.ABORT:
            self.connection.abort()
            self._gone.set()
        elif kind == frames.END and head is not None and not self._replaced:
            await self.connection.end()

    async def _begin(self, head: dict[str, Any]) -> None:
        pairs = end_to_end((name, value) for name, value in head["headers"])
        # What a function says in our name would be believed.
        pairs = [
            (n, v) for n, v in pairs if n.lower() == EXCLUDE or not n.lower().startswith("trimtab-")
        ]
        usage = self.usage if head["whole"] else None
        if head["whole"] and self._method != "HEAD":
            pairs = [(n, v) for n, v in pairs if n.lower() != "content-length"]
            pairs.append(("content-length", str(head["length"])))
        outcome = "error" if head.get("failed") else "ok"
        if head.get("failed") and usage is not None and usage["oom"]:
            outcome = "oom"  # of a process that the function started and then missed
        own = self.usage_headers(outcome, usage)
        pairs += [(name.replace("_", "-"), value) for name, value in own.items()]
        try:
            await self.connection.begin(head["status"], headers=pairs)
        except (h11.LocalProtocolError, UnicodeEncodeError, ValueError) as error:
            if self.connection.begun:
                raise
            self._replaced = True
            log.warning("answer_is_no_http", extra={"reason": str(error)})
            message = f"The function's answer is no HTTP: {error}."
            document = problem("BadAnswer", message, remedy="Correct its status and headers.")
            await self.connection.refuse(500, document, **self.usage_headers("badanswer", usage))


def _length(head: dict[str, Any], *, method: str) -> int | None:
    """Return how many bytes complete an answer, None if only its end tells."""
    if method == "HEAD" or head["status"] in NO_BODY:
        return 0
    if head["whole"]:
        return int(head["length"])
    given = [value for name, value in head["headers"] if name.lower() == "content-length"]
    return int(given[0]) if given and given[0].isdecimal() else None


def _cpu_s(payload: bytes) -> float:
    return float(json.loads(payload)["cpu"]) / 1e6 if payload else 0.0
