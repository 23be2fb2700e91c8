"""The operator's API client, plus watches: only this package knows the Kubernetes client."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from trimtab.kube.client import KubeClient
from trimtab.kube.errors import ApiError, parse_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_CONNECT_SECONDS: Final = 5.0


class WatchingClient(KubeClient):
    """Adds streaming to `trimtab.kube.client.KubeClient`, with its configuration and TLS."""

    async def watch(
        self, path: str, *, query: Mapping[str, str], silence_seconds: float
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield a watch's events until the server ends it.

        Args:
            path: Collection to watch.
            query: Its query, with `watch`, `resourceVersion` and `timeoutSeconds`.
            silence_seconds: With no byte for this long the connection counts as dead.

        Raises:
            ApiError: The server answered with 300 or more.
            aiohttp.ClientError, TimeoutError, ValueError: It stopped answering, or with garbage.
        """
        method, url, headers, payload, post = await self._api.param_serialize(
            "GET",
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        timeout = aiohttp.ClientTimeout(
            total=None, connect=_CONNECT_SECONDS, sock_read=silence_seconds
        )
        answer = await self._api.call_api(
            method, url, headers, payload, post, _request_timeout=timeout
        )
        response: aiohttp.ClientResponse = answer.response
        try:
            if response.status == HTTPStatus.UNAUTHORIZED:
                await self._reread_credentials()  # the token may have been rotated
            if response.status >= 300:
                status = parse_status(await response.read(), code=response.status)
                raise ApiError(method="GET", path=path, code=response.status, status=status)
            async for line in response.content:
                if line.strip():
                    yield json.loads(line)
        finally:
            response.close()
