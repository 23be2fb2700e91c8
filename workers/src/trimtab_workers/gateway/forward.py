"""One request, handed to a pod: hold while none is ready, retry only where that is safe.

Safe is: the connection was refused, or the worker said before accepting that it does not take
the request. Once a worker may have begun, a failure is the client's to know: the gateway cannot
tell whether the request ran.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from trimtab_workers.web.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trimtab_workers.gateway.blend import LiveWeights
    from trimtab_workers.gateway.directory import Directory
    from trimtab_workers.gateway.endpoints import Endpoint
    from trimtab_workers.gateway.metrics import GatewayMetrics
    from trimtab_workers.gateway.picker import Picker
    from trimtab_workers.gateway.routes import ModelRoute
    from trimtab_workers.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

# What a worker answers before it accepts a request, and what another pod may not answer.
_ELSEWHERE: Final = frozenset(
    {"queue_full", "starting", "shutting_down", "model_unavailable", "model_not_found"}
)
_NOT_READY: Final = _ELSEWHERE - {"queue_full"}
_LOOK_AGAIN_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 2.0
_REFUSAL_SECONDS: Final = 5.0
_LARGE_BODY_BYTES: Final = 2**20


@dataclass(slots=True, kw_only=True)
class Call:
    """A request that a model was found for. Times are seconds of the gateway's clock."""

    route: ModelRoute
    path: str
    body: bytes
    headers: Mapping[str, str]
    stream: bool
    wants_usage: bool
    one_choice: bool
    arrived_at: float
    read_seconds: float
    held_seconds: float = 0.0
    sent_at: float | None = None
    pod_uid: str | None = None

    @property
    def before_worker_ms(self) -> float:
        """All that passed until a worker had the request: reading, holding and our own time."""
        return 0.0 if self.sent_at is None else (self.sent_at - self.arrived_at) * 1e3

    @property
    def overhead_ms(self) -> float | None:
        """The gateway's own time until a worker had the request; reading and holding apart."""
        if self.sent_at is None:
            return None
        own = self.sent_at - self.arrived_at - self.read_seconds - self.held_seconds
        return max(0.0, own) * 1e3


@dataclass(slots=True)
class Upstream:
    """A worker's answer, whose body is still to be read."""

    endpoint: Endpoint
    response: aiohttp.ClientResponse
    _release: Callable[[], None]

    def close(self) -> None:
        """Give the pod back; an unfinished answer is cut off, which aborts it on the worker."""
        self.response.close()
        self._release()


@dataclass(slots=True)
class _Round:
    """What has been tried for a call."""

    tried: set[str] = field(default_factory=set)
    refusal: ApiError | None = None
    not_ready: bool = True


