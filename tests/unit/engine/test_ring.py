"""Streamed layers and their slots: every reader finds its own weights, one copy a layer."""

import pytest

from tests.unit.engine.builders import submit
from tests.unit.engine.test_remap import ask, settle, tenants
from trimtab.planning.remap import streamed_layers
from trimtab_workers.engine.streaming import Ring, UnitGate
from trimtab_workers.engine.weights.hostcopy import HostCopy


class Slots:
    """What is in each slot, which copies have arrived, and how many were begun."""

    def __init__(self) -> None:
        self.content: dict[int, int] = {}
        self.waited: set[int] = set()
        self.begun: list[int] = []

    def fetch(self, unit: int, slab: int) -> int:
        self.content[slab] = unit
        self.begun.append(unit)
        return len(self.begun)

    def settle(self, ticket: int) -> None:
        assert ticket not in self.waited, "waited for one copy twice"
        self.waited.add(ticket)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_ring_of_any_size_gives_every_layer_its_own_weights(slots: int) -> None:
    """For all n ≤ 40 and m: read units are in their slots and arrived, each copied once a step (vllm #54975)."""
    divided = set()
    for n in range(2, 41):
        for m in range(slots + 1, n + 1):
            units = streamed_layers(n, m)
            divided.add(m % slots == 0)
            seen = Slots()
            gate = UnitGate(layers=n, layers_per_unit=1, fetch=seen.fetch, settle=seen.settle)
            ring = gate.ring = Ring(units=units, slots=tuple(range(100, 100 + slots)))
            for _ in range(3):
                for layer in range(n):
                    gate.enter(layer)
                    if layer in units:
                        slab = ring.slots[ring.slot_of(layer)]
                        assert seen.content[slab] == layer
                        latest = len(seen.begun) - seen.begun[::-1].index(layer)
                        assert latest in seen.waited, "read before it arrived"
                    gate.leave(layer)
            # A unit that has a slot to itself stays; of the others at most one a slot is fetched ahead.
            alone = sum(m <= slot + slots for slot in range(slots))
            assert 3 * (m - alone) + alone <= len(seen.begun) <= 3 * (m - alone) + alone + slots
    assert divided == ({True} if slots == 1 else {True, False})


def test_a_streamed_layer_is_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each transfer reads one contiguous run of a whole unit, however many tensors it has (vllm #41474)."""
    engine = tenants("a", kv_slabs=6, pressure="static:2")
    read, unit = [], HostCopy.unit

    def spy(copy: HostCopy, index: int):
        found = unit(copy, index)
        read.append((found.is_contiguous(), found.numel() * found.element_size()))
        return found

    monkeypatch.setattr(HostCopy, "unit", spy)
    before = engine.state()["remap"]["link_bytes"].get("h2d/stream", 0)
    submit(engine, ask("a", "r", 20, max_tokens=3))
    settle(engine)
    moved = engine.state()["remap"]["link_bytes"].get("h2d/stream", 0) - before
    size = engine.tenant("a").unit_bytes
    assert moved > 0
    assert read == [(True, size)] * (moved // size)
