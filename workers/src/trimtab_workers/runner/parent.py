"""The runner's parent: listen on $PORT, give one request at a time to the child, tell what it used.

The port opens once the function is loaded, so an open port means ready. A child that dies is replaced;
its request is answered with the cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import h11

from trimtab_workers.runner import frames
from trimtab_workers.runner.call import Call, FunctionDiedError
from trimtab_workers.runner.connection import ClientGoneError, Connection, problem
from trimtab_workers.runner.loading import RefusedError
from trimtab_workers.runner.process import Child, Exit, Reaper
from trimtab_workers.runner.signatures import ASGI
from trimtab_workers.runner.spawn import start

if TYPE_CHECKING:
    from trimtab_workers.runner.meter import Meter
    from trimtab_workers.runner.settings import RunnerSettings
    from trimtab_workers.runner.spawn import Started

log = logging.getLogger(__name__)

CONTROL: Final = "/-/trimtab/"
_KEPT: Final = 64
_MOST_IDLE_DEATHS: Final = 3
_IDLE_DEATH_SECONDS: Final = 1.0


class Runner:
    """One function, served."""

    def __init__(self, settings: RunnerSettings, *, meter: Meter) -> None:
        self._settings = settings
        self._meter = meter
        self._reaper = Reaper()
        self._child: Child | None = None
        self._loaded: asyncio.Event = asyncio.Event()
        self._slot: object | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._signature = ""
        self._ready_at = 0.0
        self._idle_deaths = 0
        self._usages: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._reviving: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def port(self) -> int:
        """The port that is open."""
        if self._server is None:
            raise RuntimeError("The runner's port is not open yet. This is a bug; report it.")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def open(self, started: Started) -> None:
        """Wait until the first child has loaded the function, then open the port.

        Raises:
            RefusedError: The function cannot be loaded.
            OSError: The port cannot be bound.
        """
        self._reaper.install()
        await self._adopt(started)
        self._server = await asyncio.start_server(
            self._accepted, self._settings.host, self._settings.port, backlog=128
        )
        log.info(
            "serving",
            extra={
                "port": self.port,
                "signature": self._signature,
                "source": self._settings.module,
            },
        )

    async def close(self) -> None:
        """Take no more requests, wait for the one that runs, end the child."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.shutdown_seconds):
                await self._idle.wait()
        if self._reviving is not None:
            self._reviving.cancel()
            await asyncio.gather(self._reviving, return_exceptions=True)
        if self._child is not None:
            await self._child.stop()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    # The child

    async def _adopt(self, started: Started) -> None:
        child = await Child.adopt(started)
        self._child = child
        self._reaper.expect(child.pid, lambda outcome: self._ended(child, outcome))
        try:
            async with asyncio.timeout(self._settings.start_seconds):
                kind, payload = await frames.read(child.reader)
        except TimeoutError as error:
            await child.kill()
            raise RefusedError(
                "ModuleNotLoaded",
                f"Module {self._settings.module} was not imported within "
                f"{self._settings.start_seconds:.0f} seconds. Make its import shorter, or raise "
                "TRIMTAB_START_SECONDS.",
            ) from error
        except asyncio.IncompleteReadError as error:
            outcome = await asyncio.shield(child.exited)
            raise RefusedError(
                "ModuleNotLoaded",
                f"The process {outcome} while it imported module {self._settings.module}. "
                + ("Give it more memory." if outcome.killed_by else "Its log says more."),
            ) from error
        try:
            document = json.loads(payload)
            if kind != frames.READY:
                raise RefusedError(document["reason"], document["message"])
            self._signature = document["signature"]
            child.cpu_s = document["cpu"] / 1e6
        except (ValueError, LookupError, TypeError) as error:
            raise RefusedError(
                "ModuleNotLoaded",
                f"Module {self._settings.module} wrote to the runner's own channel, file descriptor "
                "argv[1], while it was imported. Leave that descriptor alone.",
            ) from error
        self._ready_at = time.monotonic()
        self._loaded.set()

    def _ended(self, child: Child, outcome: Exit) -> None:
        """Hear that a child ended; replace it unless this is the end of all."""
        loaded = self._loaded.is_set()
        self._loaded.clear()
        child.ended(outcome)
        if self._draining or not loaded or child is not self._child:
            return
        log.warning("function_exited", extra={"how": str(outcome), "busy": self._busy})
        quick = time.monotonic() - self._ready_at < _IDLE_DEATH_SECONDS
        self._idle_deaths = self._idle_deaths + 1 if quick and not self._busy else 0
        self._reviving = asyncio.create_task(self._revive(outcome), name="revive")

    async def _revive(self, outcome: Exit) -> None:
        try:
            if self._idle_deaths >= _MOST_IDLE_DEATHS:
                raise RefusedError(  # noqa: TRY301 - ends the runner as a failed import does
                    "FunctionKeepsExiting",
                    f"The function's process {outcome} {self._idle_deaths} times within a second of its "
                    "start, without a request. Correct what it starts in the background.",
                )
            if self._child is not None:
                self._child.writer.close()
            memory = self._meter.limits.mem_mib or 0
            await self._adopt(self._started_again(memory_mib=memory))
        except Exception as error:  # noqa: BLE001 - without a process every request would wait for ever
            if not self.failed.done():
                self.failed.set_exception(error)

    def _started_again(self, *, memory_mib: int) -> Started:
        try:
            return start(self._settings, memory_mib=memory_mib)
        except OSError as error:
            raise RefusedError(
                "ProcessNotStarted",
                f"The function's process ended and cannot be started again: {error}. "
                "Give the container more memory or processes.",
            ) from error

    # Connections

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(
            self._connection(Connection(reader, writer, closing=lambda: self._draining))
        )
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _connection(self, connection: Connection) -> None:
        try:
            while request := await connection.next_request():
                await self._request(connection, request)
                if not connection.reusable or self._draining:
                    break
        except h11.RemoteProtocolError as error:
            await self._malformed(connection, error)
        except ConnectionError:
            pass  # the client's end of a connection is no event of ours
        except Exception:
            log.exception("request_failed", extra={"remedy": "This is a bug; please report it."})
            connection.abort()
        finally:
            await connection.close()

    async def _malformed(self, connection: Connection, error: h11.RemoteProtocolError) -> None:
        if connection.begun:
            return
        with contextlib.suppress(h11.LocalProtocolError, ConnectionError):
            document = problem(
                "BadRequest", f"The request is no HTTP: {error}.", remedy="Correct it."
            )
            await connection.refuse(error.error_status_hint, document, connection="close")

    async def _request(self, connection: Connection, request: h11.Request) -> None:
        target = request.target.decode("latin-1")
        if target.startswith(CONTROL):
            await self._control(connection, target.removeprefix(CONTROL))
        elif self._draining:
            await _refuse(connection, 503, "ShuttingDown", "The runner is shutting down.")
        elif self._busy:
            await _refuse(
                connection, 429, "Busy", "The runner serves one request at a time and has one.",
                remedy="Send it to another pod, or again later.",
            )  # fmt: skip
        else:
            slot = self._slot = object()
            self._idle.clear()
            try:
                await self._call(connection, request, slot=slot)
            finally:
                self._free(slot)

    def _free(self, slot: object) -> None:
        """Let the next request in; another's slot is left alone."""
        if self._slot is slot:
            self._slot = None
            self._idle.set()

    @property
    def _busy(self) -> bool:
        return self._slot is not None

    async def _control(self, connection: Connection, what: str) -> None:
        """Answer `/-/trimtab/state` and `/-/trimtab/usage/<invocation>`."""
        if what == "state":
            state = {
                "v": 1, "signature": self._signature, "ready": self._loaded.is_set(),
                "busy": self._busy, "calls": self._child.calls if self._child else 0,
            }  # fmt: skip
            await connection.refuse(200, state)
            return
        usage = self._usages.get(unquote(what.removeprefix("usage/")))
        if usage is None:
            await _refuse(
                connection, 404, "NotFound", f"There is nothing at {CONTROL}{what[:200]}."
            )
        else:
            await connection.refuse(200, usage)

    # One call

    async def _call(self, connection: Connection, request: h11.Request, *, slot: object) -> None:
        await self._loaded.wait()  # it may be being replaced
        child = self._child
        if child is None:
            raise RuntimeError(
                "The function is loaded and has no process. This is a bug; report it."
            )
        call = Call(
            connection,
            child,
            meter=self._meter,
            request=request,
            streams=self._signature == ASGI,
            over=lambda: self._over(call, slot),
        )
        try:
            await call.run()
        except ClientGoneError:
            if not await call.settled(within_seconds=self._settings.abandoned_seconds):
                log.warning("call_abandoned", extra={"pid": child.pid})
                await child.kill()
            connection.abort()
        except FunctionDiedError:
            await self._died(call, child)
        except Exception:
            await child.kill()  # it may be out of step with what is said to it
            raise
        finally:
            self._over(call, slot)

    def _over(self, call: Call, slot: object) -> None:
        """Keep what the call used and let the next one in, both before its client has the last byte."""
        self._keep(call)
        self._free(slot)

    async def _died(self, call: Call, child: Child) -> None:
        """Tell the client why there is no answer."""
        outcome = await asyncio.shield(child.exited)
        usage = call.finish(child_cpu_s=max(0.0, outcome.cpu_s - child.cpu_s))
        killed = bool(usage["oom"])
        log.warning("call_died", extra={"how": str(outcome), "oom": killed})
        if call.connection.begun:
            call.connection.abort()
            return
        limit = usage["allocMemoryMib"]
        reason = "OutOfMemory" if killed else "FunctionExited"
        message = f"The function's process {outcome}" + (
            f", because its memory of {limit} MiB was used up." if killed else "."
        )
        remedy = "Give it more memory." if killed else "The function's log says more."
        headers = call.usage_headers("oom" if killed else "exit", usage)
        await call.connection.refuse(502, problem(reason, message, remedy=remedy), **headers)

    def _keep(self, call: Call) -> None:
        """Keep what a call used: a streamed answer's head left before it was known."""
        if call.invocation and call.usage is not None:
            self._usages[call.invocation] = call.usage
            while len(self._usages) > _KEPT:
                self._usages.popitem(last=False)


async def _refuse(
    connection: Connection, status: int, reason: str, message: str, *, remedy: str = ""
) -> None:
    document = problem(reason, message, remedy=remedy)
    await connection.refuse(status, document, Trimtab_Outcome=reason.lower())
