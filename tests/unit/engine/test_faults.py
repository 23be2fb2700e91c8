"""What nobody foresaw ends one model, with an answer for each of its requests, and no other."""

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.builders import Collected, an_engine, submit
from tests.unit.engine.test_remap import ask, burst_of_a, check, reload, settle, tenants
from trimtab_workers.engine import boot, modelset, stepper
from trimtab_workers.engine import engine as engines
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import UnexpectedError
from trimtab_workers.engine.ops import Compact, Grow, Lend, Load, Preempt, SetAlpha
from trimtab_workers.engine.parallel.placement import Placement
from trimtab_workers.engine.parallel.ranks import Ranks

ROOM: dict[str, Any] = {"kv_slabs": 24, "max_model_len": 128}


class Panic(BaseException):
    """Like a panic of a Rust library, which is no Exception."""


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("injected")


def panics(*_: object, **__: object) -> None:
    raise Panic("injected")


def states(engine: Engine) -> dict[str, str]:
    return {model["name"]: model["state"] for model in engine.state()["models"]}


def others_go_on(engine: Engine, running: Collected, *, length: int = 20) -> None:
    """Verify that a's request ends well, that a takes another one, and that slabs add up."""
    settle(engine)
    assert len(running.tokens) == length
    assert running[-1].finish_reason == "length"
    later = submit(engine, ask("a", "later", 12, max_tokens=3))
    settle(engine)
    assert len(later.tokens) == 3
    assert engine.idle
    assert engine.liveness() is None


def failed_alone(engine: Engine, *lost: Collected) -> None:
    """Verify that b is Failed, says why, has answered everything, and holds no slab."""
    assert states(engine)["b"] == "Failed"
    error = engine.tenant("b").error
    assert isinstance(error, UnexpectedError)
    assert "injected" in error.message
    for output in lost:
        assert output[-1].error is error
    assert {slab.home[0] for slab in engine._balance.arena if slab.home} == {"a"}
    assert {slab.model for slab in engine._balance.arena} <= {"a", None}


@pytest.mark.parametrize("command", ["enter", "abort", "schedule", "swaps", "books", "panic"])
def test_a_fault_in_a_models_own_work_fails_that_model(
    monkeypatch: pytest.MonkeyPatch, command: str
):
    """A request's entry or abort, a plan, its copies, or the count of blocks: each ends one model."""
    engine = tenants("ab", **ROOM)
    running = submit(engine, ask("a", "long", 30, max_tokens=20))
    lost = [submit(engine, ask("b", f"r{i}", 20, max_tokens=9)) for i in range(2)]
    engine.step()
    engine.step()
    scheduler = engine.tenant("b").scheduler
    if command == "enter":
        monkeypatch.setattr(scheduler, "add", broken)
        lost.append(submit(engine, ask("b", "late", 20)))
    elif command == "abort":
        monkeypatch.setattr(scheduler, "remove", broken)
        engine.abort("b/r0")
    elif command == "schedule":
        monkeypatch.setattr(scheduler, "schedule", broken)
    elif command == "swaps":
        mover = engine._balance.mover
        copy = mover.copy_swaps
        monkeypatch.setattr(
            mover, "copy_swaps", lambda t, s: broken() if t.spec.name == "b" else copy(t, s)
        )
    else:
        fault = panics if command == "panic" else broken
        monkeypatch.setattr(scheduler, "missing_waiting", fault)
    others_go_on(engine, running)
    failed_alone(engine, *lost)


