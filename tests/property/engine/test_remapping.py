"""Slabs, blocks and weights of several models under any history, without tensors."""

import dataclasses
import random
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.engine.builders import TINY
from trimtab_workers.engine.arena import Arena
from trimtab_workers.engine.clock import VirtualClock
from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import EngineError
from trimtab_workers.engine.sim import SimBackend
from trimtab_workers.engine.streaming import Ring, UnitGate
from trimtab_workers.engine.tenants import Tenant
from trimtab_workers.engine.transfer import Ticket
from trimtab_workers.engine.types import Request, SamplingParams

CONFIG = TINY | {"num_hidden_layers": 5}
NAMES = "abcd"


def _spec(name: str) -> ModelSpec:
    return ModelSpec(
        name=name, path=Path(), dtype="fp32", random=RandomWeights(hf_config=CONFIG, seed=1)
    )


def _check_units(tenant: Tenant, arena: Arena) -> None:
    for unit, state in enumerate(tenant.units):
        states = {arena[slab].state for slab in tenant.homes[unit]}
        if state == "resident":
            assert states == {"weight"}
        if state == "loading":
            assert states == {"loading"}
        if state == "lent":
            assert states <= {"free", "kv"}
    if tenant.state == "Resident":
        assert "lent" not in tenant.units


def _check_holders(tenant: Tenant, arena: Arena) -> None:
    scheduler = tenant.scheduler
    scheduler.blocks.check()
    holders = Counter(id(b) for s in scheduler for b in s.blocks)
    slots = Counter(block.slot for block in scheduler.blocks.blocks())
    assert max(slots.values(), default=1) == 1
    for block in scheduler.blocks.blocks():
        assert block.refs == holders[id(block)] + (block is scheduler.blocks.zero)
        assert block.slot in tenant.layout(arena.slab_bytes).slots(block.slab.index)
    places = [place for s in scheduler for place in s.host_places]
    assert len(set(places)) == len(places)
    assert scheduler.host is None or scheduler.host.used == len(places)


