"""Everything the operator writes goes through here: fenced, paced, counted, attributed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

from trimtab.kube.client import APPLY, JSON, MERGE
from trimtab.kube.errors import ApiError, Fault, FaultKind, NotLeadingError, classify
from trimtab.kube.resources import EVENT, Resource, resource_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trimtab.kube.client import KubeClient
    from trimtab.kube.resources import Manifest

WRITE_TIMEOUT_SECONDS: Final = 5.0
"""Renew deadline (10 s) plus this is the Lease's 15 s: an old leader is silent in time."""

WRITES_PER_SECOND: Final = 50.0
BURST: Final = 100.0


class WriteObserver(Protocol):
    """Counts writes; telemetry implements it, so that kube knows no metrics library."""

    def wrote(self, *, kind: str, verb: str, result: str) -> None:
        """One write of a kind ended with a result (`ok` or a fault's name)."""

    def forbidden(self, *, verb: str, resource: str) -> None:
        """A right is missing."""


class TokenBucket:
    """Admits `rate` writes per second on average and at most `burst` at once."""

    def __init__(
        self,
        *,
        rate_per_second: float,
        burst: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate_per_second
        self._burst = burst
        self._clock = clock
        self._sleep = sleep
        self._tokens = burst
        self._then = clock()

    async def take(self) -> None:
        """Wait until one write may start."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
        self._then = now
        self._tokens -= 1
        if self._tokens < 0:
            # The debt is booked before the wait, so that waiters queue up one behind the other.
            await self._sleep(-self._tokens / self._rate)


class Writer:
    """Applies, deletes and posts as one manager, while it may."""

    def __init__(
        self,
        client: KubeClient,
        *,
        bucket: TokenBucket,
        may_write: Callable[[], bool],
        observer: WriteObserver,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._may_write = may_write
        self._observer = observer

    @property
    def manager(self) -> str:
        """The field manager of every apply."""
        return self._client.manager

    async def apply(self, manifest: Manifest, *, force: bool = True, manager: str = "") -> Manifest:
        """Apply an own object on the server side and return it as it now is.

        Args:
            manifest: All that the manager has in the object: what it leaves out is deleted.
            force: Takes fields from other managers: right for our children, never for users' objects.
            manager: Who owns the fields; the operator itself if empty.
        """
        resource = resource_of(manifest)
        meta = manifest["metadata"]
        path = resource.path(namespace=meta.get("namespace"), name=meta["name"])
        return await self._write(
            "PATCH",
            path,
            resource,
            query={"fieldManager": manager or self.manager, "force": str(force).lower()},
            body=manifest,
            content_type=APPLY,
        )

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Apply the status of an object; `manifest` holds apiVersion, kind, names and status."""
        resource = resource_of(manifest)
        meta = manifest["metadata"]
        path = resource.path(
            namespace=meta.get("namespace"), name=meta["name"], subresource="status"
        )
        return await self._write(
            "PATCH",
            path,
            resource,
            query={"fieldManager": self.manager, "force": "true"},
            body=manifest,
            content_type=APPLY,
        )

    async def delete(
        self,
        resource: Resource,
        *,
        namespace: str | None,
        name: str,
        uid: str,
        resource_version: str = "",
    ) -> bool:
        """Delete exactly this object, dependants in the background; False where it was gone.

        Raises:
            ApiError: 409 where uid or resourceVersion are no longer those of the object.
        """
        preconditions = {"uid": uid}
        if resource_version:
            preconditions["resourceVersion"] = resource_version
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": preconditions,
        }
        try:
            await self._write(
                "DELETE", resource.path(namespace=namespace, name=name), resource, body=body
            )
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        return True

    async def post_event(self, manifest: Manifest) -> bool:
        """Create an Event; False where one of that name exists (a transition told before)."""
        path = EVENT.path(namespace=manifest["metadata"]["namespace"])
        try:
            await self._write("POST", path, EVENT, body=manifest)
        except ApiError as error:
            if error.code == 409:
                return False
            raise
        return True

    async def annotate(
        self, resource: Resource, *, namespace: str, name: str, uid: str, key: str, value: str
    ) -> Manifest:
        """Set one annotation of exactly this object and return it as it now is.

        Raises:
            ApiError: 409 where another object has the name now.
        """
        return await self._write(
            "PATCH",
            resource.path(namespace=namespace, name=name),
            resource,
            query={"fieldManager": self.manager},
            body={"metadata": {"uid": uid, "annotations": {key: value}}},
            content_type=MERGE,
        )

    async def set_finalizers(
        self,
        resource: Resource,
        *,
        namespace: str | None,
        name: str,
        resource_version: str,
        finalizers: list[str],
    ) -> Manifest:
        """Replace an object's finalizers if it has not changed since `resource_version`."""
        return await self._write(
            "PATCH",
            resource.path(namespace=namespace, name=name),
            resource,
            query={"fieldManager": self.manager},
            body={"metadata": {"finalizers": finalizers, "resourceVersion": resource_version}},
            content_type=MERGE,
        )

    async def _write(
        self,
        method: str,
        path: str,
        resource: Resource,
        *,
        body: Any,
        query: dict[str, str] | None = None,
        content_type: str = JSON,
    ) -> Manifest:
        await self._bucket.take()
        if not self._may_write():
            raise NotLeadingError(
                f"{method} {path} was not sent: the last renewal of the Lease is too old, "
                "another replica may lead."
            )
        verb = {"PATCH": "apply", "DELETE": "delete", "POST": "create"}[method]
        try:
            # Over all attempts: a 401 is tried again, and the Lease must outlast both.
            async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
                answer = await self._client.request(
                    method,
                    path,
                    query=query,
                    body=body,
                    content_type=content_type,
                    timeout_seconds=WRITE_TIMEOUT_SECONDS,
                )
        except Exception as error:
            fault = classify(error)
            self._observer.wrote(kind=resource.kind, verb=verb, result=_result(fault))
            if fault is not None and fault.kind is FaultKind.MISSING_PERMISSION:
                self._observer.forbidden(verb=fault.verb, resource=fault.resource)
            raise
        self._observer.wrote(kind=resource.kind, verb=verb, result="ok")
        return answer


def _result(fault: Fault | None) -> str:
    return "Bug" if fault is None else fault.kind.value