def _join_with(target: object, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(target, name, broken)


@pytest.mark.parametrize(
    "spoil",
    [
        _join_with(threading.Thread, "start"),
        _join_with(boot, "open_checkpoint"),
        _join_with(boot, "open_tenant"),
        _join_with(boot, "read_weights"),
        _join_with(modelset, "place"),
        _join_with(boot, "claim"),
        _join_with(boot, "open_scheduler"),
        _join_with(boot, "hand_out"),
    ],
    ids=["thread", "files", "open", "read", "place", "claim", "scheduler", "hand_out"],
)
def test_a_fault_while_a_model_joins_fails_that_model(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
):
    """Whatever breaks while a model joins, those that serve go on, and the set can change again."""
    engine = tenants("a", **ROOM)
    before = engine.state()["slabs_by_owner"]
    running = submit(engine, ask("a", "long", 30, max_tokens=20))
    engine.step()
    with monkeypatch.context() as patch:
        spoil(patch)
        reload(engine, "ab")
    assert states(engine) == {"a": "Resident", "b": "Failed"}
    assert "injected" in engine.tenant("b").error.message
    assert engine._joining == 0
    others_go_on(engine, running)
    assert engine.state()["slabs_by_owner"]["weights"] == before["weights"]
    reload(engine, "a")
    reload(engine, "ab")
    assert states(engine) == {"a": "Resident", "b": "Resident"}


@pytest.mark.parametrize("where", ["requests", "slabs", "gauges"])
def test_a_fault_while_a_model_is_removed_removes_it(monkeypatch: pytest.MonkeyPatch, where: str):
    """A removal that breaks half-way still answers, frees the slabs and ends."""
    engine = tenants("ab", **ROOM)
    running = submit(engine, ask("a", "long", 30, max_tokens=20))
    lost = submit(engine, ask("b", "r", 20, max_tokens=90))
    engine.step()
    engine.step()
    if where == "requests":
        monkeypatch.setattr(engine.tenant("b").scheduler, "remove", broken)
    elif where == "slabs":
        monkeypatch.setattr(engine._balance, "mover", None)
        monkeypatch.setattr(engines, "REMOVAL_SECONDS", 0.0)
    else:
        monkeypatch.setattr(engine.metrics, "forget_model", broken)
    monkeypatch.setattr(engines, "REMOVAL_SECONDS", 0.0)
    reload(engine, "a")
    monkeypatch.undo()
    assert lost[-1].error is not None
    assert states(engine) == {"a": "Resident"}
    others_go_on(engine, running)
    assert {slab.home[0] for slab in engine._balance.arena if slab.home} == {"a"}


@pytest.mark.parametrize("what", ["metrics", "addition"])
def test_a_reload_that_breaks_is_told(monkeypatch: pytest.MonkeyPatch, what: str):
    """A change of the model set that meets a fault is in `state()["errors"]`; all go on."""
    engine = tenants("a", **ROOM)
    running = submit(engine, ask("a", "long", 30, max_tokens=20))
    engine.step()
    with monkeypatch.context() as patch:
        if what == "metrics":
            patch.setattr(engine.metrics, "for_model", broken)
        else:
            patch.setattr(engines, "Joining", broken)
        reload(engine, "ab")
    assert any("injected" in error for error in engine.state()["errors"])
    others_go_on(engine, running)


@pytest.mark.parametrize(
    "order", ["grow", "compact", "preempt", "load", "alpha", "give", "receive"]
)
def test_a_fault_in_an_order_fails_its_model(monkeypatch: pytest.MonkeyPatch, order: str):
    """An order of the controller that cannot be carried out ends the model that it is for."""
    engine = tenants("ab", pressure="remap-idle", **ROOM)
    running = submit(engine, ask("a", "long", 30, max_tokens=20))
    engine.step()
    mover, arena, b = engine._balance.mover, engine._balance.arena, engine.tenant("b")
    slab = next(iter(b.scheduler.blocks.slabs))
    orders = {
        "grow": ("_adopt", [Compact("b", slab), Grow("b", slab)]),
        "compact": ("copy_swaps", [Compact("b", slab)]),
        "preempt": ("_preempt", [Preempt("b", to_host=True)]),
        "load": ("_load", [Lend("b", 5, "a"), Compact("a", b.homes[5][0]), Load("b", 5, "revert")]),
        "alpha": ("_bring_back", [SetAlpha("b", 1, 1)]),
        "give": ("_arrive", [Lend("b", 5, "a")]),
        "receive": ("_adopt", [Lend("a", 5, "b")]),
    }
    name, orders_given = orders[order]
    real = getattr(mover, name)
    monkeypatch.setattr(
        mover,
        name,
        lambda t, *a, **k: broken() if t is b else real(t, *a, **k),
    )
    assert mover.run(orders_given)
    check(engine)
    failed_alone(engine)
    assert len(arena) == sum(arena.owners().values())
    monkeypatch.undo()
    others_go_on(engine, running)
    for _ in range(10):
        engine.clock.advance(2.5)
        engine.step()
    assert set(engine.tenant("a").units) == {"resident"}  # what a had lent to b is back


def test_a_controller_that_fails_once_loses_nothing(monkeypatch: pytest.MonkeyPatch):
    """One failed decision costs a step without remapping and no answer."""
    engine = tenants("ab", pressure="remap-idle")
    controller = engine._balance.controller
    real, calls = controller.decide, []

    def once(*arguments: Any) -> Any:
        calls.append(arguments)
        return broken() if len(calls) % 2 else real(*arguments)

    monkeypatch.setattr(controller, "decide", once)
    outputs = burst_of_a(engine)
    late = submit(engine, ask("b", "late", 20, max_tokens=4))
    settle(engine)
    assert len(calls) > 4
    assert [len(output.tokens) for output in (*outputs, late)] == [26] * 6 + [4]


def test_a_controller_that_always_fails_ends_those_that_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
):
    """A lent model that cannot be woken answers with an error; the borrower goes on."""
    engine = tenants("ab", pressure="remap-idle")
    outputs = burst_of_a(engine)
    late = submit(engine, ask("b", "late", 20, max_tokens=4))
    a = engine.tenant("a").scheduler
    monkeypatch.setattr(a, "missing_running", lambda: 0)
    monkeypatch.setattr(a, "missing_waiting", lambda: 0)
    monkeypatch.setattr(engine._balance.controller, "decide", broken)
    settle(engine)
    failed_alone(engine, late)
    assert [len(output.tokens) for output in outputs] == [26] * 6


