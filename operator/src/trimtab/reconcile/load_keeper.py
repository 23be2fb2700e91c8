"""Load histories survive restarts: a ConfigMap per namespace, written rarely (joints.md §4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog

from trimtab.api.v1alpha1.names import COMPONENT_LABEL, INTENT_NAMESPACE_LABEL
from trimtab.kube import names as object_names
from trimtab.kube.errors import refused
from trimtab.kube.resources import CONFIG_MAP
from trimtab.planning.load_history import LoadHistoryInvalidError, dump, parse
from trimtab.reconcile.labels import shared_labels
from trimtab.reconcile.plan import Deletion

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from trimtab.kube.resources import Manifest
    from trimtab.observe.records import ConfigMapRecord
    from trimtab.planning.load_history import Bucket, LoadHistory
    from trimtab.reconcile.execute import Executor
    from trimtab.reconcile.world import World

    _Newest = dict[str, Bucket | None]

_log = structlog.get_logger(__name__)

LOADS_SECONDS: Final = 600.0
LOAD_KEY: Final = "load.json"
_COMPONENT: Final = "load"


class LoadKeeper:
    """Writes what arrived, at most every ten minutes; nobody else does."""

    def __init__(self, world: World, *, executor: Executor) -> None:
        self._world = world
        self._executor = executor
        self._began = False
        self._written: dict[str, tuple[str, _Newest]] = {}

    def recall(self) -> None:
        """Take up what was written before a restart; what cannot be read starts anew."""
        caches = self._world.caches
        by_name = {(r.namespace, r.name): r.uid for r in caches.inferenceintents}
        for record in self._kept():
            namespace = record.labels.get(INTENT_NAMESPACE_LABEL, "")
            try:
                histories = parse(record.data.get(LOAD_KEY, ""))
            except LoadHistoryInvalidError as error:
                _log.warning("load_history_invalid", name=record.name, error=str(error))
                continue
            for name, history in histories.items():
                uid = by_name.get((namespace, name))
                if uid is not None:
                    self._world.loads.recall(uid, history)

    async def step(self) -> None:
        """Write what changed; the first time there is nothing new."""
        if not self._began:
            self._began = True
            return
        wanted: dict[str, dict[str, LoadHistory]] = {}
        for record in self._world.caches.inferenceintents:
            history = self._world.loads.history(record.uid)
            if history.buckets or history.peaks:
                wanted.setdefault(record.namespace, {})[record.name] = history
        kept = {record.name: record for record in self._kept()}
        for namespace, histories in sorted(wanted.items()):
            text, name = dump(histories), object_names.load_history(namespace)
            live = kept.pop(name, None)
            before, newest = self._written.get(name), _newest(histories)
            untouched = live is not None and before == (live.data.get(LOAD_KEY), newest)
            # Where nobody asked since, only the end of what is known has moved: no news.
            if live is None or not (untouched or live.data.get(LOAD_KEY) == text):
                manifest = self._config_map(name, namespace, text)
                if await self._done(name, self._executor.apply(manifest)):
                    self._written[name] = text, newest
        for left in kept.values():
            deletion = Deletion(
                resource=CONFIG_MAP, namespace=left.namespace, name=left.name, uid=left.uid
            )
            await self._done(left.name, self._executor.delete(deletion))

    async def _done(self, name: str, write: Awaitable[object]) -> bool:
        """Await a write; one that is refused keeps nobody else's history from being written."""
        try:
            await write
        except Exception as error:
            fault = refused(error)
            if fault is None:
                raise
            _log.warning("load_history_refused", name=name, error=fault.message)
            return False
        return True

    def _kept(self) -> list[ConfigMapRecord]:
        system = self._world.settings.system_namespace
        found = [
            record
            for record in self._world.caches.configmaps
            if record.namespace == system and record.labels.get(COMPONENT_LABEL) == _COMPONENT
        ]
        return sorted(found, key=lambda r: r.name)

    def _config_map(self, name: str, namespace: str, text: str) -> Manifest:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": self._world.settings.system_namespace,
                "labels": shared_labels(_COMPONENT, instance=name)
                | {INTENT_NAMESPACE_LABEL: namespace},
            },
            "data": {LOAD_KEY: text},
        }


def _newest(histories: Mapping[str, LoadHistory]) -> _Newest:
    """Return when something last arrived for each intent, and how much."""
    return {name: h.buckets[-1] if h.buckets else None for name, h in histories.items()}
