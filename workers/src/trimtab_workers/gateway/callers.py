"""Who calls, and what they may invoke: TokenReview and SubjectAccessReview, remembered."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from trimtab_workers.gateway.authcache import AuthCache, Standing
from trimtab_workers.web.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Mapping

    from trimtab_workers.gateway.metrics import GatewayMetrics

log = logging.getLogger(__name__)

T = TypeVar("T")

_OUTAGE_PAUSE_SECONDS: Final = 2.0
_LONGEST_TOKEN: Final = 16_384


class ReviewUnavailableError(Exception):
    """The API server gave no verdict: no answer, an error of its own, or we lack the right.

    Attributes:
        outage: Whether other questions would fare the same, so that none should follow at once.
    """

    def __init__(self, message: str, *, outage: bool) -> None:
        super().__init__(message)
        self.outage = outage


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated user, as the API server names it."""

    key: str
    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    expires_at: float | None = None


class Reviews(Protocol):
    """The two questions that the API server answers."""

    async def authenticate(self, token: str) -> Mapping[str, Any] | None:
        """Return the user of a token, or None if the token is refused.

        Raises:
            ReviewUnavailableError: There was no verdict.
        """
        ...

    async def may_invoke(self, caller: Caller, *, namespace: str, name: str) -> bool:
        """Return whether the caller may invoke an intent; empty names mean all of them.

        Raises:
            ReviewUnavailableError: There was no verdict.
        """
        ...


class Callers:
    """Answers both questions from the cache while it may."""

    def __init__(
        self, reviews: Reviews, *, clock: Callable[[], float], metrics: GatewayMetrics
    ) -> None:
        self._reviews = reviews
        self._clock = clock
        self._metrics = metrics
        self._callers: AuthCache[Caller] = AuthCache()
        self._rights: AuthCache[bool] = AuthCache()
        self._asking: dict[Hashable, asyncio.Task[Any]] = {}
        self._silent_until = float("-inf")
        self._told_until = float("-inf")

    async def identify(self, authorization: str | None) -> Caller:
        """Return who sends an `Authorization` header.

        Raises:
            ApiError: 401 without a valid token, 503 `AuthUnavailable` if nobody can tell.
        """
        token = _bearer(authorization)
        key = hashlib.sha256(token.encode()).hexdigest()

        async def ask() -> Caller | None:
            user = await self._reviews.authenticate(token)
            return None if user is None else _caller(user, key=key, token=token)

        caller = await self._answer(self._callers, ("token", key), ask, expires_at=_expiry(token))
        if caller is None:
            raise ApiError(
                401,
                "The bearer token was refused: it is no valid ServiceAccount token for this "
                "gateway's audience, or it has expired. Make one with `kubectl create token "
                "NAME --audience trimtab`.",
                code="invalid_api_key",
            )
        return caller

    async def may_invoke(self, caller: Caller, *, namespace: str, name: str) -> bool:
        """Return whether the caller may invoke an intent.

        Raises:
            ApiError: 503 `AuthUnavailable` if nobody can tell.
        """

        async def ask() -> bool | None:
            allowed = await self._reviews.may_invoke(caller, namespace=namespace, name=name)
            return True if allowed else None

        key = ("right", caller.key, namespace, name)
        answer = await self._answer(self._rights, key, ask, expires_at=caller.expires_at)
        return answer is True

    async def _answer(
        self,
        cache: AuthCache[T],
        key: Hashable,
        ask: Callable[[], Awaitable[T | None]],
        *,
        expires_at: float | None,
    ) -> T | None:
        standing, value = cache.look_up(key, now=self._clock())
        self._metrics.auth_cache.labels(result=standing.name.lower()).inc()
        if standing in {Standing.FRESH, Standing.REFUSED}:
            return value
        try:
            value = await self._ask_once(key, ask)
        except ReviewUnavailableError as error:
            if standing is Standing.STALE:
                return value
            raise ApiError(
                503,
                "The API server does not answer, so this caller cannot be checked. "
                "Retry in a moment.",
                code="AuthUnavailable",
                retry_after_seconds=_OUTAGE_PAUSE_SECONDS,
            ) from error
        if value is None:
            cache.refuse(key, now=self._clock())
        else:
            cache.grant(key, value, now=self._clock(), expires_at=expires_at)
        return value

    async def _ask_once(self, key: Hashable, ask: Callable[[], Awaitable[T | None]]) -> T | None:
        """Ask, one question at a time however many requests wait for its answer."""
        if self._clock() < self._silent_until:
            raise ReviewUnavailableError("The API server did not answer a moment ago.", outage=True)
        task = self._asking.get(key)
        if task is None:
            task = asyncio.ensure_future(ask())
            self._asking[key] = task
            task.add_done_callback(lambda done: self._answered(key, done))
        try:
            answer: T | None = await asyncio.shield(task)
        except ReviewUnavailableError as error:
            pause_ends = self._clock() + _OUTAGE_PAUSE_SECONDS
            if self._clock() >= self._told_until:
                log.warning("auth_unavailable", extra={"reason": str(error)})
                self._metrics.auth_unavailable.inc()
                self._told_until = pause_ends
            if error.outage:
                self._silent_until = pause_ends
            raise
        return answer

    def _answered(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # every request that waited may have gone; asyncio would complain


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    plausible = token.isascii() and 0 < len(token) <= _LONGEST_TOKEN
    if scheme.lower() != "bearer" or not plausible:
        raise ApiError(
            401,
            "The request has no bearer token. Send `Authorization: Bearer TOKEN` with a "
            "ServiceAccount token of audience trimtab (`kubectl create token`).",
            code="invalid_api_key",
        )
    return token


def _caller(user: Mapping[str, Any], *, key: str, token: str) -> Caller:
    extra = user.get("extra") or {}
    return Caller(
        key=key,
        username=str(user.get("username", "")),
        uid=str(user.get("uid") or ""),
        groups=tuple(user.get("groups") or ()),
        extra={str(name): tuple(values or ()) for name, values in extra.items()},
        expires_at=_expiry(token),
    )


def _expiry(token: str) -> float | None:
    """Return a JWT's `exp`; only used after the API server has vouched for the token."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        expiry = claims["exp"]
        valid = isinstance(expiry, int | float) and not isinstance(expiry, bool)
        return float(expiry) if valid else None
    except (binascii.Error, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
