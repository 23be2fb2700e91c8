"""The runner's life: load, serve until a signal or a failure, drain, say why it ended."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers import termination
from trimtab_workers.runner.loading import RefusedError
from trimtab_workers.runner.meter import Meter
from trimtab_workers.runner.parent import Runner
from trimtab_workers.web import logs

if TYPE_CHECKING:
    from pathlib import Path

    from trimtab_workers.node_agent.cgroup import Group, Reader
    from trimtab_workers.runner.settings import RunnerSettings
    from trimtab_workers.runner.spawn import Started

log = logging.getLogger("trimtab_workers.runner")

REFUSED: Final = 2


def run(settings: RunnerSettings, *, own: tuple[Reader, Group] | None, started: Started) -> int:
    """Serve until told to stop; return the exit status, 2 if the function cannot be served."""
    try:
        logs.configure()
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201 - there is no log without a level
        return REFUSED
    if own is None:
        log.info(
            "no_group_of_its_own", extra={"effect": "CPU is what the process says; no throttling."}
        )
    try:
        asyncio.run(_run(settings, meter=Meter(own), started=started))
    except RefusedError as error:
        log.error("function_refused", extra={"kind": error.reason, "reason": str(error)})  # noqa: TRY400 - the sentence says all
        _tell(settings.termination_log, {"reason": error.reason, "message": str(error)})
        return REFUSED
    except OSError as error:
        message = f"Port {settings.port} of {settings.host} cannot be opened: {error}."
        log.error("cannot_listen", extra={"reason": message})  # noqa: TRY400 - the sentence says all
        _tell(settings.termination_log, {"reason": "CannotListen", "message": message})
        return REFUSED
    return 0


async def _run(settings: RunnerSettings, *, meter: Meter, started: Started) -> None:
    runner = Runner(settings, meter=meter)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    opening = asyncio.create_task(runner.open(started))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            either: set[asyncio.Future[Any]] = {runner.failed, stopping}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if runner.failed.done():
            runner.failed.result()
    finally:
        for task in (opening, stopping):
            task.cancel()
        await asyncio.gather(opening, stopping, return_exceptions=True)
        await runner.close()


def _tell(path: Path, document: dict[str, Any]) -> None:
    """Write the container's termination message, where there is a place for it."""
    try:
        path.write_text(termination.fitting({"v": 1, "ok": False, **document}), encoding="utf-8")
    except OSError:
        log.debug("no_termination_log", extra={"path": str(path)})
