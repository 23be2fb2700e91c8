"""TokenReview and SubjectAccessReview: the API server's verdict on callers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from trimtab.api.v1alpha1.names import GROUP
from trimtab.kube.errors import ApiError
from trimtab_workers.gateway.callers import Caller, ReviewUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.kube.client import KubeClient

_TOKEN_REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 - a path
_ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_TIMEOUT_SECONDS: Final = 3.0
_AT_ONCE: Final = 32


class ApiServerReviews:
    """Asks the API server, not more than 32 questions at once."""

    def __init__(self, client: KubeClient, *, audience: str) -> None:
        self._client = client
        self._audience = audience
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def authenticate(self, token: str) -> Mapping[str, Any] | None:
        """Return the user of a token, or None if the token is refused for our audience.

        Raises:
            ReviewUnavailableError: There was no verdict.
        """
        status = await self._ask(
            _TOKEN_REVIEWS,
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token, "audiences": [self._audience]},
            },
        )
        # NB: an API server that knows no audiences leaves the list empty and means its own.
        if not status.get("authenticated") or self._audience not in (status.get("audiences") or ()):
            return None
        user = status.get("user")
        return user if isinstance(user, dict) else None

    async def may_invoke(self, caller: Caller, *, namespace: str, name: str) -> bool:
        """Return whether the caller may invoke an intent; empty names mean all of them.

        Raises:
            ReviewUnavailableError: There was no verdict.
        """
        status = await self._ask(
            _ACCESS_REVIEWS,
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": caller.username,
                    "uid": caller.uid,
                    "groups": list(caller.groups),
                    "extra": {key: list(values) for key, values in caller.extra.items()},
                    "resourceAttributes": {
                        "verb": "invoke",
                        "group": GROUP,
                        "resource": "inferenceintents",
                        "namespace": namespace,
                        "name": name,
                    },
                },
            },
        )
        return status.get("allowed") is True

    async def _ask(self, path: str, body: dict[str, Any]) -> Mapping[str, Any]:
        try:
            # The wait for a turn counts: a request must not hang behind a slow server's queue.
            async with asyncio.timeout(_TIMEOUT_SECONDS), self._slots:
                answer = await self._client.request(
                    "POST", path, body=body, timeout_seconds=_TIMEOUT_SECONDS
                )
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ReviewUnavailableError(
                f"{type(error).__name__}: {error}", outage=_is_outage(error)
            ) from error
        status = answer.get("status")
        return status if isinstance(status, dict) else {}


def _is_outage(error: Exception) -> bool:
    """Return whether an error is the API server's; a refused question says nothing of others."""
    if isinstance(error, ApiError):
        return error.code == 429 or error.code >= 500
    return not isinstance(error, ValueError) or isinstance(error, aiohttp.ClientError)
