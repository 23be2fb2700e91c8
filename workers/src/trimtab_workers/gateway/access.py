"""Which models a caller may name: rights and names, resolved together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from trimtab_workers.gateway.routes import (
    AmbiguousModelError,
    ModelNotFoundError,
    choose,
    without_rights,
)
from trimtab_workers.web.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import web

    from trimtab_workers.gateway.callers import Caller, Callers
    from trimtab_workers.gateway.directory import Directory
    from trimtab_workers.gateway.routes import ModelRoute

_LIST_AT_ONCE: Final = 16


class Access:
    """Knows callers and models; `callers` is None with `gateway.auth: None`."""

    def __init__(self, *, directory: Directory, callers: Callers | None) -> None:
        self._directory = directory
        self._callers = callers

    async def caller(self, request: web.Request) -> Caller | None:
        """Return who calls; None where nobody checks.

        Raises:
            ApiError: 401 or 503, see `Callers.identify`.
        """
        if self._callers is None:
            return None
        return await self._callers.identify(request.headers.get("Authorization"))

    async def resolve(self, caller: Caller | None, name: object) -> ModelRoute:
        """Return the model that a caller means by a name.

        Raises:
            ApiError: 400 without a usable name or `ambiguous_model`, 403, 404, or 503 while there
                is no routing table or nobody can check the caller.
        """
        if not isinstance(name, str) or not name:
            raise ApiError(
                400,
                f"model is {'empty' if name == '' else _kind(name)}. Give a model's name.",
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

    async def visible(self, caller: Caller | None) -> list[ModelRoute]:
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


def _kind(name: object) -> str:
    return "missing" if name is None else f"of type {type(name).__name__}"


def _denied(caller: Caller, route: ModelRoute) -> ApiError:
    return ApiError(
        403,
        f"{caller.username} may not invoke the model '{route.public_name}'. It needs verb invoke "
        f"on inferenceintents.trimtab.dev, name {route.intent}, in namespace {route.namespace}.",
        code="permission_denied",
        param="model",
    )
