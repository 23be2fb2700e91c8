"""What goes wrong while models come, go and wake ends with an answer, and hits one model alone."""

import dataclasses
import tempfile
import threading
from pathlib import Path

import pytest

from tests.unit.engine.builders import submit
from tests.unit.engine.test_remap import ask, burst_of_a, reload, settle, tenants
from trimtab_workers.engine import boot, mover
from trimtab_workers.engine.config import Policy
from trimtab_workers.engine.controller import RemapController
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import HostCopyError, ModelCorruptError
from trimtab_workers.engine.kv import KvSlab
from trimtab_workers.engine.ops import ArenaView, Grow, Load, ModelView, SetAlpha, StepStats
from trimtab_workers.engine.weights.hostcopy import HostCopy


def _change(engine: Engine, *names: str, dtype: str = "fp32") -> None:
    """Post another model set and process it; models of other names than `a` get the dtype."""
    old = engine.config.models[0]
    seeds = {name: dataclasses.replace(old.random, seed=ord(name)) for name in names}
    models = tuple(
        dataclasses.replace(
            old, name=name, random=seeds[name], dtype="fp32" if name == "a" else dtype
        )
        for name in names
    )
    config = dataclasses.replace(engine.config, models=models, revision=engine.config.revision + 1)
    engine._post(lambda: engine._apply(config))
    engine.step()


def _join(engine: Engine) -> None:
    """Step until no model is being read any more."""
    for _ in range(4):
        for tenant in list(engine._tenants.values()):
            if tenant.loader is not None:
                tenant.loader.join()
        engine.step()


def _states(engine: Engine) -> dict[str, str]:
    return {model["name"]: model["state"] for model in engine.state()["models"]}


def test_a_request_that_meets_a_failure_is_answered():
    """A request accepted just before its model fails ends with an error instead of waiting."""
    engine = tenants("ab")
    late = submit(engine, ask("b", "late", 20, max_tokens=4))
    engine._fail_tenant(engine.tenant("b"), ModelCorruptError("Broken."))
    settle(engine)
    assert late[-1].error is not None
    assert engine.idle


@pytest.mark.parametrize("state", ["Lent", "Waking"])
def test_a_model_removed_before_it_woke_answers_first(monkeypatch: pytest.MonkeyPatch, state: str):
    """Requests of a lent or waking model that is removed are computed with all of its weights."""
    fresh = tenants("b")
    expected = submit(fresh, ask("b", "late", 20, max_tokens=4))
    settle(fresh)
    engine = tenants(pressure="remap-idle")
    burst_of_a(engine)
    late = submit(engine, ask("b", "late", 20, max_tokens=4))
    if state == "Waking":
        monkeypatch.setattr(mover, "LOAD_BYTES_PER_STEP", 0)  # its loads stay queued
        engine.step()
    assert engine.tenant("b").state == state
    _change(engine, "a")
    assert state == "Lent" or late == []
    monkeypatch.undo()
    settle(engine)
    assert late[-1].error is None
    assert late.tokens == expected.tokens
    assert _states(engine) == {"a": "Resident"}


@pytest.mark.parametrize("ends", ["opened", "failed"])
def test_a_model_removed_while_it_is_opened_goes(monkeypatch: pytest.MonkeyPatch, ends: str):
    """A removal that meets a model's loading thread holds, whether the files are good or not."""
    go, real = threading.Event(), boot.open_checkpoint

    def slow(spec):
        assert go.wait(20)
        if ends == "failed":
            raise ModelCorruptError("Broken.")
        return real(spec)

    engine = tenants("a", kv_slabs=24, max_model_len=128)
    monkeypatch.setattr(boot, "open_checkpoint", slow)
    _change(engine, "a", "b")
    _change(engine, "a")
    go.set()
    _join(engine)
    assert _states(engine) == {"a": "Resident"}
    assert engine._joining == 0


def test_a_model_that_comes_back_is_not_held_for_what_it_did_before():
    """A model that was kept from being lent is, removed and added again, lent like a new one."""
    engine = tenants("ab", pressure="remap-idle")
    engine._balance.controller._hold_until["b"] = float("inf")
    outputs = [submit(engine, ask("a", f"h{i}", 40 + 9 * i, max_tokens=26)) for i in range(6)]
    settle(engine)
    assert {len(output.tokens) for output in outputs} == {26}
    assert engine.state()["remap"]["lends"] == 0
    reload(engine, "a")
    reload(engine, "ab")
    assert _states(engine) == {"a": "Resident", "b": "Resident"}
    burst_of_a(engine)  # fails if nothing is lent


