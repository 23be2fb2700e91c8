"""The request path: who calls, which model, which pod, and the answer as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp import web

from trimtab_workers.gateway.forward import Call, encode
from trimtab_workers.gateway.observed import Outcome
from trimtab_workers.gateway.routes import (
    AmbiguousModelError,
    ModelNotFoundError,
    choose,
    without_rights,
)
from trimtab_workers.gateway.sse import StreamTap, timing_of, tokens_of
from trimtab_workers.web.errors import REQUEST_ID, ApiError, request_id
from trimtab_workers.web.listeners import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from trimtab_workers.gateway.callers import Caller, Callers
    from trimtab_workers.gateway.directory import Directory
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
_LIST_AT_ONCE: Final = 16
_BODY_SECONDS: Final = 60.0


class BodyBudget:
    """Bounds the memory that bodies of running requests take; one without a length counts most."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0

    @contextlib.contextmanager
    def reserve(self, request: web.Request) -> Iterator[None]:
        """Hold a request's share.

        Raises:
            ApiError: 503 if the others leave too little.
        """
        size = request.content_length
        size = MAX_BODY_BYTES if size is None else min(size, MAX_BODY_BYTES)
        if self._used and self._used + size > self._limit:
            raise ApiError(
                503,
                "The gateway holds too many large requests. Retry in a moment.",
                code="overloaded",
                retry_after_seconds=1.0,
            )
        self._used += size
        try:
            yield
        finally:
            self._used -= size


class Proxy:
    """Serves `/v1/*` for one gateway process."""

    def __init__(
        self,
        *,
        directory: Directory,
        forwarder: Forwarder,
        callers: Callers | None,
        observed: Observed,
        metrics: GatewayMetrics,
        settings: GatewaySettings,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._forwarder = forwarder
        self._callers = callers
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
        body = await _json_object(request)
        read_at = self._clock()
        caller = await self._caller(request)
        route = await self._resolve(caller, body.get("model"))
        self._observed.arrived(route.intent_key, now=self._wall_clock())
        call = self._call(request, body, route=route, arrived_at=arrived_at, read_at=read_at)
        outcome = Outcome(failed=False, pod_uid=None)
        try:
            response, outcome = await self._forward(request, call)
        except ApiError as error:
            outcome = Outcome(failed=error.status >= 500, overhead_ms=call.overhead_ms)
            raise
        finally:
            self._observed.ended(route.intent_key, outcome, now=self._wall_clock())
            self._metrics.duration.observe(self._clock() - arrived_at)
            if call.overhead_ms is not None:
                self._metrics.overhead.observe(call.overhead_ms / 1e3)
        return response

    async def models(self, request: web.Request) -> web.Response:
        """List the models that the caller may invoke."""
        routes = await self._visible(await self._caller(request))
        return web.json_response({"object": "list", "data": [_model(route) for route in routes]})

    async def model(self, request: web.Request) -> web.Response:
        """Describe one model."""
        caller = await self._caller(request)
        return web.json_response(_model(await self._resolve(caller, request.match_info["name"])))

    async def _caller(self, request: web.Request) -> Caller | None:
        if self._callers is None:
            return None
        return await self._callers.identify(request.headers.get("Authorization"))

    async def _resolve(self, caller: Caller | None, name: object) -> ModelRoute:
        if not isinstance(name, str) or not name:
            raise ApiError(
                400,
                f"model is {str(name)[:80]!r}. Give a model's name.",
                code="missing_required_parameter",
                param="model",
            )
        self._require_routes()
        candidates = self._directory.table.candidates(name)
        if caller is None:
            allowed: Iterable[ModelRoute] = without_rights(candidates, name=name)
        else:
            allowed = [route for route in candidates if await self._allowed(caller, route)]
            if candidates and not allowed and "/" in name:
                raise _denied(caller, candidates[0])
        try:
            return choose(allowed, name=name)
        except ModelNotFoundError as error:
            raise ApiError(404, str(error), code="model_not_found", param="model") from error
        except AmbiguousModelError as error:
            raise ApiError(400, str(error), code="ambiguous_model", param="model") from error

    def _require_routes(self) -> None:
        if not self._directory.loaded:
            raise ApiError(
                503,
                "The gateway has no routing table yet. Retry in a moment.",
                code="no_routes",
                retry_after_seconds=1.0,
            )

    async def _allowed(self, caller: Caller, route: ModelRoute) -> bool:
        assert self._callers is not None  # noqa: S101 - a caller exists only where they are checked
        return await self._callers.may_invoke(caller, namespace=route.namespace, name=route.intent)

    async def _visible(self, caller: Caller | None) -> list[ModelRoute]:
        """Return the models that the caller may invoke.

        A right on all intents, or on all of a namespace, saves one question per intent.
        """
        self._require_routes()
        routes = self._directory.table.models()
        if caller is None or self._callers is None:
            return list(routes)
        if not routes or await self._callers.may_invoke(caller, namespace="", name=""):
            return list(routes)
        whole = {
            namespace
            for namespace in self._directory.table.namespaces
            if await self._callers.may_invoke(caller, namespace=namespace, name="")
        }
        slots = asyncio.Semaphore(_LIST_AT_ONCE)

        async def visible(route: ModelRoute) -> bool:
            async with slots:
                return route.namespace in whole or await self._allowed(caller, route)

        verdicts = await asyncio.gather(*(visible(route) for route in routes))
        return [route for route, yes in zip(routes, verdicts, strict=True) if yes]

    def _call(
        self,
        request: web.Request,
        body: dict[str, Any],
        *,
        route: ModelRoute,
        arrived_at: float,
        read_at: float,
    ) -> Call:
        stream = body.get("stream") is True
        body = {**body, "model": route.public_name}
        options = body.get("stream_options")
        wanted = options.get("include_usage") if isinstance(options, dict) else None
        readable = options is None or isinstance(options, dict)
        if stream and readable and (wanted is None or wanted is False):
            body["stream_options"] = {**(options or {}), "include_usage": True}
        headers = {name: request.headers[name] for name in _TO_WORKER if name in request.headers}
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
            read_at=read_at,
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
                await response.write(passed)
        if failure is not None:
            await response.write(failure.event())
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


def _denied(caller: Caller, route: ModelRoute) -> ApiError:
    return ApiError(
        403,
        f"{caller.username} may not invoke the model '{route.public_name}'. It needs verb invoke "
        f"on inferenceintents.trimtab.dev, name {route.intent}, in namespace {route.namespace}.",
        code="permission_denied",
        param="model",
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


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            body = await request.json()
    except TimeoutError as error:
        raise ApiError(
            408, f"The request body did not arrive within {_BODY_SECONDS:g} s.", code="timeout"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ApiError(
            400, f"The request body is not valid JSON: {error}.", code="invalid_json"
        ) from error
    if not isinstance(body, dict):
        raise ApiError(400, "The request body must be a JSON object.", code="invalid_json")
    return body


def _one_choice(body: dict[str, Any]) -> bool:
    prompt = body.get("prompt")
    prompts = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    return (body.get("n") is None or body["n"] == 1) and not prompts


def _usage(raw: bytes) -> object:
    try:
        return json.loads(raw).get("usage")
    except (ValueError, AttributeError, RecursionError):
        return None
