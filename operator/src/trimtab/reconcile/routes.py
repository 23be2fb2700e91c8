"""The routing table per namespace (contracts §8): pure content, and the one writer of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from trimtab.api.v1alpha1.names import COMPONENT_LABEL, INTENT_NAMESPACE_LABEL
from trimtab.kube import names as object_names
from trimtab.kube.resources import CONFIG_MAP
from trimtab.observe.digests import digest
from trimtab.reconcile.labels import shared_labels
from trimtab.reconcile.naming import model_name
from trimtab.reconcile.plan import Deletion

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trimtab.kube.resources import Manifest
    from trimtab.observe.caches import Caches
    from trimtab.observe.records import IntentRecord
    from trimtab.reconcile.execute import Executor
    from trimtab.settings import Settings

ROUTES_KEY: Final = "routes.json"


def models(namespace: str, caches: Caches, *, grants_bare_names: bool) -> list[dict[str, Any]]:
    """Return the models of a namespace that have a Service, oldest namesake only.

    Args:
        namespace: Whose table it is.
        caches: Where intents and Services are.
        grants_bare_names: With `gateway.auth: None` the oldest intent of all namespaces holds
            the bare name; otherwise the gateway resolves it among the caller's rights.
    """
    holders = _oldest(caches.inferenceintents, by=model_name) if grants_bare_names else {}
    found = []
    local = _oldest((r for r in caches.inferenceintents if r.namespace == namespace), by=model_name)
    for record in sorted(local.values(), key=lambda r: r.name):
        # By label anybody can claim an owner, so only the intent's own namespace counts.
        services = [s for s in caches.services.owned_by(record.uid) if s.namespace == namespace]
        if not services:
            continue
        name = model_name(record)
        found.append(
            {
                "name": name,
                "intent": record.name,
                "bare": grants_bare_names and holders[name].uid == record.uid,
                "service": services[0].name,
                "mix": None,
                "pods": {},
            }
        )
    return found


def _oldest(records: Iterable[IntentRecord], *, by: Any) -> dict[str, IntentRecord]:
    oldest: dict[str, IntentRecord] = {}
    for record in sorted(records, key=lambda r: (r.created, r.uid)):
        if not record.deleting:
            oldest.setdefault(by(record), record)
    return oldest


class RoutesKeeper:
    """Writes the tables; nobody else does."""

    def __init__(self, *, caches: Caches, executor: Executor, settings: Settings) -> None:
        self._caches = caches
        self._executor = executor
        self._settings = settings

    async def step(self) -> None:
        """Bring every table in line with the intents."""
        system = self._settings.system_namespace
        wanted = sorted({r.namespace for r in self._caches.inferenceintents})
        for namespace in wanted:
            await self._write(namespace)
        keep = {object_names.routes(namespace) for namespace in wanted}
        for record in self._caches.configmaps:
            routes = record.labels.get(COMPONENT_LABEL) == "routes"
            if record.namespace == system and routes and record.name not in keep:
                await self._executor.delete(
                    Deletion(
                        resource=CONFIG_MAP, namespace=system, name=record.name, uid=record.uid
                    )
                )

    async def _write(self, namespace: str) -> None:
        content = models(
            namespace,
            self._caches,
            grants_bare_names=self._settings.gateway_auth == "None",
        )
        name = object_names.routes(namespace)
        live = self._caches.configmaps.get(self._settings.system_namespace, name)
        if live is None and not content:
            return
        before = _parsed(live.data.get(ROUTES_KEY, "") if live else "")
        revision = int(before.get("revision") or 0)
        if live is None or digest(before.get("models")) != digest(content):
            revision += 1
        await self._executor.apply(
            self._config_map(name, namespace, revision=revision, content=content)
        )

    def _config_map(
        self, name: str, namespace: str, *, revision: int, content: list[dict[str, Any]]
    ) -> Manifest:
        document = {"v": 1, "revision": revision, "namespace": namespace, "models": content}
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name,
                "namespace": self._settings.system_namespace,
                "labels": shared_labels("routes", instance=name)
                | {INTENT_NAMESPACE_LABEL: namespace},
            },
            "data": {ROUTES_KEY: json.dumps(document, sort_keys=True)},
        }


def _parsed(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