def test_a_busy_model_that_is_changed_comes_back():
    """A model whose entry changes while it has requests is added anew when these are done."""
    engine = tenants("ab", kv_slabs=24, max_model_len=128)
    running = submit(engine, ask("b", "long", 30, max_tokens=20))
    engine.step()
    _change(engine, "a", "b", dtype="bf16")
    assert _states(engine)["b"] == "Draining"
    settle(engine)
    assert len(running.tokens) == 20
    _join(engine)
    assert engine.tenant("b").spec.dtype == "bf16"
    assert engine.tenant("b").state in {"Resident", "Failed"}


def test_a_damaged_copy_at_a_change_of_level_fails_its_model_alone():
    """A streamed unit that comes home with other bytes than were kept leaves the engine alive."""
    engine = tenants("ab", pressure="static:2")
    copy = engine.tenant("a").copy
    for unit in range(copy.units):
        copy.unit(unit)[5] ^= 1
    engine._balance.mover.run([SetAlpha("a", 0, 0)])
    assert _states(engine) == {"a": "Failed", "b": "Resident"}
    late = submit(engine, ask("b", "late", 20, max_tokens=4))
    settle(engine)
    assert late[-1].finish_reason == "length"


def test_without_a_folder_for_temporary_files_models_serve(monkeypatch: pytest.MonkeyPatch):
    """Where no temporary file can be made, models are served and never lent."""

    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    engine = tenants("ab", pressure="remap-idle")
    assert engine.tenant("a").copy is None
    assert _states(engine) == {"a": "Resident", "b": "Resident"}


def test_a_joiner_without_memory_for_its_copy_serves(monkeypatch: pytest.MonkeyPatch):
    """Whatever keeps a host copy from being made, the model joins, and the set can change again."""
    engine = tenants("a", kv_slabs=24, pressure="remap-idle", max_model_len=128)

    def short(_tenant: object) -> None:
        raise MemoryError

    monkeypatch.setattr(engine.backend, "keep", short)
    _change(engine, "a", "b")
    _join(engine)
    assert _states(engine) == {"a": "Resident", "b": "Resident"}
    assert engine.tenant("b").copy is None
    assert engine._joining == 0


def test_a_copy_that_cannot_be_written_back_is_refused(monkeypatch: pytest.MonkeyPatch):
    """A disk that refuses the bytes at write-back is named, not raised as it came."""

    def refuse(_file: int) -> None:
        raise OSError(5, "Input/output error")

    copy = HostCopy(model="m", unit_bytes=4096, units=1)
    monkeypatch.setattr("os.fdatasync", refuse)
    with pytest.raises(HostCopyError, match="Input/output error"):
        copy.seal()


def test_a_sealed_copy_holds_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The copy leaves neither a name nor an open descriptor behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    copy = HostCopy(model="m", unit_bytes=4096, units=1)
    copy.seal()
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # the mapping keeps its own


def _view(name: str, kv: dict[int, int], *, held: int, floor: int, **fields: object) -> ModelView:
    """Return a model with ten blocks a slab; `kv` is what each slab holds, 5 and up are homes."""
    settings = {"state": "Resident", "running": 1, "waiting": 0, "units": [], "homes": []} | fields
    victims = settings.pop("victims", ())
    return ModelView(
        name=name,
        has_work=True,
        last_work_seconds=0.0,
        lendable=True,
        floor_slabs=floor,
        blocks_per_slab=10,
        kv={index: KvSlab(index, index >= 5, used=used) for index, used in kv.items()},
        held=held,
        missing_running=0,
        missing_waiting=0,
        victims=lambda: victims,
        **settings,
    )


def test_a_wake_is_not_held_up_by_a_long_sequence_while_another_model_has_more_than_its_floor():
    """A borrower at its floor gets a slab of a richer model for the home that it gives back."""
    models = (
        _view("long", {0: 10, 5: 10}, held=20, floor=2),
        _view("rich", dict.fromkeys((1, 2, 3, 4), 9), held=36, floor=2, victims=(9, 9, 9)),
        _view("wakes", {}, held=0, floor=1, state="Lent", units=["lent"], homes=[[5]], waiting=1),
    )
    controller = RemapController(
        policy=Policy.parse("remap-idle"), lend_order="mru", min_resident_units=1, active_cap=0.25
    )
    view = ArenaView(
        free=[], free_homes=[], home_of={5: ("wakes", 0)}, models={m.name: m for m in models}
    )
    stats = StepStats(decode_seconds={}, link_rate=None, latency_seconds=0.0, switch_seconds=0.0)
    orders = controller.decide(view, stats, 1.0)
    assert Load("wakes", 0, "wake") in orders
    assert [order.model for order in orders if isinstance(order, Grow)] == ["long"]
