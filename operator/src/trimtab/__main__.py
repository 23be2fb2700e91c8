"""`python -m trimtab`: the operator's process. Crash-only: what cannot go on ends, loudly."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from trimtab import __version__
from trimtab.settings import Settings

if TYPE_CHECKING:
    from trimtab.kube.leader import Elector
    from trimtab.reconcile.operator import Operator
    from trimtab.telemetry.health import Verdict

DRAIN_SECONDS: Final = 10.0
KOPF_STOP_SECONDS: Final = 8.0
_LAG_LIMIT_SECONDS: Final = 5.0


class _Process:
    """What probes look at, whichever part of its life the process is in."""

    def __init__(self, elector: Elector) -> None:
        from trimtab.telemetry import metrics  # noqa: PLC0415 - not in the planner's process
        from trimtab.telemetry.lag import LoopLag  # noqa: PLC0415

        self.elector = elector
        self.operator: Operator | None = None
        self.lag = LoopLag(clock=time.monotonic, report=metrics.LOOP_LAG.set)

    def livez(self) -> Verdict:
        """The loop turns, the caches agree with the server, the Lease is renewed."""
        from trimtab.telemetry.health import Verdict  # noqa: PLC0415

        leads = self.elector.leads()
        operator = self.operator
        passed = operator is not None and operator.barrier.passed
        return Verdict(
            checks={
                "loopLag": self.lag.worst() < _LAG_LIMIT_SECONDS,
                "lease": not leads or self.elector.may_write(),
                "audit": operator is None or not passed or operator.auditor.healthy(),
            }
        )

    def readyz(self) -> Verdict:
        """A leader past the barrier, or a standby that can read the Lease."""
        from trimtab.telemetry.health import Verdict  # noqa: PLC0415

        if self.operator is not None:
            return Verdict(checks={"barrier": self.operator.barrier.passed})
        return Verdict(checks={"lease": self.elector.can_read()})

    def loops(self) -> dict[str, object]:
        """Return heart-beats, and what the barrier still waits for."""
        if self.operator is None:
            return {"leader": False}
        return {
            "leader": True,
            "barrier": {
                "passed": self.operator.barrier.passed,
                "missing": self.operator.barrier.missing,
            },
            **self.operator.beats.document(),
        }

    def before_scrape(self) -> None:
        """Refresh gauges."""
        from trimtab.telemetry import metrics  # noqa: PLC0415

        metrics.LEADER.set(int(self.elector.leads()))
        if self.operator is not None:
            self.operator.before_scrape()


async def serve(settings: Settings) -> int:
    """Stand by, lead, and stop; return the exit status."""
    import structlog  # noqa: PLC0415

    from trimtab.kube.client import KubeClient  # noqa: PLC0415
    from trimtab.kube.leader import Elector, LeaseTimes  # noqa: PLC0415
    from trimtab.telemetry.health import HealthServer  # noqa: PLC0415

    log = structlog.get_logger("trimtab")
    stop = asyncio.Event()
    _catch_signals(stop)
    async with await KubeClient.connect(manager="trimtab-operator") as client:
        elector = Elector(
            client,
            namespace=settings.system_namespace,
            name=settings.lease_name,
            identity=f"{settings.pod_name}_{settings.pod_uid or uuid.uuid4()}",
            times=LeaseTimes(
                lease_seconds=settings.lease_seconds,
                renew_deadline_seconds=settings.renew_deadline_seconds,
                retry_seconds=settings.retry_seconds,
            ),
            clock=time.monotonic,
            utcnow=_utcnow,
        )
        process = _Process(elector)
        health = HealthServer(
            address=settings.bind_address,
            health_port=settings.health_port,
            metrics_port=settings.metrics_port,
            livez=process.livez,
            readyz=process.readyz,
            loops=process.loops,
            before_scrape=process.before_scrape,
        )
        await health.start()
        lag = asyncio.create_task(process.lag.run(), name="lag")
        try:
            acquired = asyncio.create_task(elector.acquire(), name="acquire")
            stopping = asyncio.create_task(stop.wait(), name="stop")
            await asyncio.wait({acquired, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not acquired.done():
                acquired.cancel()
                log.info("stopped", role="standby")
                return 0
            acquired.result()
            return await _lead(settings, client=client, process=process, stop=stop)
        finally:
            lag.cancel()
            await elector.release()
            await health.stop()


async def _lead(
    settings: Settings, *, client: object, process: _Process, stop: asyncio.Event
) -> int:
    """Run everything as the leader until told to stop, or until one part ends."""
    import kopf  # noqa: PLC0415
    import structlog  # noqa: PLC0415

    from trimtab.handlers.watching import register  # noqa: PLC0415
    from trimtab.kube.client import KubeClient  # noqa: PLC0415
    from trimtab.kube.writer import BURST, WRITES_PER_SECOND, TokenBucket, Writer  # noqa: PLC0415
    from trimtab.observe.workers import AdminClient  # noqa: PLC0415
    from trimtab.reconcile.operator import Operator  # noqa: PLC0415
    from trimtab.telemetry.metrics import WriteMetrics  # noqa: PLC0415

    log = structlog.get_logger("trimtab")
    if not isinstance(client, KubeClient):
        raise TypeError("_lead needs a KubeClient; this is a bug.")
    writer = Writer(
        client,
        bucket=TokenBucket(rate_per_second=WRITES_PER_SECOND, burst=BURST, clock=time.monotonic),
        may_write=process.elector.may_write,
        observer=WriteMetrics(),
    )
    async with AdminClient() as admin:
        operator = Operator(
            settings=settings,
            client=client,
            writer=writer,
            admin=admin,
            clock=time.monotonic,
            utcnow=_utcnow,
        )
        process.operator = operator
        stop_kopf, kopf_ready = asyncio.Event(), asyncio.Event()
        parts = {
            asyncio.create_task(process.elector.keep(), name="lease"),
            asyncio.create_task(operator.run(), name="jobs"),
            asyncio.create_task(_signals_after(kopf_ready, stop), name="signals"),
        }
        stopping = asyncio.create_task(stop.wait(), name="stop")
        # Last, for kopf cancels every task that is younger than itself when it ends.
        watching = asyncio.create_task(
            kopf.operator(
                registry=register(operator),
                clusterwide=True,
                standalone=True,
                stop_flag=stop_kopf,
                ready_flag=kopf_ready,
            ),
            name="kopf",
        )
        await asyncio.wait({*parts, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
        status = 0
        if not stop.is_set():
            status = 1
            for part in (*parts, watching):
                if part.done():
                    reason = "cancelled" if part.cancelled() else repr(_root(part.exception()))
                    log.error("part_ended", part=part.get_name(), reason=reason)
        else:
            log.info("stopping")
            await operator.drain(timeout_seconds=DRAIN_SECONDS)
        operator.fleet.close()
        stop_kopf.set()
        await asyncio.wait({watching}, timeout=KOPF_STOP_SECONDS)
        for task in (*parts, watching, stopping):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*parts, watching, stopping, return_exceptions=True)
    log.info("stopped", role="leader", status=status)
    return status


def _root(error: BaseException | None) -> BaseException | None:
    """Return the first error inside groups: the one line should name the cause."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _catch_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _signals_after(ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Take the signals back: kopf installs its own handlers, which know nothing of draining."""
    await ready.wait()
    _catch_signals(stop)
    await asyncio.Event().wait()


def _utcnow() -> datetime:
    return datetime.now(UTC)


def main() -> int:
    """Run the operator; return its exit status."""
    from trimtab.telemetry import logs  # noqa: PLC0415

    try:
        settings = Settings.load()
        logs.configure(settings.log_level)
    except (ValidationError, ValueError) as error:
        sys.stderr.write(f"The operator's environment is invalid: {error}\n")
        return 2
    import structlog  # noqa: PLC0415

    log = structlog.get_logger("trimtab")
    log.info(
        "starting",
        version=__version__,
        namespace=settings.system_namespace,
        policy_time_divisor=settings.policy_time_divisor,
    )
    try:
        return asyncio.run(serve(settings))
    except Exception:
        log.exception("process_failed")
        return 1


if __name__ == "__main__":
    sys.exit(main())
