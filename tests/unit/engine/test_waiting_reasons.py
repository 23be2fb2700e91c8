"""What waiting requests wait for, and why units went home, as the metrics say it."""

from tests.unit.engine.builders import submit
from tests.unit.engine.test_remap import ask, burst, settle, tenants
from trimtab_workers.engine.engine import Engine


def waiting(engine: Engine, model: str) -> dict[str, float]:
    """Return a model's waiting requests by reason, without zeros."""
    name, labels = "vllm:num_requests_waiting", {"model_name": model, "engine": "0"}
    value = engine.registry.get_sample_value
    found = {
        reason: value(f"{name}_by_reason", labels | {"reason": reason}) or 0.0
        for reason in ("capacity", "wake", "rotation")
    }
    assert sum(found.values()) == value(name, labels)
    return {reason: count for reason, count in found.items() if count}


def test_a_request_waits_for_its_models_turn():
    """While another model steps, a request that would fit waits for rotation, then for nothing."""
    engine = tenants(kv_slabs=40)
    submit(engine, ask("a", "long", 20, max_tokens=40))
    engine.step()
    submit(engine, ask("b", "short", 20, max_tokens=4))
    engine._inbox.popleft()()
    assert waiting(engine, "b") == {"rotation": 1.0}
    assert waiting(engine, "a") == {}
    for _ in range(2):
        engine.clock.advance(0.01)
        engine.step()
    assert waiting(engine, "b") == {}


def test_a_request_waits_for_blocks():
    """A request that does not fit beside the running ones waits for capacity."""
    engine = tenants("a", kv_slabs=3)
    for index in range(8):
        submit(engine, ask("a", f"r{index}", 100, max_tokens=8))
    for _ in range(3):
        engine.step()
    assert waiting(engine, "a").keys() == {"capacity"}
    settle(engine)
    assert waiting(engine, "a") == {}


def test_a_request_waits_for_a_place_in_the_batch():
    """With max_seqs requests running the next one waits for capacity, whatever the cache holds."""
    engine = tenants("a", kv_slabs=40, max_seqs=1)
    for name in ("first", "second"):
        submit(engine, ask("a", name, 10, max_tokens=8))
    engine.step()
    assert waiting(engine, "a") == {"capacity": 1.0}


def test_units_that_a_wake_brings_home_are_counted():
    """Reverts by reason add up to the units that were lent; a wake's are its bytes over a unit's."""
    engine = tenants(pressure="remap-idle")
    burst(engine)
    for _ in range(25):
        engine.clock.advance(2.5)
        engine.step()
    value = engine.registry.get_sample_value
    by_reason = {
        reason: sum(
            value(
                "trimtab_engine_reverts_total",
                {"model_name": name, "engine": "0", "reason": reason},
            )
            or 0
            for name in "ab"
        )
        for reason in ("idle", "wake", "alpha")
    }
    remap = engine.state()["remap"]
    unit = engine.tenant("a").unit_bytes
    assert by_reason["wake"] == remap["link_bytes"]["h2d/wake"] / unit > 0
    assert sum(by_reason.values()) == remap["lends"]
