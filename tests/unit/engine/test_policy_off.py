"""A policy that is not in force says so, and one that is moves bytes (vllm #51396, #51397, #51462)."""

import errno
import itertools
import os

import pytest

from tests.unit.engine.builders import TINY, submit
from tests.unit.engine.test_remap import ask, burst, settle, tenants
from trimtab.planning.remap import streamed_layers
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import HostCopyError
from trimtab_workers.engine.transfer import HostBlocks


def off(engine: Engine, what: str) -> list[str]:
    """Return the models whose gauge says that a part of the policy is off."""
    value = engine.registry.get_sample_value
    return [
        name
        for name in engine._tenants
        if value("trimtab_engine_policy_off", {"model_name": name, "engine": "0", "what": what})
    ]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _offset: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)


@pytest.mark.parametrize("pressure", ["remap", "remap-idle", "static:2"])
@pytest.mark.usefixtures("full_disk")
def test_a_missing_host_copy_is_told(pressure: str):
    """Without room for host copies models serve, nothing is remapped, and state and gauge say why."""
    engine = tenants(pressure=pressure)
    outputs = burst(engine)
    assert all(output[-1].finish_reason == "length" for output in outputs)
    state = engine.state()
    assert [model["lendable"] for model in state["models"]] == [False, False]
    assert len(state["errors"]) == 2
    assert "Model a: its host copy of" in state["errors"][0]
    assert "No space left" in state["errors"][0]
    assert off(engine, "host_copy") == ["a", "b"]
    assert not {"h2d/wake", "h2d/revert", "h2d/stream"} & state["remap"]["link_bytes"].keys()


def test_swap_without_a_block_of_room_is_told():
    """A share of swap_bytes below one block means recompute, with the numbers."""
    engine = tenants(pressure="swap", swap_bytes=1000)
    burst(engine)
    state = engine.state()
    assert "its share of swap_bytes is 500 bytes" in state["errors"][0]
    assert off(engine, "swap") == ["a", "b"]
    assert state["remap"]["link_bytes"] == {}


def test_refused_swap_space_is_told(monkeypatch: pytest.MonkeyPatch):
    """Host memory that the system refuses is noticed at start, not by the first swap."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("trimtab_workers.engine.transfer.torch.empty", refuse)
    with pytest.raises(HostCopyError, match="The system refuses 24 bytes"):
        HostBlocks(places=2, layers=3, block_bytes=4).reserve()
    monkeypatch.undo()
    monkeypatch.setattr(HostBlocks, "reserve", _refusing)
    engine = tenants(pressure="swap")
    burst(engine)
    assert "refused" in engine.state()["errors"][0]
    assert off(engine, "swap") == ["a", "b"]


def _refusing(_: HostBlocks) -> None:
    raise HostCopyError("refused")


def test_a_static_level_without_room_is_told():
    """Too few units for static:K beside its slots stream nothing, and the state says so."""
    engine = tenants("a", pressure="static:2", hf_config=TINY, kv_slabs=8)
    assert engine.tenant("a").alpha == 0
    assert "nothing streams" in engine.state()["errors"][0]
    assert off(engine, "streaming") == ["a"]


@pytest.mark.parametrize("pressure", ["swap", "remap-idle", "remap", "static:2"])
def test_a_policy_in_force_moves_bytes(pressure: str):
    """Where nothing is told, pressure makes bytes cross the link, for the reason the policy names."""
    engine = tenants(pressure=pressure)
    burst(engine)
    state = engine.state()
    assert state["errors"] == []
    for what in ("host_copy", "streaming", "swap"):
        assert off(engine, what) == []
    reason = {"swap": "d2h/swap", "static:2": "h2d/stream"}.get(pressure, "h2d/wake")
    assert state["remap"]["link_bytes"][reason] > 0


def test_streamed_layers_are_never_neighbours():
    """For all n ≤ 40: gaps around the cycle within 1, and none of 1 unless m > n/2 (vllm-ascend #11945)."""
    for n in range(1, 41):
        for m in range(1, n + 1):
            units = streamed_layers(n, m)
            gaps = [(b - a) % n or n for a, b in zip(units, (*units[1:], units[0]), strict=True)]
            assert sum(gaps) == n
            assert max(gaps) - min(gaps) <= 1
            assert (min(gaps) == 1) == (2 * m > n), (n, m, units)


@pytest.mark.parametrize(("alpha", "slots"), [(1, 1), (1, 2), (2, 1)])
def test_a_running_model_streams_no_neighbours(alpha: int, slots: int):
    """The engine streams that set and no other, and goes back to where each unit was."""
    engine = tenants("a", kv_slabs=6, pressure=f"static:{alpha}", slots=slots)
    tenant = engine.tenant("a")
    streamed = [unit for unit, state in enumerate(tenant.units) if state == "streamed"]
    assert streamed == list(streamed_layers(6, alpha + slots))
    assert all(b - a > 1 for a, b in itertools.pairwise(streamed))
    submit(engine, ask("a", "r", 20, max_tokens=3))
    settle(engine)
    assert engine.state()["remap"]["link_bytes"]["h2d/stream"] > 0
