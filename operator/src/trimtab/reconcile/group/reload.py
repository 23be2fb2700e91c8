"""Brings a changed model set to the workers that run: annotate, ask, look (joints.md §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from trimtab.api.v1alpha1.names import (
    COMPONENT_LABEL,
    GROUP_LABEL,
    MODEL_SET_REVISION_ANNOTATION,
    PLAN_DIGEST_ANNOTATION,
)
from trimtab.kube import names as object_names
from trimtab.kube.errors import ApiError
from trimtab.reconcile.group.decide import parse_set

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trimtab.observe.records import PodRecord
    from trimtab.observe.workers import AdminClient
    from trimtab.reconcile.world import World

_log = structlog.get_logger(__name__)

AGAIN_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 120.0
"""A kubelet brings a file within 90 s; what takes longer is looked at as seldom as it is asked."""
ASK_AGAIN_SECONDS: Final = 30.0
"""A worker that was asked polls its file by itself; it is asked again in case it restarted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lagging:
    """A pod whose worker has an older model set than its ConfigMap."""

    pod: PodRecord
    revision: int


def lagging(world: World) -> Iterator[Lagging]:
    """Yield running pods of groups whose workers have not taken their set over."""
    for pod in world.caches.pods:
        group = pod.labels.get(GROUP_LABEL, "")
        worker = pod.labels.get(COMPONENT_LABEL) == "worker"
        if not (group and worker and pod.running and pod.address) or pod.deleting:
            continue
        name = object_names.model_set(
            object_names.group_worker(group), pod.annotations.get(PLAN_DIGEST_ANNOTATION, "")
        )
        record = world.caches.configmaps.get(pod.namespace, name)
        revision = parse_set(record).get("revision") if record is not None else None
        state = world.worker_states.get(pod.uid)
        if type(revision) is int and state is not None and state.revision < revision:
            yield Lagging(pod=pod, revision=revision)


class ReloadKeeper:
    """Patches the annotation that makes kubelets sync at once, then asks workers to reload."""

    def __init__(
        self,
        world: World,
        admin: AdminClient,
        *,
        annotate: Callable[[PodRecord, str, str], Awaitable[None]],
        poll: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            world: What is known.
            admin: Reaches workers.
            annotate: Writes one annotation of a pod.
            poll: Reads workers' states soon.
        """
        self._world = world
        self._admin = admin
        self._annotate = annotate
        self._poll = poll
        self._asked: dict[str, tuple[int, float]] = {}
        self._since: dict[tuple[str, int], float] = {}

    async def step(self) -> float | None:
        """Serve every pod that lags; return when to look again."""
        behind = sorted(lagging(self._world), key=lambda one: one.pod.uid)
        uids = {one.pod.uid for one in behind}
        self._asked = {uid: asked for uid, asked in self._asked.items() if uid in uids}
        for one in behind:
            await self._bring(one)
        now, seconds = self._world.clock(), self._world.settings.policy_seconds
        self._since = {
            k: self._since.get(k, now) for k in ((b.pod.uid, b.revision) for b in behind)
        }
        if not behind:
            return None
        if now - max(self._since.values()) >= seconds(PATIENCE_SECONDS):
            return seconds(ASK_AGAIN_SECONDS)
        self._poll()
        return AGAIN_SECONDS

    async def _bring(self, one: Lagging) -> None:
        pod, wanted = one.pod, str(one.revision)
        if pod.annotations.get(MODEL_SET_REVISION_ANNOTATION) != wanted:
            try:
                await self._annotate(pod, MODEL_SET_REVISION_ANNOTATION, wanted)
            except ApiError as error:
                if error.code == 404:
                    return
                # The file comes without it too, only later; the worker waits for it.
                _log.warning("pod_not_annotated", pod=pod.name, error=str(error))
        now = self._world.clock()
        revision, at = self._asked.get(pod.uid, (0, float("-inf")))
        rest = self._world.settings.policy_seconds(ASK_AGAIN_SECONDS)
        if revision == one.revision and now - at < rest:
            return
        if await self._admin.post(pod.address, f"/-/reload?revision={wanted}"):
            self._asked[pod.uid] = (one.revision, now)
            _log.info("reload_asked", pod=pod.name, revision=one.revision)
