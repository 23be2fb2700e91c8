"""What the controller does over time, on a virtual clock with priced steps and a priced link."""

import dataclasses
from pathlib import Path

import pytest

from tests.unit.engine.builders import TINY, submit
from tests.unit.engine.test_remap import ask
from trimtab_workers.engine.clock import VirtualClock
from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.ops import SetAlpha, StepStats
from trimtab_workers.engine.sim import SimBackend

LAYERS = 16


def simulated(
    names: str,
    *,
    pressure: str,
    transfer_seconds: float,
    kv_slabs: int,
    step_seconds: float = 0.016,
    **settings: object,
) -> Engine:
    """Return an engine whose steps and whose units' transfers take the seconds that are given."""

    def build(memory: int | None, link_rate: float | None) -> Engine:
        clock = VirtualClock()
        engine = Engine(
            EngineConfig(
                models=tuple(
                    ModelSpec(
                        name=name,
                        path=Path(),
                        dtype="fp32",
                        random=RandomWeights(
                            hf_config=TINY | {"num_hidden_layers": LAYERS}, seed=1
                        ),
                    )
                    for name in names
                ),
                memory_bytes=memory,
                pressure=pressure if memory else "recompute",
                **settings,
            ),
            clock=clock,
            backend=SimBackend(clock, price=lambda *_: step_seconds, link_rate=link_rate),
        )
        engine.load()
        return engine

    probe = build(None, None)
    tenant, slab = probe.tenant(names[0]), probe._arena.slab_bytes
    weights = LAYERS // tenant.layers_per_unit * len(tenant.homes[0])
    memory = len(names) * tenant.fixed_bytes + (len(names) * weights + kv_slabs) * slab
    return build(memory, tenant.unit_bytes / transfer_seconds)


class Alternation:
    """Gives a and b by turns more work than their own slabs hold, each when the other is done.

    Attributes:
        waits: Seconds that a lent model's requests waited until its wake began.
        lent: (model, seconds) whenever one begins to lend.
    """

    def __init__(self) -> None:
        self.engine = simulated(
            "ab",
            pressure="remap-idle",
            transfer_seconds=0.05,
            kv_slabs=8,
            max_model_len=160,
            prefix_caching=False,
        )
        self.waits: list[float] = []
        self.lent: list[tuple[str, float]] = []
        self.holds: list[tuple[str, float]] = []

    def turn(self, model: str, *, rest: float) -> None:
        engine, tenant = self.engine, self.engine.tenant(model)
        began, asleep = engine.clock.now(), tenant.state == "Lent"
        for index in range(4):
            submit(engine, ask(model, f"{began}.{index}", 100, max_tokens=4))
        other = engine.tenant("ab".replace(model, ""))
        controller = engine._balance.controller
        while not engine.idle:
            before, held = other.state, controller.thrash_holds
            if not engine.step():
                engine.clock.advance(0.01)
            if asleep and tenant.state != "Lent":
                switch = engine._balance.mover.switch_seconds[-1]
                self.waits.append(engine.clock.now() - began - switch)
                asleep = False
            if before == "Resident" and other.state == "Lent":
                self.lent.append((other.spec.name, engine.clock.now()))
            if controller.thrash_holds > held:
                self.holds.append((model, engine.clock.now()))
        engine.clock.advance(rest)

    @property
    def shown(self) -> float | None:
        return self.engine.registry.get_sample_value("trimtab_engine_thrash_holds_total")


def test_models_that_alternate_too_fast_are_held():
    """Below 4 switches' seconds a wake waits at most 1 s, and its model then lends nothing for 30 s."""
    run = Alternation()
    while run.engine.clock.now() < 45:
        run.turn("a", rest=0.0)
        run.turn("b", rest=0.0)
    assert len(run.holds) > 1
    assert run.shown == run.engine.state()["remap"]["thrash_holds"] == len(run.holds)
    assert max(run.waits) == pytest.approx(1.0, abs=0.05)
    for model, when in run.holds:
        again = [at for name, at in run.lent if name == model and at > when]
        assert all(at >= when + 30 for at in again)
    assert any(at > run.holds[0][1] + 30 for _, at in run.lent), "nothing is ever lent again"


def test_models_that_alternate_slowly_are_not_held():
    """Above 4 switches' seconds nobody waits: each wake begins with the next step."""
    run = Alternation()
    for _ in range(15):
        run.turn("a", rest=0.6)
        run.turn("b", rest=0.6)
    assert len(run.waits) > 20
    assert run.shown == run.engine.state()["remap"]["thrash_holds"] == 0
    assert max(run.waits) < 0.05


