"""What the planner is shown of a declared load, and what a restart takes up again of its variation."""

from __future__ import annotations

from tests.unit.reconcile.builders import SETTINGS, VERDICT, a_record
from trimtab.observe.caches import Caches
from trimtab.observe.capabilities import ASSUMED
from trimtab.observe.loads import LoadBook
from trimtab.planning.variation import Variation
from trimtab.reconcile.inferenceintent import jobs
from trimtab.reconcile.labels import Owner
from trimtab.reconcile.snapshot import (
    Surroundings,
    fleet_snapshot,
    parse_intent,
    planned_load,
    planned_variation,
)

BURSTS = Variation(gap=3.0, prompt=0.7)
SEEN = {
    "source": "Observed",
    "requestsPerSecond": "2",
    "promptTokens": 10,
    "outputTokens": 5,
    "gapVariation": "3",
    "promptVariation": "0.7",
    "outputVariation": "1",
}


def test_the_planner_sees_a_declared_load_as_uneven_as_it_is_known_to_be() -> None:
    """An edited load replaces what was observed, not how requests come."""
    caches, loads, record = Caches(), LoadBook(), a_record(load={"requestsPerSecond": "4"})
    caches.inferenceintents._store(record)
    source = jobs.source_digest(parse_intent(record).spec.model.source)
    owner = Owner(namespace=record.namespace, name=record.name, uid=record.uid)
    meta = {"name": jobs.facts_name(owner, source=source), "namespace": "trimtab-system"}
    caches.configmaps.put({"metadata": meta | {"uid": "x"}, "data": {"inspection.json": VERDICT}})
    loads.restore(record.uid, None, variation=BURSTS)
    (view,) = fleet_snapshot(
        caches, loads=loads, settings=SETTINGS, surroundings=Surroundings(capabilities=ASSUMED)
    ).intents
    assert view.load is not None
    assert view.load.requests_per_second == 4
    assert view.load.variation == BURSTS


def test_an_edit_while_nobody_looks_keeps_only_the_variation() -> None:
    """A status of the generation before says nothing of the load, but of how uneven it is."""
    status = {"observedGeneration": 1, "plan": {"load": SEEN}}
    edited = a_record(generation=2, status=status)
    assert planned_load(edited) is None
    assert planned_variation(edited) == BURSTS
    same = planned_load(a_record(generation=1, status=status))
    assert same is not None
    assert same.variation == BURSTS
    assert planned_variation(a_record()) == Variation()
