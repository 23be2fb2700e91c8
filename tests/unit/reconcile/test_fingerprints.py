"""What counts as measured, and what it costs to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.planning.builders import a_fingerprint
from tests.unit.reconcile.builders import SETTINGS
from tests.unit.reconcile.test_trust import a_need
from trimtab.observe.cache import ObjectCache
from trimtab.observe.caches import Caches
from trimtab.observe.records import config_map
from trimtab.planning.fingerprint import dump
from trimtab.reconcile.fingerprints import FingerprintKeeper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trimtab.observe.records import ConfigMapRecord

NEED = a_need(cpu_model="Test CPU", threads=1)


class Looked(ObjectCache[Any]):
    """Counts looks through all of its records."""

    looks = 0

    def __iter__(self) -> Iterator[ConfigMapRecord]:
        self.looks += 1
        return super().__iter__()


class Shelf:
    def __init__(self) -> None:
        self.maps = Looked(config_map)
        nobody: Any = None
        self.keeper = FingerprintKeeper(
            caches=Caches(configmaps=self.maps),
            executor=nobody,
            fleet=nobody,
            settings=SETTINGS,
            clock=lambda: 0.0,
            changed=lambda _: None,
        )
        self.version = 0

    def put(self, name: str, *, namespace: str = SETTINGS.system_namespace, answers: str) -> None:
        self.version += 1
        meta = {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}"}
        meta["resourceVersion"] = str(self.version)
        annotations = {"trimtab.dev/answers": answers} if answers else {}
        data = {"fingerprint.json": dump(a_fingerprint())}
        self.maps.put({"metadata": meta | {"annotations": annotations}, "data": data})

    def done(self) -> bool:
        return self.keeper._done(NEED)


def test_a_need_is_met_by_its_name_or_by_what_answers_it() -> None:
    """A document is found as soon as it is there, under whichever name, and missed when it went."""
    shelf = Shelf()
    assert not shelf.done()
    shelf.put("fp-other", answers=NEED.key)
    assert shelf.done()
    shelf.maps.forget(f"{SETTINGS.system_namespace}-fp-other")
    assert not shelf.done()
    shelf.put(f"fp-{NEED.key}", answers="")
    assert shelf.done()


def test_a_tenants_config_map_answers_nothing() -> None:
    """Only what is kept in the operator's own namespace counts."""
    shelf = Shelf()
    shelf.put(f"fp-{NEED.key}", namespace="team-a", answers=NEED.key)
    assert not shelf.done()


def test_many_intents_that_ask_cost_one_look() -> None:
    """Two hundred intents step together at a start: what is there is not gone through for each."""
    shelf = Shelf()
    for n in range(5):
        shelf.put(f"fp-{n}", answers=f"key-{n}")
    assert not any(shelf.done() for _ in range(200))
    assert shelf.maps.looks == 1