def test_the_engine_knows_when_a_held_wake_is_due():
    """Held wakes say when they end, so that an idle engine does not oversleep; none is ever late."""
    run = Alternation()
    balance = run.engine._balance
    assert balance.due_seconds() is None
    while not run.holds:
        run.turn("a", rest=0.0)
        run.turn("b", rest=0.0)
    submitted = run.engine.clock.now()
    controller = balance.controller
    controller._wait_until["a"] = submitted + 0.75
    assert balance.due_seconds() == pytest.approx(0.75)
    run.engine.clock.advance(1.0)
    assert balance.due_seconds() is None


class Pressure:
    """Serves more long requests on one model than its cache holds, then nothing.

    Attributes:
        levels: Every streaming level, and when it began.
        reasons: Of the advice while there was work.
    """

    def __init__(self, *, transfer_seconds: float) -> None:
        self.engine = engine = simulated(
            "a",
            pressure="remap",
            transfer_seconds=transfer_seconds,
            kv_slabs=8,
            max_model_len=160,
            prefix_caching=False,
        )
        self.levels = [(0, 0.0)]
        self.reasons: set[str] = set()
        self.outputs = [submit(engine, ask("a", f"r{i}", 60, max_tokens=60)) for i in range(12)]
        while not engine.idle:
            self.step()
            self.reasons.update(engine.state()["advice"]["reasons"])
        self.ended = engine.clock.now()
        for _ in range(40):
            engine.clock.advance(0.1)
            self.step()

    def step(self) -> None:
        self.engine.step()
        alpha = self.engine.tenant("a").alpha
        if alpha != self.levels[-1][0]:
            self.levels.append((alpha, self.engine.clock.now()))

    def value(self, name: str, **labels: str) -> float:
        labels |= {"model_name": "a", "engine": "0"}
        return self.engine.registry.get_sample_value(f"trimtab_engine_{name}", labels) or 0.0


@pytest.mark.parametrize(
    ("transfer_seconds", "levels"),
    [(0.0005, [0, 1, 2, 4, 2, 1, 0]), (0.004, [0, 1, 2, 1, 0])],
)
def test_the_level_rises_and_falls_by_itself(transfer_seconds: float, levels: list[int]):
    """As far as the bound hides it, one level at a time; when use is low for 2 s it all comes back."""
    run = Pressure(transfer_seconds=transfer_seconds)
    assert [level for level, _ in run.levels] == levels
    changes = run.engine.state()["remap"]["alphas"]
    assert changes == len(levels) - 1 == run.value("remaps_total", kind="alpha")
    moved = run.engine.state()["remap"]["link_bytes"]
    assert (
        moved["h2d/stream"] == run.value("link_bytes_total", direction="h2d", reason="stream") > 0
    )
    falls = [when for level, when in run.levels if when > run.ended]
    assert len(falls) == levels.index(max(levels))
    top = next(when for level, when in run.levels if level == max(levels))
    assert falls[0] >= top + 2.0
    assert run.value("remap_alpha") == 0
    assert set(run.engine.tenant("a").units) == {"resident"}
    # Every unit's first reading is waited for, and no other: what is hidden is free.
    assert (
        run.value("link_stall_seconds_total", reason="stream") <= len(levels) * 2 * transfer_seconds
    )
    assert all(output[-1].finish_reason == "length" for output in run.outputs)


def test_a_slow_link_keeps_the_level_at_0():
    """Where a step hides less than one level the model swaps instead, and the advice says why."""
    run = Pressure(transfer_seconds=0.02)
    assert run.levels == [(0, 0.0)]
    assert any(reason.startswith("LinkTooSlow: reading a layer") for reason in run.reasons)
    moved = run.engine.state()["remap"]["link_bytes"]
    assert moved["d2h/swap"] > 0
    assert "h2d/stream" not in moved


def test_one_level_at_a_time_is_ordered_once():
    """A model whose running and waiting requests both lack blocks goes up by one level, once."""
    run = Pressure(transfer_seconds=0.0005)
    balance = run.engine._balance
    view = balance.view()
    short = dataclasses.replace(
        view.models["a"], has_work=True, running=2, missing_running=50, missing_waiting=50
    )
    stats = StepStats(
        decode_seconds={"a": 0.016}, link_rate=1e12, latency_seconds=0.0, switch_seconds=0.0
    )
    ops = balance.controller.decide(
        dataclasses.replace(view, models={"a": short}), stats, run.engine.clock.now()
    )
    assert [op.alpha for op in ops if isinstance(op, SetAlpha)] == [1]
