"""Bytes that crossed the link, by reason, are exactly those of the units and blocks that moved."""

from collections import Counter

import pytest
import torch

from tests.unit.engine.builders import submit
from tests.unit.engine.test_remap import ask, burst, burst_of_a, settle, tenants
from trimtab_workers.engine.backend import CpuBackend
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.transfer import Ticket
from trimtab_workers.engine.weights.hostcopy import HostCopy


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Units that were read from host copies, by model; what fills a copy counts too."""
    reads: Counter[str] = Counter()
    unit = HostCopy.unit

    def spy(copy: HostCopy, index: int) -> torch.Tensor:
        reads[copy.model] += 1
        return unit(copy, index)

    monkeypatch.setattr(HostCopy, "unit", spy)
    return reads


def moved(engine: Engine) -> dict[str, int]:
    """Return bytes by direction and reason, which state and metrics agree on."""
    found = engine.state()["remap"]["link_bytes"]
    for key, size in found.items():
        direction, reason = key.split("/")
        labels = {"engine": "0", "direction": direction, "reason": reason}
        series = [
            engine.registry.get_sample_value(
                "trimtab_engine_link_bytes_total", labels | {"model_name": name}
            )
            for name in engine._tenants
        ]
        assert sum(value or 0 for value in series) == size
    return found


def rest(engine: Engine) -> None:
    """Let idle models' units come home."""
    for _ in range(25):
        engine.clock.advance(2.5)
        engine.step()
    assert all(set(tenant.units) == {"resident"} for tenant in engine._tenants.values())


def test_what_is_lent_comes_back_once(read: Counter[str]):
    """Wakes and reverts read each lent unit once: their bytes are lends times a unit's."""
    engine = tenants(pressure="remap-idle")
    unit, kept = engine.tenant("a").unit_bytes, read.total()
    burst(engine)
    burst_of_a(engine)
    settle(engine)
    rest(engine)
    counts, found = engine.state()["remap"], moved(engine)
    assert counts["reverts"] > 0
    assert found["h2d/revert"] == counts["reverts"] * unit
    assert found["h2d/wake"] == (counts["lends"] - counts["reverts"]) * unit > 0
    assert found["h2d/wake"] + found["h2d/revert"] == (read.total() - kept) * unit
    assert "h2d/stream" not in found


def test_swaps_move_whole_blocks():
    """Swap bytes are blocks times block bytes times layers, each way."""
    engine = tenants(pressure="swap")
    burst(engine)
    unit = engine.tenant("a").unit
    block = unit.block_bytes * unit.layers
    counts, found = engine.state()["remap"], moved(engine)
    assert found["d2h/swap"] == counts["swaps_out"] * block > 0
    assert found["h2d/swap"] == counts["swaps_in"] * block > 0
    assert found.keys() == {"d2h/swap", "h2d/swap"}


@pytest.mark.parametrize(("alpha", "slots"), [(1, 1), (2, 2), (3, 1), (4, 2)])
def test_every_step_streams_the_same_units(alpha: int, slots: int, read: Counter[str]):
    """So many steps stream so many times m units, and one more into each slot, ready for the step that follows."""
    engine = tenants("a", kv_slabs=4, pressure=f"static:{alpha}", slots=slots)
    tenant, kept = engine.tenant("a"), read.total()
    assert tenant.alpha == alpha
    submit(engine, ask("a", "r", 20, max_tokens=9))
    settle(engine)
    units = 9 * (alpha + slots) + slots
    assert moved(engine) == {"h2d/stream": units * tenant.unit_bytes}
    assert read.total() - kept == units


def test_a_change_of_level_reads_what_stays_home():
    """When streaming ends each streamed unit is read once more, and none of the others."""
    engine = tenants("a", kv_slabs=6, pressure="remap")
    tenant = engine.tenant("a")
    mover = engine._balance.mover
    assert mover.set_alpha(tenant, 2, slots=2)
    assert mover.set_alpha(tenant, 0, slots=0)
    assert moved(engine) == {"h2d/revert": 4 * tenant.unit_bytes}


def test_compaction_moves_whole_blocks():
    """Compacted bytes are the moved blocks times block bytes times layers, and cross no link."""
    engine = tenants("a", kv_slabs=4)
    tenant, unit = engine.tenant("a"), engine.tenant("a").unit
    submit(engine, ask("a", "r", 40, max_tokens=4))
    engine.step()
    blocks = tenant.scheduler.blocks
    slab = next(iter(blocks.slabs))
    held = blocks.slabs[slab].used
    assert engine._balance.mover.vacate(tenant, slab)
    size = held * unit.block_bytes * unit.layers
    labels = {"model_name": "a", "engine": "0"}
    assert engine.state()["remap"]["compacted_bytes"] == size > 0
    found = engine.registry.get_sample_value("trimtab_engine_compacted_bytes_total", labels)
    assert found == size
    assert moved(engine) == {}


def test_waiting_twice_counts_once():
    """A ticket that is settled again adds neither bytes nor stall."""
    engine = tenants("a", kv_slabs=4, backend=CpuBackend(link_rate=1e6), pressure="static:2")
    tenant = engine.tenant("a")
    gate = engine._balance.mover.gate(tenant)
    tickets: list[Ticket] = []
    settle_once = gate._settle

    def settle_twice(ticket: Ticket) -> None:
        tickets.append(ticket)
        settle_once(ticket)
        settle_once(ticket)

    gate._settle = settle_twice
    submit(engine, ask("a", "r", 20, max_tokens=1))
    engine.step()
    gate.finish()
    labels = {"model_name": "a", "engine": "0", "reason": "stream"}
    stalled = engine.registry.get_sample_value("trimtab_engine_link_stall_seconds_total", labels)
    assert moved(engine)["h2d/stream"] == sum(ticket.size_bytes for ticket in tickets)
    assert len(tickets) == 4 + 2
    assert stalled == pytest.approx(len(tickets) * tenant.unit_bytes / 1e6)
