"""The one road to the API server: JSON in, JSON out, every request with a time-out.

Built on `kubernetes.aio` for configuration, TLS and token refresh. Its typed models are left
aside: reading one Pod into them takes 20 times as long as `json.loads`, and they drop fields
that are newer than the client.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from trimtab import __version__
from trimtab.kube.errors import ApiError, parse_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from typing import Self

    from trimtab.kube.resources import Manifest, Resource

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"

_METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_TIMEOUT_SECONDS: Final = 10.0
_LIST_TIMEOUT_SECONDS: Final = 30.0
_PAGE: Final = 500


async def configuration() -> Configuration:
    """Return how to reach the API server: `KUBECONFIG` if set, else the pod's own account.

    Raises:
        kubernetes.aio.config.ConfigException: Neither exists.
    """
    config = Configuration()
    if path := os.environ.get("KUBECONFIG"):
        # Named here, because the client reads the variable at import and never again.
        await load_kube_config(config_file=path, client_configuration=config)
    else:
        load_incluster_config(client_configuration=config)
    return config


class KubeClient:
    """Requests to one API server; use as an async context manager."""

    def __init__(self, config: Configuration, *, manager: str) -> None:
        config.client_side_validation = False
        self._config = config
        self._api = ApiClient(config)
        self._api.user_agent = f"{manager}/{__version__}"
        self.manager = manager

    @classmethod
    async def connect(cls, *, manager: str) -> Self:
        """Return a client for the configured API server; no request is made yet."""
        return cls(await configuration(), manager=manager)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str = JSON,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> Manifest:
        """Send one request and return the answer's JSON object.

        A 401 is tried once more with the token read again: it may have been rotated.

        Raises:
            ApiError: The server answered with 300 or more.
            aiohttp.ClientError, TimeoutError: It did not answer.
        """
        rest: dict[str, Any] = {
            "query": query,
            "body": body,
            "content_type": content_type,
            "accept": accept,
            "timeout_seconds": timeout_seconds,
        }
        try:
            return await self._send(method, path, **rest)
        except ApiError as error:
            if error.code != 401:
                raise
            await self._reread_credentials()
            return await self._send(method, path, **rest)

    async def text(self, path: str) -> str:
        """Return the body of a GET as it is: what a pod answers through the API server's proxy.

        Raises:
            ApiError: The server answered with 300 or more.
            aiohttp.ClientError, TimeoutError: It did not answer.
        """
        data = await self._answer(
            "GET",
            path,
            query=None,
            body=None,
            content_type=JSON,
            accept="*/*",
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        return data.decode(errors="replace")

    async def _send(self, method: str, path: str, **rest: Any) -> Manifest:
        parsed = json.loads(await self._answer(method, path, **rest))
        if not isinstance(parsed, dict):
            raise ApiError(
                method=method,
                path=path,
                code=200,
                status={"message": "the answer is not a JSON object"},
            )
        return parsed

    async def _answer(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        accept: str,
        timeout_seconds: float,
    ) -> bytes:
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        method, url, headers, payload, post = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._api.call_api(
            method, url, headers, payload, post, _request_timeout=timeout_seconds
        )
        data: bytes = await answer.read()
        if answer.status >= 300:
            raise ApiError(
                method=method,
                path=path,
                code=answer.status,
                status=parse_status(data, code=answer.status),
                retry_after_seconds=_seconds(answer.getheader("Retry-After")),
            )
        return data

    async def _reread_credentials(self) -> None:
        fresh = await configuration()
        self._config.api_key = fresh.api_key
        self._config.refresh_api_key_hook = fresh.refresh_api_key_hook

    async def get(self, resource: Resource, *, namespace: str | None, name: str) -> Manifest | None:
        """Return the object, or None where it does not exist.

        Raises:
            ApiError: Any other answer; a failed read is not "absent".
        """
        try:
            return await self.request("GET", resource.path(namespace=namespace, name=name))
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def items(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        metadata_only: bool = False,
    ) -> AsyncIterator[Manifest]:
        """Yield the objects of a collection, page by page.

        Raises:
            ApiError: 410 where the list took longer than the server keeps its snapshot.
        """
        query = {"limit": str(_PAGE)}
        if label_selector:
            query["labelSelector"] = label_selector
        if field_selector:
            query["fieldSelector"] = field_selector
        while True:
            page = await self.request(
                "GET",
                resource.path(namespace=namespace),
                query=query,
                accept=_METADATA if metadata_only else JSON,
                timeout_seconds=_LIST_TIMEOUT_SECONDS,
            )
            for item in page.get("items") or ():
                item.setdefault("apiVersion", resource.api_version)
                item["kind"] = resource.kind
                yield item
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            query["continue"] = token


def _seconds(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        return None
