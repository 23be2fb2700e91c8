"""Takes Trimtab's finalizer off objects: without an operator they would hang in deletion."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.names import FINALIZER
from trimtab.kube.errors import ApiError
from trimtab.kube.resources import FUNCTION, INTENT, PROFILE, Resource
from trimtab.kube.writer import BURST, WRITES_PER_SECOND, TokenBucket, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab.kube.client import KubeClient
    from trimtab.kube.resources import Manifest

_KINDS: Final = (INTENT, FUNCTION, PROFILE)
_ATTEMPTS: Final = 3


class _Uncounted:
    def wrote(self, *, kind: str, verb: str, result: str) -> None: ...

    def forbidden(self, *, verb: str, resource: str) -> None: ...


async def release(writer: Writer, resource: Resource, item: Manifest) -> bool:
    """Remove Trimtab's finalizer from one object and keep all others; False where it has none.

    Raises:
        ApiError: 409 where the object changed since it was read.
    """
    meta = item["metadata"]
    finalizers = meta.get("finalizers") or []
    if FINALIZER not in finalizers:
        return False
    try:
        await writer.set_finalizers(
            resource,
            namespace=meta.get("namespace"),
            name=meta["name"],
            resource_version=meta["resourceVersion"],
            finalizers=[f for f in finalizers if f != FINALIZER],
        )
    except ApiError as error:
        if error.code == 404:
            return False
        raise
    return True


async def release_all(
    client: KubeClient, *, on_released: Callable[[str, str | None, str], None] | None = None
) -> int:
    """Remove Trimtab's finalizer from every object of its kinds; return how many had it.

    For `trimtab finalizers release`, run when the operator is uninstalled for good. Kinds whose
    definition is not installed are passed over; an object that changes meanwhile is read again.

    Args:
        client: Connected with the rights of the chart's release hook.
        on_released: Called with kind, namespace and name of each object.

    Raises:
        ApiError: The API server refuses; what was released before stays released.
    """
    writer = Writer(
        client,
        bucket=TokenBucket(rate_per_second=WRITES_PER_SECOND, burst=BURST, clock=time.monotonic),
        may_write=lambda: True,
        observer=_Uncounted(),
    )
    released = 0
    for resource in _KINDS:
        try:
            items = [item async for item in client.items(resource, metadata_only=True)]
        except ApiError as error:
            if error.code == 404:
                continue
            raise
        for item in items:
            if await _release_persistently(client, writer, resource, item):
                released += 1
                if on_released is not None:
                    meta = item["metadata"]
                    on_released(resource.kind, meta.get("namespace"), meta["name"])
    return released


async def _release_persistently(
    client: KubeClient, writer: Writer, resource: Resource, item: Manifest
) -> bool:
    meta = item["metadata"]
    current: Manifest | None = item
    for attempt in range(_ATTEMPTS):
        if current is None:
            return False
        try:
            return await release(writer, resource, current)
        except ApiError as error:
            if error.code != 409 or attempt + 1 == _ATTEMPTS:
                raise
        current = await client.get(resource, namespace=meta.get("namespace"), name=meta["name"])
    return False
