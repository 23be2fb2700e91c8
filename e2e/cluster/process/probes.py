"""Startup, readiness and liveness probes of one container, at its loopback address."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    Execute = Callable[[Sequence[str], float], Awaitable[tuple[int, str]]]
    """(command, time-out in seconds) to (exit code, output): runs beside the container."""


class Check(Protocol):
    """One probe's question; None for success, else what went wrong."""

    async def __call__(self) -> str | None: ...


def port_number(port: int | str, *, container: Mapping[str, Any]) -> int:
    """Return a port given by number or by the name of a container port.

    Raises:
        ValueError: The container has no port of that name.
    """
    if isinstance(port, int) or str(port).isdigit():
        return int(port)
    for entry in container.get("ports") or ():
        if entry.get("name") == port:
            return int(entry["containerPort"])
    raise ValueError(f"container {container['name']!r} has no port named {port!r}")


def checker(
    probe: Mapping[str, Any], *, container: Mapping[str, Any], address: str, execute: Execute
) -> Check:
    """Return the question that a probe asks."""
    seconds = float(probe.get("timeoutSeconds", 1))

    async def by_http() -> str | None:
        action = probe["httpGet"]
        port = port_number(action["port"], container=container)
        scheme = action.get("scheme", "HTTP").lower()
        url = f"{scheme}://{address}:{port}/{action.get('path', '/').lstrip('/')}"
        headers = {h["name"]: h["value"] for h in action.get("httpHeaders") or ()}
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=seconds),
                connector=aiohttp.TCPConnector(ssl=False, force_close=True),
            ) as session,
            session.get(url, headers=headers, allow_redirects=False) as answer,
        ):
            good = 200 <= answer.status < 400
            return None if good else f"HTTP probe failed with statuscode: {answer.status}"

    async def by_tcp() -> str | None:
        port = port_number(probe["tcpSocket"]["port"], container=container)
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(address, port)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return None

    async def by_command() -> str | None:
        code, output = await execute(probe["exec"]["command"], seconds)
        return None if code == 0 else f"command ended with {code}: {output[-300:]}"

    async def unknown() -> str | None:
        return f"probe {sorted(probe)} is not known to the stand-in node"

    known: dict[str, Check] = {"httpGet": by_http, "tcpSocket": by_tcp, "exec": by_command}
    ask = next((known[kind] for kind in known if kind in probe), unknown)

    async def check() -> str | None:
        try:
            return await ask()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    return check


class Verdict:
    """Counts answers until they reach a threshold: the hysteresis of a probe."""

    def __init__(self, probe: Mapping[str, Any], *, good: bool | None) -> None:
        self.good = good
        self._success = int(probe.get("successThreshold", 1))
        self._failure = int(probe.get("failureThreshold", 3))
        self._streak = 0
        self._last: bool | None = None

    def add(self, *, success: bool) -> bool:
        """Take one answer and return whether the verdict changed."""
        self._streak = self._streak + 1 if self._last is success else 1
        self._last = success
        enough = self._streak >= (self._success if success else self._failure)
        if not enough or self.good is success:
            return False
        self.good = success
        return True


async def watch(
    probe: Mapping[str, Any], *, check: Check, verdict: Verdict,
    changed: Callable[[bool, str], Awaitable[bool]],
) -> None:  # fmt: skip
    """Ask until `changed(good, why)` returns False; it is called when the verdict changes."""
    await asyncio.sleep(float(probe.get("initialDelaySeconds", 0)))
    while True:
        problem = await check()
        if verdict.add(success=problem is None) and not await changed(
            problem is None, problem or ""
        ):
            return
        await asyncio.sleep(float(probe.get("periodSeconds", 10)))
