"""Reads where the models' claims can be mounted: one pod cannot have volumes of two nodes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from trimtab.kube.errors import ApiError
from trimtab.kube.resources import CLAIM, VOLUME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trimtab.kube.client import KubeClient
    from trimtab.kube.resources import Manifest
    from trimtab.observe.records import IntentRecord

_log = structlog.get_logger(__name__)

AGAIN_SECONDS: Final = 300.0
"""A bound claim keeps its volume; only another claim of the name has another."""
_TOGETHER: Final = 16


class VolumeReader:
    """Keeps the PersistentVolumes of the claims that Shared intents name."""

    def __init__(self, client: KubeClient, *, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[float, Manifest]] = {}

    async def read(self, records: Iterable[IntentRecord]) -> dict[tuple[str, str], Manifest]:
        """Return the volumes by namespace and claim; who may not be read or is unbound has none.

        Raises:
            ApiError: The server failed; a plan without the answer could roll a group out for ever.
            aiohttp.ClientError, TimeoutError: It did not answer.
        """
        wanted = {claim for record in records if (claim := _claim(record)) is not None}
        now = self._clock()
        self._known = {
            claim: (at, volume)
            for claim, (at, volume) in self._known.items()
            if claim in wanted and now - at < AGAIN_SECONDS
        }
        unknown = sorted(wanted - self._known.keys())
        # A plan waits for the answers, so they are asked for together; in parts, to be kind.
        for start in range(0, len(unknown), _TOGETHER):
            part = unknown[start : start + _TOGETHER]
            volumes = await asyncio.gather(*(self._volume(*claim) for claim in part))
            for claim, volume in zip(part, volumes, strict=True):
                if volume is not None:
                    self._known[claim] = (now, volume)
        return {claim: volume for claim, (_, volume) in self._known.items()}

    async def _volume(self, namespace: str, name: str) -> Manifest | None:
        try:
            claim = await self._client.get(CLAIM, namespace=namespace, name=name)
            bound = str(((claim or {}).get("spec") or {}).get("volumeName") or "")
            return await self._client.get(VOLUME, namespace=None, name=bound) if bound else None
        except ApiError as error:
            if error.code != 403:
                raise
            # A role of an older chart: sharing goes on without this check.
            _log.warning("volume_not_read", claim=f"{namespace}/{name}", error=str(error))
            return None


def _claim(record: IntentRecord) -> tuple[str, str] | None:
    """Return the namespace and claim of a Shared intent's model, None where it lies elsewhere."""
    if record.deleting or record.spec.get("sharing") != "Shared":
        return None
    source = (record.spec.get("model") or {}).get("source") or {}
    name = (source.get("persistentVolumeClaim") or {}).get("claimName")
    return (record.namespace, str(name)) if name else None
