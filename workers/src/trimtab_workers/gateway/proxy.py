"""The request path: who calls, which model, which pod, and the answer as it comes."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp import web

from trimtab_workers.gateway.bodies import BodyBudget, json_object
from trimtab_workers.gateway.forward import Call, encode
from trimtab_workers.gateway.observed import Outcome
from trimtab_workers.gateway.sse import StreamTap, timing_of, tokens_of
from trimtab_workers.web.errors import REQUEST_ID, ApiError, request_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.gateway.access import Access
    from trimtab_workers.gateway.forward import Forwarder, Upstream
    from trimtab_workers.gateway.metrics import GatewayMetrics
    from trimtab_workers.gateway.observed import Observed
    from trimtab_workers.gateway.routes import ModelRoute
    from trimtab_workers.gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

# Everything else stays on its side: tokens never reach a worker, hop-by-hop headers never pass.
_TO_WORKER: Final = ("Accept", "traceparent", "tracestate")
_TO_CLIENT: Final = ("Content-Type", "Cache-Control", "Retry-After", "X-Accel-Buffering")
_EVENT_STREAM: Final = "text/event-stream"


class Proxy:
    """Serves `/v1/*` for one gateway process."""

    def __init__(
        self,
        *,
        access: Access,
        forwarder: Forwarder,
        observed: Observed,
        metrics: GatewayMetrics,
        settings: GatewaySettings,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._access = access
        self._forwarder = forwarder
        self._observed = observed
        self._metrics = metrics
        self._settings = settings
        self._clock = clock
        self._wall_clock = wall_clock
        self._bodies = BodyBudget(limit_bytes=settings.max_body_bytes_in_flight)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """Answer `/v1/chat/completions` or `/v1/completions`."""
        arrived_at = self._clock()
        with self._bodies.reserve(request):
            return await self._generate(request, arrived_at)

    async def _generate(self, request: web.Request, arrived_at: float) -> web.StreamResponse:
        caller = await self._access.caller(request)
        reading_at = self._clock()
        body = await json_object(request)
        read_seconds = self._clock() - reading_at
        route = await self._access.resolve(caller, body.get("model"))
        self._observed.arrived(route.intent_key, now=self._wall_clock())
        call = self._call(
            request, body, route=route, arrived_at=arrived_at, read_seconds=read_seconds
        )
        outcome = Outcome(failed=False, pod_uid=None)
        try:
            response, outcome = await self._forward(request, call)
        except ConnectionResetError:
            raise  # the client has gone; that is no failure of the model
        except Exception as error:
            refused = isinstance(error, ApiError) and error.status < 500
            outcome = Outcome(failed=not refused, overhead_ms=call.overhead_ms)
            raise
        finally:
            self._observed.ended(route.intent_key, outcome, now=self._wall_clock())
            self._metrics.duration.observe(self._clock() - arrived_at)
            if call.overhead_ms is not None:
                self._metrics.overhead.observe(call.overhead_ms / 1e3)
        return response

    async def models(self, request: web.Request) -> web.Response:
        """List the models that the caller may invoke."""
        routes = await self._access.visible(await self._access.caller(request))
        return web.json_response({"object": "list", "data": [_model(route) for route in routes]})

    async def model(self, request: web.Request) -> web.Response:
        """Describe one model."""
        caller = await self._access.caller(request)
        return web.json_response(
            _model(await self._access.resolve(caller, request.match_info["name"]))
        )

    def _call(
        self,
        request: web.Request,
        body: dict[str, Any],
        *,
        route: ModelRoute,
        arrived_at: float,
        read_seconds: float,
    ) -> Call:
        stream = body.get("stream") is True
        body = {**body, "model": route.public_name}
        options = body.get("stream_options")
        wanted = options.get("include_usage") if isinstance(options, dict) else None
        readable = options is None or isinstance(options, dict)
        if stream and readable and (wanted is None or wanted is False):
            body["stream_options"] = {**(options or {}), "include_usage": True}
        given = {name: request.headers.get(name, "") for name in _TO_WORKER}
        # Bytes that are no text arrive as surrogates, which cannot be sent on.
        headers = {name: value for name, value in given.items() if value and value.isascii()}
        headers |= {"Content-Type": "application/json", REQUEST_ID: request_id(request)}
        return Call(
            route=route,
            path=request.path,
            body=encode(body),
            headers=headers,
            stream=stream,
            wants_usage=wanted is True,
            one_choice=_one_choice(body),
            arrived_at=arrived_at,
            read_seconds=read_seconds,
        )

    async def _forward(
        self, request: web.Request, call: Call
    ) -> tuple[web.StreamResponse, Outcome]:
        upstream = await self._forwarder.open(call)
        try:
            self._metrics.first_byte.observe(self._clock() - call.arrived_at)
            if upstream.response.content_type == _EVENT_STREAM:
                return await self._relay(request, call, upstream)
            return await self._whole(request, call, upstream)
        finally:
            upstream.close()

    async def _whole(
        self, request: web.Request, call: Call, upstream: Upstream
    ) -> tuple[web.StreamResponse, Outcome]:
        try:
            async with asyncio.timeout(self._settings.silence_seconds):
                raw = await upstream.response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self._metrics.upstream_errors.labels(reason="died").inc()
            raise _died() from error
        status = upstream.response.status
        usage = _usage(raw) if status == 200 else None
        timing = upstream.response.headers.get("Server-Timing")
        ttft_ms = timing_of(timing, "ttft")
        outcome = Outcome(
            failed=status >= 500,
            prompt_tokens=tokens_of(usage, "prompt_tokens"),
            output_tokens=tokens_of(usage, "completion_tokens"),
            ttft_ms=None if ttft_ms is None else ttft_ms + call.before_worker_ms,
            tpot_ms=timing_of(timing, "tpot"),
            overhead_ms=call.overhead_ms,
            pod_uid=call.pod_uid,
        )
        headers = _client_headers(request, upstream)
        return web.Response(body=raw, status=status, headers=headers), outcome

    async def _relay(
        self, request: web.Request, call: Call, upstream: Upstream
    ) -> tuple[web.StreamResponse, Outcome]:
        """Pass a stream on, event by event; a worker that dies leaves an error event."""
        tap = StreamTap(pass_usage=call.wants_usage)
        response = web.StreamResponse(headers=_client_headers(request, upstream))
        await response.prepare(request)
        failure: ApiError | None = None
        while not tap.done and not tap.failed:
            try:
                async with asyncio.timeout(self._settings.silence_seconds):
                    data = await upstream.response.content.readany()
                passed = tap.feed(data, now=self._clock()) if data else None
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                failure = self._broken(upstream, error)
                break
            if passed is None:
                failure = self._broken(upstream, EOFError("the stream ended before [DONE]"))
                break
            if passed:
                await self._write(request, response, passed)
        if failure is not None:
            await self._write(request, response, failure.event())
        if failure is not None or tap.failed:
            response.force_close()
        await response.write_eof()
        outcome = tap.outcome(
            arrived_at=call.arrived_at,
            one_choice=call.one_choice,
            failed=failure is not None or tap.failed,
            overhead_ms=call.overhead_ms,
            pod_uid=call.pod_uid,
        )
        return response, outcome

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        """Send a part of a stream; a client that stops reading must not hold its place for ever."""
        try:
            async with asyncio.timeout(self._settings.silence_seconds):
                await response.write(data)
        except TimeoutError as error:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("The client does not read its stream.") from error

    def _broken(self, upstream: Upstream, error: BaseException) -> ApiError:
        self._metrics.upstream_errors.labels(reason="stream").inc()
        extra = {"pod": upstream.endpoint.name, "error": f"{type(error).__name__}: {error}"}
        log.warning("stream_broken", extra=extra)
        return _died()


def _died() -> ApiError:
    return ApiError(
        502,
        "The worker stopped in the middle of its answer. Send the request again.",
        code="worker_failed",
    )


def _model(route: ModelRoute) -> dict[str, Any]:
    return {
        "id": route.public_name,
        "object": "model",
        "created": 0,
        "owned_by": route.namespace,
    }


def _client_headers(request: web.Request, upstream: Upstream) -> dict[str, str]:
    given = upstream.response.headers
    headers = {name: given[name] for name in _TO_CLIENT if name in given}
    return headers | {REQUEST_ID: request_id(request)}


def _one_choice(body: dict[str, Any]) -> bool:
    prompt = body.get("prompt")
    prompts = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    return (body.get("n") is None or body["n"] == 1) and not prompts


def _usage(raw: bytes) -> object:
    try:
        return json.loads(raw).get("usage")
    except (ValueError, AttributeError, RecursionError):
        return None
