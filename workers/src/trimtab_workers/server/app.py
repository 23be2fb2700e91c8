"""The worker's three listeners: users (8000), the operator (8001), Prometheus (8002)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import exposition

from trimtab_workers.engine.errors import ConfigError, EngineError
from trimtab_workers.server.fields import Fields, invalid
from trimtab_workers.server.generate import Generation, in_thread_if_long, json_body, to_api_error
from trimtab_workers.server.parse import parse_messages
from trimtab_workers.web.errors import ApiError, Handler, openai_errors
from trimtab_workers.web.listeners import MAX_BODY_BYTES, InFlight

if TYPE_CHECKING:
    from trimtab_workers.server.slot import EngineSlot

log = logging.getLogger(__name__)

RELOAD_POLL_SECONDS: Final = 1.0
RELOAD_GIVE_UP_SECONDS: Final = 180.0


def _engine_error(error: Exception) -> ApiError | None:
    return to_api_error(error) if isinstance(error, EngineError) else None


def metrics_handler(slot: EngineSlot) -> Handler:
    """Return the handler of `/metrics`: the engine's registry, empty while it starts."""

    async def metrics(_: web.Request) -> web.Response:
        engine = slot.engine
        # NB: never OpenMetrics, which Prometheus prefers: prometheus_client 0.26 writes the colon of
        # vLLM's names as an underscore there, and every query on `vllm:` finds nothing.
        body = exposition.generate_latest(engine.registry) if engine is not None else b""
        content_type = exposition.CONTENT_TYPE_PLAIN_0_0_4
        return web.Response(body=body, headers={"Content-Type": content_type})

    return metrics


def public_app(slot: EngineSlot, *, in_flight: InFlight, version: str) -> web.Application:
    """Return the application of port 8000."""
    generation = Generation(slot)
    pages = _Pages(slot, version=version)

    @web.middleware
    async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != "POST":
            return await handler(request)
        with in_flight:
            response = await handler(request)
            if slot.draining and not response.prepared:
                response.force_close()
            return response

    app = web.Application(
        client_max_size=MAX_BODY_BYTES, middlewares=[counted, openai_errors(_engine_error)]
    )
    app.add_routes(
        [
            web.post("/v1/chat/completions", generation.chat),
            web.post("/v1/completions", generation.completion),
            web.get("/v1/models", pages.models),
            web.get("/v1/models/{name:.+}", pages.model),
            web.post("/tokenize", pages.tokenize),
            web.post("/detokenize", pages.detokenize),
            web.get("/version", pages.version),
            web.get("/metrics", metrics_handler(slot)),
            web.get("/health", pages.health),
            web.get("/live", pages.live),
        ]
    )
    return app


def metrics_app(slot: EngineSlot) -> web.Application:
    """Return the application of port 8002, the only one that Prometheus may reach."""
    app = web.Application()
    app.add_routes([web.get("/metrics", metrics_handler(slot))])
    return app


class _Pages:
    def __init__(self, slot: EngineSlot, *, version: str) -> None:
        self._slot = slot
        self._version = version

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self._rows()})

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        for row in self._rows():
            if row["id"] == name:
                return web.json_response(row)
        raise ApiError(404, f"The model '{name}' does not exist.", code="model_not_found")

    def _rows(self) -> list[dict[str, object]]:
        return [
            {
                "id": model["name"],
                "object": "model",
                "created": 0,
                "owned_by": "trimtab",
                "max_model_len": model.get("max_model_len"),
                "state": model["state"],
            }
            for model in self._slot.require().models()
        ]

    async def tokenize(self, request: web.Request) -> web.Response:
        fields = Fields(await json_body(request))
        tokenizer = self._slot.require().tokenizer(fields.text("model"))
        text = fields.get("prompt")
        if fields.get("messages") is not None:
            messages = parse_messages(fields.get("messages"))
            ids = await asyncio.to_thread(tokenizer.apply_chat_template, messages)
        elif isinstance(text, str):
            special = fields.boolean("add_special_tokens", default=True)
            ids = await in_thread_if_long(
                lambda: list(tokenizer.encode(text, add_special_tokens=special)), size=len(text)
            )
        else:
            raise invalid("prompt", text, "Give a text, or messages.", code="invalid_type")
        return web.json_response({"tokens": ids, "count": len(ids)})

    async def detokenize(self, request: web.Request) -> web.Response:
        fields = Fields(await json_body(request))
        tokenizer = self._slot.require().tokenizer(fields.text("model"))
        ids = list(fields.integers("tokens"))
        if ids and min(ids) < 0:
            raise invalid("tokens", min(ids), "Token ids are 0 or more.")
        text = await in_thread_if_long(lambda: tokenizer.decode(ids), size=len(ids))
        return web.json_response({"prompt": text})

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self._version})

    async def health(self, _: web.Request) -> web.Response:
        status = self._slot.health()
        return web.json_response({"status": status}, status=200 if status == "ok" else 503)

    async def live(self, _: web.Request) -> web.Response:
        engine = self._slot.engine
        trouble = engine.liveness() if engine is not None else None
        if trouble is None:
            return web.json_response({"status": "ok"})
        return web.json_response({"status": "dead", "message": trouble}, status=503)


