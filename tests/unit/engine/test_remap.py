"""Lending, waking, swapping and streaming: equal answers, exact bytes, nothing lost."""

import dataclasses
from pathlib import Path

import pytest

from tests.unit.engine.builders import TINY, Collected, a_request, submit
from trimtab_workers.engine.backend import CpuBackend
from trimtab_workers.engine.clock import VirtualClock
from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.types import Request

DEEP = TINY | {"num_hidden_layers": 6}
POLICIES = ("recompute", "swap", "remap-idle", "remap", "static:2", "oracle:2")


def tenants(
    names: str = "ab",
    *,
    kv_slabs: int = 3,
    hf_config: dict = DEEP,
    dtype: str = "fp32",
    backend: CpuBackend | None = None,
    **settings: object,
) -> Engine:
    """Return a loaded engine that serves random models of one shape with a small pool."""
    specs = tuple(
        ModelSpec(
            name=name,
            path=Path(),
            dtype=dtype,
            random=RandomWeights(hf_config=hf_config, seed=ord(name)),
        )
        for name in names
    )
    probe = Engine(EngineConfig(models=specs[:1], max_model_len=16, max_seqs=1))
    probe.load()
    slab = probe.arena_bytes // sum(probe.state()["slabs"].values())
    tenant = probe.tenant(names[0])
    weights = len(tenant.homes) * len(tenant.homes[0])
    memory = len(names) * tenant.fixed_bytes + (len(names) * weights + kv_slabs) * slab
    engine = Engine(
        EngineConfig(models=specs, memory_bytes=memory, **settings),
        clock=VirtualClock(),
        backend=backend or CpuBackend(poison=True),
    )
    engine.load()
    for name in names:
        error = engine.tenant(name).error
        if error is not None:
            raise error
    return engine


def ask(model: str, name: str, length: int, **params: object) -> Request:
    """Return a greedy request whose prompt depends on its name."""
    prompt = [(7 * index + sum(name.encode())) % 500 + 1 for index in range(length)]
    made = a_request(f"{model}/{name}", prompt, **params)
    return Request(
        request_id=made.request_id,
        model=model,
        prompt_token_ids=made.prompt_token_ids,
        params=made.params,
    )


def settle(engine: Engine, steps: int = 3_000) -> None:
    """Step until nothing is left to do, a virtual 10 ms each."""
    for _ in range(steps):
        engine.clock.advance(0.01)
        worked = engine.step()
        check(engine)
        if not worked and engine.idle:
            return
    pytest.fail(f"not done after {steps} steps: {engine.state()['models']}")


def check(engine: Engine) -> None:
    """Verify that slabs partition the arena and blocks add up."""
    arena = engine._balance.arena
    held = {}
    for tenant in engine._tenants.values():
        if tenant.scheduler is None:
            continue
        tenant.scheduler.blocks.check()
        for index in tenant.scheduler.blocks.slabs:
            assert index not in held, f"slab {index} is KV of two models"
            held[index] = tenant.spec.name
    for slab in arena:
        assert (slab.state == "kv") == (slab.index in held), slab
        if slab.state == "kv":
            assert held[slab.index] == slab.model
        if slab.state in {"weight", "slot", "loading"}:
            assert slab.home is not None
            assert slab.home[0] == slab.model
    assert sum(arena.owners().values()) == len(arena)


def burst(engine: Engine) -> list[Collected]:
    """Serve b once, then many long requests on a, then b again; return all outputs."""
    outputs = [submit(engine, ask("b", "first", 20, max_tokens=4))]
    settle(engine)
    outputs += [
        submit(engine, ask("a", f"r{i}", 40 + 9 * i, max_tokens=26, temperature=i % 2, seed=i))
        for i in range(6)
    ]
    for _ in range(18):
        engine.clock.advance(0.01)
        engine.step()
        check(engine)
    outputs.append(submit(engine, ask("b", "second", 60, max_tokens=12)))
    settle(engine)
    return outputs


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """Answers with memory for everything."""
    return [output.tokens for output in burst(tenants(kv_slabs=40))]


@pytest.mark.parametrize("pressure", POLICIES)
@pytest.mark.parametrize("caching", [True, False])
def test_every_policy_gives_the_same_answers(
    pressure: str, *, caching: bool, expected: list[list[int]]
):
    """Greedy and seeded answers do not depend on the policy, with NaN put where weights are loaded."""
    engine = tenants(pressure=pressure, prefix_caching=caching)
    before = engine.state()
    outputs = burst(engine)
    assert [output.tokens for output in outputs] == expected
    assert [output[-1].error for output in outputs] == [None] * len(outputs)
    moved = engine.state()["remap"]["link_bytes"]
    unit = engine.tenant("a").unit_bytes
    if pressure.startswith("remap"):
        assert engine.state()["remap"]["wakes"] >= 1
        assert moved["h2d/wake"] % unit == 0
        assert moved["h2d/wake"] > 0
    if pressure == "swap":
        assert moved["d2h/swap"] > 0
    if pressure.startswith("static"):
        assert moved["h2d/stream"] % unit == 0
        assert moved["h2d/stream"] > 0
    value = engine.registry.get_sample_value
    labels = {"model_name": "a", "engine": "0"}
    assert (value("trimtab_engine_kv_reachable_tokens", labels) or 0) > 0
    verdicts = ("DoNotRemap", "IdleOnly", "IdleAndActive")
    shown = [value("trimtab_engine_remap_verdict", labels | {"verdict": v}) for v in verdicts]
    assert sum(v or 0 for v in shown) == 1
    for _ in range(25):  # all comes back by itself
        engine.clock.advance(1.5)
        engine.step()
        check(engine)
    after = engine.state()
    assert after["slabs_by_owner"]["weights"] == before["slabs_by_owner"]["weights"]
    assert after["kv"]["used_tokens"] == 0
    assert [model["state"] for model in after["models"]] == ["Resident", "Resident"]