class Forwarder:
    """Finds a pod for each call."""

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession,
        directory: Directory,
        picker: Picker,
        weights: LiveWeights,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._directory = directory
        self._picker = picker
        self._weights = weights
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock

    async def open(self, call: Call) -> Upstream:
        """Send the call to a pod and return the beginning of its answer.

        Raises:
            ApiError: 503 if no pod is ready in time or all refuse, 502 if a worker failed with
                the request, 504 if it did not answer in time.
        """
        deadline = self._clock() + self._settings.hold_seconds
        attempts = _Round()
        while True:
            changed = self._directory.next_change()
            serving = self._directory.serving(call.route)
            endpoint = self._picker.pick(
                serving,
                weight=self._weights.of(
                    call.route, [row.uid for row in serving], now=self._wall_clock()
                ),
                exclude=attempts.tried,
                now=self._clock(),
            )
            if endpoint is not None:
                upstream = await self._attempt(call, endpoint, attempts)
                if upstream is not None:
                    return upstream
            elif attempts.not_ready and self._clock() < deadline:
                await self._hold(call, changed, until=deadline)
                attempts = _Round(refusal=attempts.refusal)
            else:
                raise attempts.refusal or _no_replica(call.route)

    async def _hold(self, call: Call, changed: asyncio.Event, *, until: float) -> None:
        """Wait for news of pods; look again twice a second, as a container restarts in place."""
        started = self._clock()
        seconds = min(_LOOK_AGAIN_SECONDS, until - started)
        with self._metrics.held.track_inprogress(), contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await changed.wait()
        call.held_seconds += self._clock() - started

    async def _attempt(self, call: Call, endpoint: Endpoint, attempts: _Round) -> Upstream | None:
        """Try one pod; None if another may be tried."""
        upstream: Upstream | None = None
        try:
            response = await self._post(call, endpoint)
            if response is not None:
                upstream = await self._judged(response, endpoint, attempts)
            else:
                self._picker.refused(endpoint.uid, now=self._clock())
                self._metrics.retries.labels(reason="connect").inc()
        finally:
            if upstream is None:
                self._picker.release(endpoint.uid)
        attempts.tried.add(endpoint.uid)
        if upstream is not None:
            call.pod_uid = endpoint.uid
        return upstream

    async def _post(self, call: Call, endpoint: Endpoint) -> aiohttp.ClientResponse | None:
        """Return the response, or None if the pod accepted no connection."""
        # NB: no connection is used twice. A worker that closes an idle connection as we write to
        # it looks exactly like one that died with the request, and that may not be retried.
        headers = {**call.headers, "Connection": "close", "Accept-Encoding": "identity"}
        large = len(call.body) > _LARGE_BODY_BYTES
        call.sent_at = self._clock()
        try:
            async with asyncio.timeout(self._settings.upstream_seconds):
                return await self._session.post(
                    endpoint.base_url + call.path,
                    data=io.BytesIO(call.body) if large else call.body,
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(
                        total=None, sock_connect=self._settings.connect_seconds
                    ),
                    allow_redirects=False,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._failed(endpoint, "connect", error)
            return None
        except TimeoutError as error:
            self._failed(endpoint, "timeout", error)
            raise ApiError(
                504,
                f"The worker did not begin to answer within {self._settings.upstream_seconds:g} "
                "s. Ask for fewer tokens or stream the answer.",
                code="upstream_timeout",
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            self._failed(endpoint, "died", error)
            raise ApiError(
                502,
                "The worker failed while it had the request. It may have run, so it was not "
                "tried again; send it again if that is fine.",
                code="worker_failed",
            ) from error

    async def _judged(
        self, response: aiohttp.ClientResponse, endpoint: Endpoint, attempts: _Round
    ) -> Upstream | None:
        """As `_accepted`, but whoever is cancelled in it leaves no connection open."""
        try:
            return await self._accepted(response, endpoint, attempts)
        except BaseException:
            response.close()
            raise

    async def _accepted(
        self, response: aiohttp.ClientResponse, endpoint: Endpoint, attempts: _Round
    ) -> Upstream | None:
        """Return the answer, or None if the worker refused before accepting the request."""
        self._picker.accepted(endpoint.uid)
        if response.status in {503, 404}:
            refusal = await _refusal(response)
            if refusal is not None and refusal.code in _ELSEWHERE:
                attempts.refusal = _reworded(refusal)
                attempts.not_ready = attempts.not_ready and refusal.code in _NOT_READY
                self._metrics.retries.labels(reason=refusal.code).inc()
                response.close()
                return None
        return Upstream(endpoint, response, lambda: self._picker.release(endpoint.uid))

    def _failed(self, endpoint: Endpoint, reason: str, error: BaseException) -> None:
        self._metrics.upstream_errors.labels(reason=reason).inc()
        extra = {
            "pod": endpoint.name,
            "reason": reason,
            "error": f"{type(error).__name__}: {error}",
        }
        log.warning("upstream_failed", extra=extra)


def _no_replica(route: ModelRoute) -> ApiError:
    return ApiError(
        503,
        f"No replica of the model '{route.public_name}' is ready. Retry in a moment; "
        f"`kubectl describe ii {route.intent} -n {route.namespace}` says what is missing.",
        code="no_ready_replica",
        retry_after_seconds=_RETRY_SECONDS,
    )


async def _refusal(response: aiohttp.ClientResponse) -> ApiError | None:
    """Return a worker's error object; the body stays readable for who passes it on."""
    try:
        async with asyncio.timeout(_REFUSAL_SECONDS):
            error = json.loads(await response.read())["error"]
        return ApiError(
            response.status,
            str(error["message"]),
            code=str(error["code"]),
            param=error.get("param"),
            retry_after_seconds=_seconds(response.headers.get("Retry-After")),
        )
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _reworded(refusal: ApiError) -> ApiError:
    """A worker that lacks the model is not ready for it; the model itself exists."""
    if refusal.status != 404:
        return refusal
    return ApiError(
        503,
        "The replicas do not serve this model yet. Retry in a moment.",
        code="no_ready_replica",
        retry_after_seconds=_RETRY_SECONDS,
    )


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isascii() and text.isdigit() else _RETRY_SECONDS


def encode(body: Mapping[str, Any]) -> bytes:
    """Return a request body for a worker."""
    return json.dumps(body, separators=(",", ":")).encode()