class Remapping(RuleBasedStateMachine):
    """Requests, aborts, models that come and go, under any policy and link."""

    @initialize(
        pressure=st.sampled_from(
            ["recompute", "swap", "remap-idle", "remap", "static:1", "oracle:1"]
        ),
        slabs=st.integers(12, 17),
        link=st.sampled_from([None, 1e8, 1e10]),
        order=st.sampled_from(["mru", "lru", "largest"]),
        caching=st.booleans(),
    )
    def start(self, *, pressure: str, slabs: int, link: float | None, order: str, caching: bool):
        clock = VirtualClock()
        self.clock = clock
        probe = Engine(
            EngineConfig(models=(_spec("a"),)),
            clock=clock,
            backend=SimBackend(clock, price=lambda *_: 0.0, link_rate=None),
        )
        probe.load()
        slab = probe._arena.slab_bytes
        config = EngineConfig(
            models=(_spec("a"), _spec("b")),
            memory_bytes=2 * probe.tenant("a").fixed_bytes + slabs * slab,
            max_model_len=160,
            max_batch_tokens=64,
            max_seqs=16,
            pressure=pressure,
            lend_order=order,
            prefix_caching=caching,
            limits={"min_resident_units": 1, "active_cap": 0.5},
        )
        self.engine = Engine(
            config,
            clock=clock,
            backend=SimBackend(
                clock,
                price=lambda _, plan: 1e-3 * len(plan.rows),
                link_rate=link,
                latency_seconds=1e-4 if link else 0.0,
            ),
        )
        self.engine.load()
        self.revision = 0
        self.count = 0
        self.live: dict[str, list] = {}

    @rule(
        model=st.sampled_from(NAMES),
        prompt=st.integers(1, 110),
        output=st.integers(1, 50),
        kind=st.integers(0, 2),
        copies=st.integers(1, 8),
    )
    def submit(self, model: str, prompt: int, output: int, kind: int, copies: int) -> None:
        for copy in range(copies):
            self._submit_one(model, prompt, output, 3 * copy + kind)

    def _submit_one(self, model: str, prompt: int, output: int, kind: int) -> None:
        self.count += 1
        outputs: list = []
        try:
            self.engine.submit(
                Request(
                    request_id=str(self.count),
                    model=model,
                    prompt_token_ids=tuple((kind * 37 + i) % 500 for i in range(prompt)),
                    params=SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True),
                ),
                outputs.append,
            )
        except EngineError:
            return
        self.live[str(self.count)] = outputs

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()

    @rule(seconds=st.sampled_from([0.01, 0.5, 2.5]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.engine.step()

    @rule(choice=st.integers(0, 1000))
    def abort(self, choice: int) -> None:
        if self.live:
            self.engine.abort(sorted(self.live)[choice % len(self.live)])

    @rule(names=st.sets(st.sampled_from(NAMES), min_size=1, max_size=3))
    def reload(self, names: set[str]) -> None:
        self.revision += 1
        config = dataclasses.replace(
            self.engine.config,
            revision=self.revision,
            models=tuple(_spec(name) for name in sorted(names)),
        )
        self.engine._post(lambda: self.engine._apply(config))
        for _ in range(4):
            self.engine.step()
            for tenant in list(self.engine._tenants.values()):
                if tenant.loader is not None:
                    tenant.loader.join()
        self.engine.step()

    @invariant()
    def all_adds_up(self) -> None:
        if not hasattr(self, "engine"):
            return
        arena, tenants = self.engine._arena, self.engine._tenants
        kv: dict[int, str] = {}
        for name, tenant in tenants.items():
            if tenant.scheduler is None:
                continue
            _check_holders(tenant, arena)
            for index in tenant.scheduler.blocks.slabs:
                assert kv.setdefault(index, name) == name
            _check_units(tenant, arena)
        for slab in arena:
            assert (slab.state == "kv") == (slab.index in kv)
            assert slab.state != "kv" or slab.model == kv[slab.index]
        assert sum(arena.counts().values()) == len(arena)
        floors = sum(tenant.floor_slabs for tenant in tenants.values())
        assert floors <= arena.pool()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(20_000):
            if not self.engine.step() and self.engine.idle:
                break
            self.clock.advance(0.001)
        assert self.engine.idle, "a request never ends"
        assert all(outputs[-1].finished for outputs in self.live.values())
        for _ in range(60):
            self.clock.advance(2.5)
            self.engine.step()
        self.all_adds_up()
        for tenant in self.engine._tenants.values():
            if tenant.scheduler is not None:
                assert tenant.scheduler.blocks.used == 0
                assert tenant.state in {"Resident", "Failed"}
                assert set(tenant.units) <= {"resident", "streamed"}


TestRemapping = Remapping.TestCase
TestRemapping.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("pressure", ["remap-idle", "remap"])
def test_a_long_history_lends_wakes_and_swaps(pressure: str):
    """A busy walk with a fixed seed does all of it, and everything adds up after every move."""
    chance = random.Random(4)
    machine = Remapping()
    machine.start(pressure=pressure, slabs=13, link=1e9, order="mru", caching=True)
    for _ in range(150):
        kind = chance.random()
        if kind < 0.3:
            machine.submit(
                chance.choice("ab"), chance.randint(20, 110), 45, 0, chance.randint(1, 8)
            )
        elif kind < 0.4:
            machine.wait(2.5)
        elif kind < 0.45:
            machine.abort(chance.randint(0, 1000))
        else:
            machine.step(chance.randint(1, 60))
        machine.all_adds_up()
    counts = machine.engine._balance.mover.counts
    assert counts["lends"] > 0
    assert counts["wakes"] > 0
    assert counts["swaps_out"] > 0
    assert counts["swaps_in"] > 0
    machine.teardown()


@pytest.mark.parametrize("slots", [1, 2])
def test_rings_of_any_size_hold_what_is_read(slots: int):
    """For all n ≤ 40 and m, in every step each streamed layer is in its slot when it is read."""
    for n in range(1, 41):
        for m in range(slots, n + 1):
            units = tuple(i * n // m for i in range(m))
            held: dict[int, int] = {}
            gate = UnitGate(
                layers=n,
                layers_per_unit=1,
                fetch=lambda unit, slab, held=held: (
                    held.__setitem__(slab, unit) or Ticket(1, "stream", "h2d", 0.0)
                ),
                settle=lambda _: None,
            )
            gate.ring = ring = Ring(units, tuple(range(slots)))
            for layer in [*range(n)] * 3:
                gate.enter(layer)
                if gate.cuts(layer):
                    assert held[ring.slots[ring.slot_of(layer)]] == layer
                gate.leave(layer)
