"""What becomes of measurements that nobody uses."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.planning.builders import a_fingerprint, a_fleet, a_key, a_model, an_intent
from tests.unit.reconcile.builders import SETTINGS
from trimtab.kube.errors import ApiError
from trimtab.observe.caches import Caches
from trimtab.reconcile.fleet import Planned
from trimtab.reconcile.labels import shared_labels
from trimtab.reconcile.unused import Pruner
from trimtab.telemetry import metrics

USED, IDLE = a_fingerprint(key=a_key()), a_fingerprint(key=a_key(precision="fp32"))
FP_USED, FP_IDLE = (f"fp-{one.key.digest()}" for one in (USED, IDLE))
ACC_USED, ACC_IDLE = "acc-00000000000000aa-int8", "acc-00000000000000bb-int8"
START = datetime(2026, 11, 23, tzinfo=UTC)


class Town:
    """Two measurements that a plan may rest on, and two that none does; time in days."""

    def __init__(self, **settings: Any) -> None:
        self.caches = Caches()
        self.days = 0.0
        self.version = 0
        self.noted: list[str] = []
        self.deleted: list[str] = []
        self.fault: Exception | None = None
        view = dataclasses.replace(
            an_intent(), model=dataclasses.replace(a_model(), identity=ACC_USED.split("-")[1])
        )
        snapshot = a_fleet(view, fingerprints=(USED,))
        world: Any = SimpleNamespace(
            caches=self.caches,
            settings=SETTINGS.model_copy(update=settings),
            clock=lambda: self.days * 86400,
            utcnow=lambda: START + timedelta(days=self.days),
            fleet=SimpleNamespace(current=Planned(revision=1, snapshot=snapshot, by_uid={})),
        )
        self.world = world
        self.pruner = Pruner(world, executor=self)  # type: ignore[arg-type] - annotates and deletes
        for name in (FP_USED, FP_IDLE, ACC_USED, ACC_IDLE):
            self.put(name)

    def put(self, name: str, *, manager: str = "trimtab-operator", **annotations: str) -> None:
        """Have a ConfigMap as a Job's keeper writes it, or as ``manager`` edited it."""
        self.version += 1
        fingerprint = name.startswith("fp-")
        key = "fingerprint.json" if fingerprint else "accuracy.json"
        written = {"manager": manager, "fieldsV1": {"f:data": {f"f:{key}": {}}}}
        meta = {
            "name": name,
            "namespace": SETTINGS.system_namespace,
            "uid": f"uid-{name}",
            "resourceVersion": str(self.version),
            "creationTimestamp": "2026-11-23T00:00:00Z",
            "labels": shared_labels("fingerprint" if fingerprint else "accuracy", instance=name),
            "annotations": annotations or ({"trimtab.dev/answers": "k"} if fingerprint else {}),
            "managedFields": [written],
        }
        self.caches.configmaps.put({"metadata": meta, "data": {key: "{}"}})

    async def annotate(self, record: Any, key: str, value: str, *, resource: Any) -> None:
        assert resource.plural == "configmaps"
        self.noted.append(record.name)
        self.put(record.name, **{**record.annotations, key: value})

    async def delete(self, deletion: Any) -> None:
        if self.fault is not None:
            raise self.fault
        assert deletion.resource_version == str(
            self.caches.configmaps.by_uid(deletion.uid).resource_version  # type: ignore[union-attr]
        )
        self.deleted.append(deletion.name)
        self.caches.configmaps.forget(deletion.uid)

    async def live(self, days: float, *, hours: float = 12.0) -> None:
        """Let days pass with looks so many hours apart, and one at the end."""
        end = self.days + days
        while self.days < end:
            await self.pruner.step()
            self.days = min(end, self.days + hours / 24)
        await self.pruner.step()


async def test_what_nothing_used_for_thirty_days_goes_and_what_is_used_stays() -> None:
    """Of two precisions one answers no model that is asked for; a metric counts what went."""
    town = Town()
    counter = metrics.UNUSED_DELETED.labels(kind="fingerprint")
    before = counter._value.get()
    await town.live(29.9)
    assert town.deleted == []
    await town.live(0.6)
    assert sorted(town.deleted) == sorted([ACC_IDLE, FP_IDLE])
    assert counter._value.get() == before + 1
    await town.live(90)
    assert len(town.deleted) == 2


async def test_a_use_is_noted_once_a_day_at_most() -> None:
    """Looks every hour write no more than one annotation per document and day."""
    town = Town()
    await town.live(3.2, hours=1)
    assert sorted(town.noted) == sorted(3 * [ACC_USED, FP_USED])


async def test_thirty_days_count_from_the_last_use() -> None:
    """An intent that went on the twentieth day leaves its measurements thirty days more."""
    town = Town()
    await town.live(20)
    town.world.fleet.current = Planned(
        revision=2, snapshot=a_fleet(an_intent(model=None)), by_uid={}
    )
    await town.live(29)
    assert FP_USED not in town.deleted
    assert ACC_USED not in town.deleted
    await town.live(2)
    assert {FP_USED, ACC_USED} <= set(town.deleted)


async def test_an_operator_that_was_away_first_looks_who_uses_what() -> None:
    """After a month nobody has noted a use: one look is not enough to delete, and the first plan is awaited."""
    town = Town()
    town.days = 45
    planned = town.world.fleet.current
    town.world.fleet.current = Planned(revision=0, snapshot=None, by_uid={})
    await town.pruner.step()
    town.world.fleet.current = planned
    await town.pruner.step()
    assert town.deleted == []
    town.days += 0.1
    await town.pruner.step()
    assert sorted(town.deleted) == sorted([ACC_IDLE, FP_IDLE])


@pytest.mark.parametrize("name", [FP_IDLE, ACC_IDLE])
async def test_what_a_user_wrote_is_never_deleted(name: str) -> None:
    """Edited or made by hand, with or without the operator's annotations: it is the user's."""
    town = Town()
    town.put(name, manager="kubectl-edit", **{"trimtab.dev/answers": "k"})
    await town.live(100)
    assert name not in town.deleted
    assert len(town.deleted) == 1


async def test_an_import_is_never_deleted() -> None:
    """It answers no Job's question, so the operator did not make it, whoever applied it."""
    town = Town()
    town.put(FP_IDLE, **{"trimtab.dev/seal": "s"})
    await town.live(100)
    assert town.deleted == [ACC_IDLE]


async def test_a_refused_deletion_is_tried_again_and_keeps_no_other() -> None:
    """Somebody edited it meanwhile: the next look decides anew."""
    town = Town()
    town.fault = ApiError(method="DELETE", path="/x", code=409, status={"message": "changed"})
    await town.live(31)
    assert town.deleted == []
    town.fault = None
    await town.live(1)
    assert sorted(town.deleted) == sorted([ACC_IDLE, FP_IDLE])


async def test_policy_times_are_divided_where_tests_ask() -> None:
    """Thirty days take twelve hours at a divisor of 60, and the next look is a minute away."""
    town = Town(policy_time_divisor=60)
    assert await town.pruner.step() == 60
    await town.live(0.6, hours=0.1)
    assert FP_IDLE in town.deleted
    assert FP_USED not in town.deleted