def test_a_sink_that_raises_loses_its_own_request():
    """A caller that cannot take its output has its request aborted and harms nobody."""
    engine = tenants("ab", **ROOM)
    running = submit(engine, ask("a", "long", 30, max_tokens=20))
    neighbour = submit(engine, ask("b", "good", 20, max_tokens=9))
    engine.submit(ask("b", "bad", 20, max_tokens=9), broken)
    others_go_on(engine, running)
    assert len(neighbour.tokens) == 9
    assert states(engine)["b"] == "Resident"


def test_a_token_that_has_no_text_ends_its_request(monkeypatch: pytest.MonkeyPatch):
    """A tokenizer that breaks on one request's token costs this request alone."""
    engine = tenants("ab", **ROOM)
    bad, good = (submit(engine, ask("b", name, 20, max_tokens=9)) for name in ("bad", "good"))
    real = stepper._text
    monkeypatch.setattr(
        stepper, "_text", lambda s, t: panics() if s.request.request_id == "b/bad" else real(s, t)
    )
    settle(engine)
    assert isinstance(bad[-1].error, UnexpectedError)
    assert len(good.tokens) == 9
    assert states(engine)["b"] == "Resident"


def test_a_failed_model_keeps_no_tokenizer(glass_en: Path):
    """A tokenizer, whose tables are host memory too, goes with the model that failed."""
    engine = an_engine(glass_en)
    tenant = engine.tenant("m")
    held = weakref.ref(tenant.tokenizer)
    engine._fail_tenant(tenant, UnexpectedError("Broken."))
    gc.collect()
    assert held() is None