class Reloads:
    """`POST /-/reload?revision=N`: 202 until the mounted file has N (joints.md, section 6)."""

    def __init__(self, slot: EngineSlot) -> None:
        self._slot = slot
        self._wanted = 0
        self._poll: asyncio.Task[None] | None = None

    async def post(self, request: web.Request) -> web.Response:
        """Re-read the file now; keep polling it if it is older than asked."""
        engine = self._slot.require()
        wanted = self._wanted_revision(request)
        try:
            revision = await asyncio.to_thread(engine.reload, wanted)
        except ConfigError as error:
            if wanted is None:
                raise ApiError(400, error.message, code=error.code) from error
            self._keep_polling(wanted)
            return web.json_response({"revision": None, "error": error.message}, status=202)
        if wanted is None or revision >= wanted:
            return web.json_response({"revision": revision})
        self._keep_polling(wanted)
        return web.json_response({"revision": revision}, status=202)

    @staticmethod
    def _wanted_revision(request: web.Request) -> int | None:
        text = request.query.get("revision")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise invalid("revision", text, "Give an integer of 0 or more.")
        return int(text)

    def _keep_polling(self, wanted: int) -> None:
        self._wanted = max(self._wanted, wanted)
        if self._poll is None or self._poll.done():
            self._poll = asyncio.create_task(self._poll_file())

    async def _poll_file(self) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + RELOAD_GIVE_UP_SECONDS
        while loop.time() < give_up:
            await asyncio.sleep(RELOAD_POLL_SECONDS)
            try:
                revision = await asyncio.to_thread(self._slot.require().reload, self._wanted)
            except ConfigError:
                continue  # kept in /-/state.errors; the file may still be replaced
            if revision >= self._wanted:
                log.info("model_set_reloaded", extra={"revision": revision})
                return
        log.warning("model_set_never_arrived", extra={"revision": self._wanted})

    async def close(self) -> None:
        """Stop polling."""
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)


def admin_app(slot: EngineSlot, *, reloads: Reloads, version: str) -> web.Application:
    """Return the application of port 8001, which the gateway never proxies."""

    async def state(_: web.Request) -> web.Response:
        engine = slot.engine
        if engine is None:
            return web.json_response(_starting_state(slot, version=version))
        document = await asyncio.to_thread(engine.state)
        return web.json_response(document | {"draining": slot.draining})

    app = web.Application(middlewares=[openai_errors(_engine_error)])
    app.add_routes([web.get("/-/state", state), web.post("/-/reload", reloads.post)])
    return app


def _starting_state(slot: EngineSlot, *, version: str) -> dict[str, object]:
    errors = [] if slot.failure is None else [str(slot.failure)]
    return {
        "v": 1,
        "revision": 0,
        "draining": slot.draining,
        "engine_version": version,
        "capabilities": {},
        "models": [],
        "slabs": {"free": 0, "weights": 0, "kv": 0},
        "kv": {"capacity_tokens": 0, "used_tokens": 0},
        "advice": None,
        "errors": errors,
        "windows": {},
        "decode_only": {},
    }
