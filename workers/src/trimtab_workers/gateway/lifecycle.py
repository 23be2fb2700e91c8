"""The gateway's life: serve from disk at once, follow the API server, drain on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from trimtab.api.v1alpha1 import names
from trimtab.net import pod_connector
from trimtab_workers.gateway import state
from trimtab_workers.gateway.access import Access
from trimtab_workers.gateway.app import Gate, admin_app, metrics_app, public_app
from trimtab_workers.gateway.blend import LiveWeights
from trimtab_workers.gateway.callers import Callers
from trimtab_workers.gateway.directory import Directory
from trimtab_workers.gateway.forward import Forwarder
from trimtab_workers.gateway.kube.reviews import ApiServerReviews
from trimtab_workers.gateway.kube.watch import Collection, Reflector
from trimtab_workers.gateway.metrics import GatewayMetrics
from trimtab_workers.gateway.observed import Observed
from trimtab_workers.gateway.picker import Picker
from trimtab_workers.gateway.proxy import Proxy
from trimtab_workers.web.listeners import InFlight, Listeners, StopSignals, wait_or_forced

if TYPE_CHECKING:
    from trimtab_workers.gateway.kube.client import WatchingClient
    from trimtab_workers.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)


class Gateway:
    """One gateway, without its process: tests run several in one loop."""

    def __init__(self, settings: GatewaySettings, *, client: WatchingClient) -> None:
        self._settings = settings
        self._client = client
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.metrics = GatewayMetrics()
        self.directory = Directory(metrics=self.metrics)
        self.observed = Observed()
        self.picker = Picker()
        self.weights = LiveWeights(self.observed)
        self.gate = Gate(in_flight=InFlight(), limit=settings.max_in_flight)
        self.listeners = Listeners(host=settings.host)

    async def start(self) -> None:
        """Restore the last good copy, open the ports, begin to watch.

        Raises:
            OSError: A port cannot be bound.
        """
        folder = self._settings.state_dir
        if folder is not None:
            await asyncio.to_thread(state.restore, self.directory, folder=folder)
        session = aiohttp.ClientSession(connector=pod_connector(), auto_decompress=False)
        self._stack.push_async_callback(session.close)
        public = public_app(self._proxy(session), gate=self.gate, metrics=self.metrics)
        admin = admin_app(ready=self.unready, observed=self.document)
        await self.listeners.open(
            {
                "http": (public, self._settings.port),
                "admin": (admin, self._settings.admin_port),
                "metrics": (metrics_app(self.metrics), self._settings.metrics_port),
            }
        )
        self._watch()
        if folder is not None:
            self._run(state.keep_saved(self.directory, folder=folder), name="keep_saved")
        self._run(self._forget_pods(), name="forget_pods")

    def unready(self) -> str | None:
        """Return None if requests can be served, else why not."""
        if self.gate.stage != "open":
            return "The gateway is shutting down."
        if not self.directory.loaded:
            return "There is no routing table, neither from the API server nor on disk."
        return None

    def document(self) -> dict[str, Any]:
        """Return `/-/observed`."""
        return self.observed.document(replica=self._settings.pod_name, now=time.time())

    async def drain(self, *, stop: StopSignals) -> bool:
        """Turn unready, take requests a little longer, then let the running ones end.

        Returns False if some were cut off.
        """
        self.gate.stage = "closing"
        log.info("draining", extra={"in_flight": self.gate.in_flight.count})
        pause = asyncio.sleep(self._settings.drain_delay_seconds)
        await wait_or_forced(pause, stop=stop, timeout_seconds=self._settings.shutdown_seconds)
        self.gate.stage = "closed"
        return await wait_or_forced(
            self.gate.in_flight.idle(), stop=stop, timeout_seconds=self._settings.shutdown_seconds
        )

    async def close(self) -> None:
        """Close the ports, which cancels what still runs, and stop watching."""
        cut_off = self.gate.in_flight.count
        await self.listeners.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
        log.info("stopped", extra={"cut_off": cut_off})

    def _proxy(self, session: aiohttp.ClientSession) -> Proxy:
        forwarder = Forwarder(
            session=session,
            directory=self.directory,
            picker=self.picker,
            weights=self.weights,
            settings=self._settings,
            metrics=self.metrics,
            clock=time.monotonic,
            wall_clock=time.time,
        )
        return Proxy(
            access=Access(directory=self.directory, callers=self._callers()),
            forwarder=forwarder,
            observed=self.observed,
            metrics=self.metrics,
            settings=self._settings,
            clock=time.monotonic,
            wall_clock=time.time,
        )

    def _callers(self) -> Callers | None:
        if self._settings.auth == "None":
            return None
        reviews = ApiServerReviews(self._client, audience=self._settings.audience)
        return Callers(reviews, clock=time.time, metrics=self.metrics)

    def _watch(self) -> None:
        namespace = self._settings.system_namespace
        routes = Collection(
            name="configmaps",
            path=f"/api/v1/namespaces/{namespace}/configmaps",
            label_selector=f"{names.MANAGED_BY_LABEL}={names.OPERATOR}",
        )
        slices = Collection(
            name="endpointslices",
            path="/apis/discovery.k8s.io/v1/endpointslices",
            label_selector=f"{names.PART_OF_LABEL}=trimtab",
        )
        for collection, sink in (
            (routes, self.directory.routes),
            (slices, self.directory.endpoints),
        ):
            reflector = Reflector(
                client=self._client, collection=collection, sink=sink, metrics=self.metrics
            )
            self._run(reflector.run(), name=f"watch_{collection.name}")

    async def _forget_pods(self) -> None:
        while True:
            await self.directory.next_change().wait()
            self.picker.forget_all_but(self.directory.pods())
            models = self.directory.table.models()
            self.weights.forget_all_but({route.intent_key for route in models})

    def _run(self, work: Any, *, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_report)
        self._tasks.append(task)


def _report(task: asyncio.Task[None]) -> None:
    """A background task that ends by itself is a bug; say so, as nothing else will."""
    if not task.cancelled() and task.exception() is not None:
        log.error("task_ended", exc_info=task.exception(), extra={"task": task.get_name()})


async def serve(settings: GatewaySettings, *, client: WatchingClient) -> None:
    """Serve until a signal asks to stop.

    Raises:
        OSError: A port cannot be bound.
    """
    stop = StopSignals()
    stop.install()
    gateway = Gateway(settings, client=client)
    try:
        await gateway.start()
        await stop.requested.wait()
        await gateway.drain(stop=stop)
    finally:
        await gateway.close()
