"""What all loops share: caches, the fleet's plan, and what pollers found out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trimtab.kube import names as object_names
from trimtab.observe.anchors import AnchorBook
from trimtab.observe.intents import Shown
from trimtab.observe.loads import LoadBook
from trimtab.planning.prices import PriceBook
from trimtab.reconcile.naming import ROUTES_KEY, model_name, routed_models

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from trimtab.observe.caches import Caches
    from trimtab.observe.records import IntentRecord
    from trimtab.observe.requests import Requested
    from trimtab.observe.traffic import Traffic
    from trimtab.observe.workers import EngineView, WorkerState
    from trimtab.planning.snapshot import EngineCapabilities
    from trimtab.reconcile.accuracy import AccuracyKeeper
    from trimtab.reconcile.fingerprints import FingerprintKeeper
    from trimtab.reconcile.fleet import FleetPlanner
    from trimtab.reconcile.stepping import Stepper
    from trimtab.settings import Settings


@dataclass(slots=True)
class World:
    """Everything can be rebuilt from the cluster; a restart loses nothing but a little patience."""

    settings: Settings
    caches: Caches
    clock: Callable[[], float]
    utcnow: Callable[[], datetime]
    capabilities: EngineCapabilities
    loads: LoadBook = field(default_factory=LoadBook)
    anchors: AnchorBook = field(default_factory=AnchorBook)
    worker_states: dict[str, WorkerState] = field(default_factory=dict)
    engines: dict[str, EngineView] = field(default_factory=dict)
    """By pod uid; moved at most once a minute, and when a model can be asked or no longer."""
    traffic: dict[str, Traffic] = field(default_factory=dict)
    """By `namespace/name` of the intent."""
    shown: dict[str, Shown] = field(default_factory=dict)
    """By uid of the intent."""
    gateway_answers: bool = False
    gateway_overhead_us: int = 0
    prices: PriceBook = field(default_factory=PriceBook)
    price_problem: str = ""
    foreign: dict[str, Requested] = field(default_factory=dict)
    fleet: FleetPlanner = field(init=False)
    fingerprints: FingerprintKeeper = field(init=False)
    accuracy: AccuracyKeeper = field(init=False)
    steps: Stepper | None = None
    """What each intent may do about its plan; None where plans are followed as they are."""
    _namesakes: dict[tuple[str, str], IntentRecord] | None = None

    def oldest_namesake(self, namespace: str, name: str) -> IntentRecord | None:
        """Return the oldest intent of a namespace that serves a model name."""
        if self._namesakes is None:
            self._namesakes = {}
            for record in sorted(self.caches.inferenceintents, key=lambda r: (r.created, r.uid)):
                if not record.deleting:
                    key = (record.namespace, model_name(record))
                    self._namesakes.setdefault(key, record)
        return self._namesakes.get((namespace, name))

    def names_changed(self) -> None:
        """Forget who serves which name: an intent came, went, or was edited."""
        self._namesakes = None

    def routed(self, namespace: str, model: str) -> str:
        """Return the Service that gateways send a model's requests to; empty where none."""
        record = self.caches.configmaps.get(
            self.settings.system_namespace, object_names.routes(namespace)
        )
        for entry in routed_models(record.data.get(ROUTES_KEY, "") if record else ""):
            if entry.get("name") == model:
                return str(entry.get("service") or "")
        return ""

    def shown_of(self, uid: str) -> Shown:
        """Return the observed figures of an intent as its status shows them."""
        return self.shown.get(uid, Shown())