def test_a_failed_model_of_several_ranks_shows_no_requests(monkeypatch: pytest.MonkeyPatch):
    """It keeps its slabs, which followers compare, yet nothing waits any more, in gauges neither."""
    engine = tenants("ab", max_seqs=2, **ROOM)
    engine.ranks = Ranks(Placement(tensor=2))
    b = engine.tenant("b")
    monkeypatch.setattr(b.runner, "execute", broken)
    lost = [submit(engine, ask("b", f"r{i}", 20)) for i in range(9)]
    settle(engine)
    assert all(output[-1].error is not None for output in lost)
    assert (b.state, b.scheduler.has_work, b.scheduler.blocks.used) == ("Failed", False, 0)
    value = engine.registry.get_sample_value
    for kind in ("running", "waiting"):
        labels = {"model_name": "b", "engine": "0"}
        assert value(f"vllm:num_requests_{kind}", labels) == 0


def _three_batches(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine.tenant("b").runner, "execute", lambda _: 1 / 0)
        for index in range(3):
            submit(engine, ask("b", f"r{index}", 20))
            settle(engine)


def _damaged_wake(engine: Engine, _: pytest.MonkeyPatch) -> None:
    copy = engine.tenant("b").copy
    for unit in range(copy.units):
        copy.unit(unit)[5] ^= 1
    burst_of_a(engine)
    submit(engine, ask("b", "late", 20))
    settle(engine)


def _damaged_while_swapped(engine: Engine, _: pytest.MonkeyPatch) -> None:
    for index in range(6):
        submit(engine, ask("b", f"r{index}", 40 + 9 * index, max_tokens=26))
    for _ in range(200):
        engine.step()
        if engine.tenant("b").scheduler.host.used:
            break
    assert engine.tenant("b").scheduler.host.used
    engine._fail_tenant(engine.tenant("b"), UnexpectedError("Broken."))
    settle(engine)


@pytest.mark.parametrize(
    ("fail", "pressure"),
    [
        (_three_batches, "recompute"),
        (_damaged_wake, "remap-idle"),
        (_damaged_while_swapped, "swap"),
        (_three_batches, "static:2"),
    ],
)
def test_a_failed_model_keeps_nothing(
    fail: Callable[[Engine, pytest.MonkeyPatch], None],
    pressure: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """Slabs, floor, weights, host copy and swap space of a model that fails are free at once."""
    # A record that pytest keeps holds the frames that failed, and these the model.
    caplog.set_level(logging.CRITICAL, logger="trimtab_workers.engine")
    engine = tenants("ab", pressure=pressure)
    b, arena = engine.tenant("b"), engine._balance.arena
    pool, homes = arena.pool(), len(b.homes)
    held = [weakref.ref(b.model), weakref.ref(b.scheduler)]
    held += [weakref.ref(b.copy._bytes)] if b.copy else []
    held += [weakref.ref(b.host_blocks.data)] if b.host_blocks else []
    fail(engine, monkeypatch)
    assert states(engine) == {"a": "Resident", "b": "Failed"}
    engine.step()
    check(engine)
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)
    assert arena.pool() == pool + homes
    assert (b.floor_slabs, b.fixed_outside, b.alpha) == (0, 0, 0)
    assert not any("b" in (slab.model, slab.home and slab.home[0]) for slab in arena)
    value = engine.registry.get_sample_value
    labels = {"model_name": "b", "engine": "0"}
    for name in ("kv_capacity_tokens", "kv_reachable_tokens", "remap_alpha"):
        assert value(f"trimtab_engine_{name}", labels) == 0
    outputs = [submit(engine, ask("a", f"n{i}", 150, max_tokens=30)) for i in range(9)]
    settle(engine)
    assert [len(output.tokens) for output in outputs] == [30] * 9
    assert len(engine.tenant("a").scheduler.blocks.slabs) > pool  # a took what b had
