"""The routing table per namespace (contracts §8): pure content, and the one writer of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from trimtab.api.v1alpha1.names import COMPONENT_LABEL, GROUP_LABEL, INTENT_NAMESPACE_LABEL
from trimtab.kube import names as object_names
from trimtab.kube.resources import CONFIG_MAP
from trimtab.observe.digests import digest
from trimtab.observe.workers import SERVING_STATES
from trimtab.reconcile.labels import shared_labels
from trimtab.reconcile.naming import ROUTES_KEY, model_name, routed_models
from trimtab.reconcile.plan import Deletion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trimtab.kube.resources import Manifest
    from trimtab.observe.caches import Caches
    from trimtab.observe.records import IntentRecord, Record
    from trimtab.reconcile.execute import Executor
    from trimtab.reconcile.world import World


def models(
    namespace: str,
    caches: Caches,
    *,
    service: Callable[[IntentRecord, tuple[Record, ...]], str],
    grants_bare_names: bool,
) -> list[dict[str, Any]]:
    """Return the models of a namespace that have a Service, oldest namesake only.

    Args:
        namespace: Whose table it is.
        caches: Where intents and Services are.
        service: Chooses among an intent's Services; empty where none serves it yet.
        grants_bare_names: With `gateway.auth: None` the oldest intent of all namespaces holds
            the bare name; otherwise the gateway resolves it among the caller's rights.
    """
    holders = _oldest(caches.inferenceintents, by=model_name) if grants_bare_names else {}
    found = []
    local = _oldest((r for r in caches.inferenceintents if r.namespace == namespace), by=model_name)
    for record in sorted(local.values(), key=lambda r: r.name):
        # By label anybody can claim an owner, so only the intent's own namespace counts.
        services = [s for s in caches.services.owned_by(record.uid) if s.namespace == namespace]
        chosen = service(record, tuple(services)) if services else ""
        if not chosen:
            continue
        name = model_name(record)
        found.append(
            {
                "name": name,
                "intent": record.name,
                "bare": grants_bare_names and holders[name].uid == record.uid,
                "service": chosen,
                "mix": None,
                "pods": {},
            }
        )
    return found


def serves(world: World, record: IntentRecord, service: Record) -> bool:
    """Whether a ready pod of a Service has an intent's model."""
    group = service.labels.get(GROUP_LABEL, "")
    name = f"{record.namespace}/{model_name(record)}"
    for pod in world.caches.pods.owned_by(group or record.uid):
        state = world.worker_states.get(pod.uid)
        here = pod.namespace == record.namespace and pod.labels.get(GROUP_LABEL, "") == group
        if not (here and pod.ready and not pod.deleting and state is not None):
            continue
        if any(m.name == name and m.state in SERVING_STATES for m in state.models):
            return True
    return False


def _oldest(records: Iterable[IntentRecord], *, by: Any) -> dict[str, IntentRecord]:
    oldest: dict[str, IntentRecord] = {}
    for record in sorted(records, key=lambda r: (r.created, r.uid)):
        if not record.deleting:
            oldest.setdefault(by(record), record)
    return oldest


class RoutesKeeper:
    """Writes the tables; nobody else does."""

    def __init__(
        self, *, world: World, executor: Executor, wake: Callable[[str, str], None]
    ) -> None:
        """Prepare; `wake` is told whose requests go elsewhere now."""
        self._wake = wake
        self._world = world
        self._caches = world.caches
        self._executor = executor
        self._settings = world.settings

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

    def _service(self, record: IntentRecord, services: tuple[Record, ...]) -> str:
        """Return the Service of the worker that serves an intent.

        Requests move only to a worker that is known to have the model, and stay where they are
        until then: nobody is sent from what serves to what is about to. A worker of a group is
        no place for a model that it does not have, while one of its own holds requests up.
        """
        names = {s.name: s for s in services}
        plan = self._world.fleet.of(record.uid, generation=record.generation)
        now = self._world.routed(record.namespace, model_name(record))
        wanted = (
            object_names.group_worker(plan.group.id)
            if plan is not None and plan.group is not None
            else object_names.deployment(record.name, record.uid)
        )
        if wanted in names and serves(self._world, record, names[wanted]):
            return wanted
        if now in names:
            return now
        serving = (name for name in sorted(names) if serves(self._world, record, names[name]))
        own = (name for name in sorted(names) if GROUP_LABEL not in names[name].labels)
        return next(serving, "") or next(own, "")

    async def _write(self, namespace: str) -> None:
        content = models(
            namespace,
            self._caches,
            service=self._service,
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
        self._tell(namespace, routed_models(live.data.get(ROUTES_KEY, "") if live else ""), content)

    def _tell(
        self, namespace: str, before: list[dict[str, Any]], after: list[dict[str, Any]]
    ) -> None:
        """Wake whose worker was waiting for requests to go elsewhere."""
        old = {entry.get("intent"): entry.get("service") for entry in before}
        for entry in after:
            record = self._caches.inferenceintents.get(namespace, entry["intent"])
            if record is not None and old.get(entry["intent"]) != entry["service"]:
                self._wake(record.uid, "routes")

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
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