@pytest.mark.parametrize(("dtype", "kv_slabs"), [("int8", 4), ("int4", 8)])
@pytest.mark.parametrize("native", [True, False])
def test_quantised_weights_give_the_same_answers_when_they_move(
    dtype: str, kv_slabs: int, *, native: bool
):
    """Lent, woken and streamed, int8 and int4 weights answer as those that stay."""
    whole = burst(tenants(kv_slabs=80, dtype=dtype, native=native))
    expected = [output.tokens for output in whole]
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    for pressure, reason in (("remap-idle", "h2d/wake"), ("static:2", "h2d/stream")):
        engine = tenants(kv_slabs=kv_slabs, dtype=dtype, native=native, pressure=pressure)
        outputs = burst(engine)
        assert [output.tokens for output in outputs] == expected, pressure
        moved = engine.state()["remap"]["link_bytes"][reason]
        assert moved > 0
        assert moved % engine.tenant("a").unit_bytes == 0


@pytest.mark.parametrize("pressure", ["remap-idle", "static:2"])
def test_suppressed_copies_are_noticed(pressure: str, expected: list[list[int]]):
    """The same comparison fails if loads are counted but not made."""
    engine = tenants(pressure=pressure, backend=CpuBackend(poison=True, suppress_copies=True))
    assert [output.tokens for output in burst(engine)] != expected


def test_suppressed_swaps_are_noticed(expected: list[list[int]]):
    """The same comparison fails if swaps are counted but not made."""
    engine = tenants(pressure="swap", backend=CpuBackend(suppress_copies=True))
    outputs = burst(engine)
    assert engine.state()["remap"]["swaps_in"] > 0
    assert [output.tokens for output in outputs] != expected


def reload(engine: Engine, names: str, *, hf_config: dict = DEEP) -> None:
    """Change the model set and step until every joining model has joined."""
    specs = tuple(
        ModelSpec(
            name=name,
            path=Path(),
            dtype="fp32",
            random=RandomWeights(hf_config=hf_config, seed=ord(name)),
        )
        for name in names
    )
    config = dataclasses.replace(engine.config, models=specs, revision=engine.config.revision + 1)
    engine._post(lambda: engine._apply(config))
    for _ in range(4):
        engine.step()
        for tenant in list(engine._tenants.values()):
            if tenant.loader is not None:
                tenant.loader.join()
    engine.step()


def test_a_model_joins_and_leaves_without_a_trace():
    """A model added live answers as one loaded at start, and its removal gives all slabs back."""
    engine = tenants("a", kv_slabs=24, pressure="remap-idle", max_model_len=128)
    before = engine.state()["slabs_by_owner"]
    running = submit(engine, ask("a", "long", 30, max_tokens=60))
    engine.step()
    reload(engine, "ab")
    assert [model["state"] for model in engine.state()["models"]] == ["Resident", "Resident"]
    joined = submit(engine, ask("b", "first", 20, max_tokens=4))
    settle(engine)
    fresh = tenants("b", kv_slabs=4)
    expected = submit(fresh, ask("b", "first", 20, max_tokens=4))
    settle(fresh)
    assert joined.tokens == expected.tokens
    assert len(running.tokens) == 60
    reload(engine, "a")
    engine.step()
    after = engine.state()["slabs_by_owner"]
    assert after["weights"] == before["weights"]
    assert after["kv_home"] + after["free"] == before["kv_home"] + before["free"]


def test_a_model_that_does_not_fit_fails_alone():
    """Too little memory fails the newcomer with both numbers in bytes; others are untouched."""
    engine = tenants("a", kv_slabs=3)
    before = engine.state()["slabs_by_owner"]
    reload(engine, "ab")
    failed = engine.state()["models"][1]
    assert failed["state"] == "Failed"
    assert "needs" in failed["error"]["message"]
    assert "bytes" in failed["error"]["message"]
    assert engine.state()["slabs_by_owner"] == before
    assert len(submit(engine, ask("a", "r", 10, max_tokens=3))) == 0
    settle(engine)


def test_a_damaged_host_copy_fails_its_model_alone():
    """A wake that reads other bytes than were kept ends that model's requests with an error."""
    engine = tenants(pressure="remap-idle")
    copy = engine.tenant("b").copy
    for unit in range(copy.units):
        copy.unit(unit)[5] ^= 1
    outputs = burst_of_a(engine)
    woken = submit(engine, ask("b", "late", 20, max_tokens=4))
    settle(engine)
    assert woken[-1].error is not None
    assert "checksum" in woken[-1].error.message
    assert all(output[-1].finish_reason == "length" for output in outputs)
    assert [model["state"] for model in engine.state()["models"]] == ["Resident", "Failed"]


def burst_of_a(engine: Engine) -> list[Collected]:
    """Load a until b has lent, and return a's outputs."""
    outputs = [submit(engine, ask("a", f"r{i}", 40 + 9 * i, max_tokens=26)) for i in range(6)]
    for _ in range(200):
        if engine.state()["remap"]["lends"]:
            return outputs
        engine.clock.advance(0.01)
        engine.step()
    pytest.fail("nothing was lent")
