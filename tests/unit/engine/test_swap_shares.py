"""Swap space is shared by the models that there are, and comes back whole when one goes."""

import gc
import weakref

import pytest

from tests.unit.engine.builders import submit
from tests.unit.engine.test_remap import ask, check, reload, settle, tenants
from trimtab_workers.engine.backend import CpuBackend
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.errors import UnexpectedError
from trimtab_workers.engine.kv import HostBlockManager
from trimtab_workers.engine.transfer import HostBlocks


def swap_bytes(engine: Engine) -> dict[str, int]:
    """Return the bytes that each model may swap out."""
    return {
        name: tenant.scheduler.host.capacity * tenant.unit.layers * tenant.unit.block_bytes
        for name, tenant in engine._tenants.items()
        if tenant.scheduler is not None
    }


def swap_out(engine: Engine, model: str) -> None:
    """Load a model until a sequence of its lies in host memory."""
    for index in range(40):
        submit(engine, ask(model, f"swap{index}", 60, max_tokens=60))
    for _ in range(300):
        engine.clock.advance(0.01)
        engine.step()
        if engine.tenant(model).scheduler.host.used:
            return
    pytest.fail("nothing was swapped")


@pytest.mark.parametrize("ends", ["removed", "failed"])
@pytest.mark.parametrize("given", [None, 600_000])
def test_swap_space_comes_back_when_a_model_goes(ends: str, given: int | None):
    """A model that goes with swapped sequences leaves its share, its memory and no other trace."""
    engine = tenants("a", kv_slabs=14, pressure="swap", max_model_len=128, swap_bytes=given)
    before = swap_bytes(engine)
    reload(engine, "ab")
    shared = swap_bytes(engine)
    assert shared.keys() == {"a", "b"}
    assert min(shared.values()) > 0
    assert sum(shared.values()) <= before["a"]
    swap_out(engine, "b")
    b = engine.tenant("b")
    held = weakref.ref(b.host_blocks.data)
    if ends == "failed":
        engine._fail_tenant(b, UnexpectedError("Broken."))
    else:
        reload(engine, "a")
        engine.clock.advance(31)
        engine.step()
    settle(engine)
    check(engine)
    gc.collect()
    assert held() is None
    assert swap_bytes(engine) == before
    assert engine.tenant("a").scheduler.host.used == 0


def test_a_share_that_shrinks_takes_nothing_from_sequences():
    """Sequences keep their places, cached prefixes make way, and what is freed stays free."""
    host = HostBlockManager(6)
    held = host.allocate(4)
    assert host.remember(b"one") is not None
    assert host.remember(b"two") is not None
    host.resize(3)
    assert host.find([b"one"]) == host.find([b"two"]) == []
    assert (host.used, host.available) == (4, 0)
    assert host.allocate(1) is None
    assert host.remember(b"three") is None
    host.release(held[:2])
    assert (host.used, host.available) == (2, 1)
    more = host.allocate(1)
    assert more is not None
    assert not set(more) & set(held[2:])
    host.release([*held[2:], *more])
    host.resize(9)
    assert host.available == host.capacity == 6
    assert sorted(host.allocate(6)) == list(range(6))


def test_memory_above_a_shrunken_share_is_named_once():
    """Free places that were written are given up until what is held fits the share."""
    host = HostBlockManager(8)
    held = host.allocate(6)
    assert host.take_surplus() == []
    host.release(held[:4])
    host.resize(3)
    gone = host.take_surplus()
    assert len(gone) == 3
    assert set(gone) < set(held[:4])
    assert host.take_surplus() == []
    host.release(held[4:])
    assert len(host.take_surplus()) == 0
    host.resize(8)
    assert sorted(host.allocate(8)) == list(range(8))


def test_free_memory_is_filled_before_new_memory_is_touched():
    """A place that was written and is free again is taken before one that never was."""
    host = HostBlockManager(5)
    first = host.allocate(2)
    host.release(first)
    assert set(host.allocate(2)) == set(first)


def test_dropped_places_leave_their_neighbours_alone():
    """The pages of a dropped place go back to the system; the bytes beside it stay."""
    blocks = HostBlocks(places=3, layers=4, block_bytes=3 * 4096)
    data = blocks.reserve()
    data.fill_(7)
    blocks.drop([1])
    assert bool((data[0] == 7).all())
    assert bool((data[2] == 7).all())
    assert int((data[1] == 0).sum()) >= data[1].numel() - 2 * 4096


def test_a_model_gives_back_the_memory_of_a_share_that_shrank():
    """After a model joined, no more swap memory is held than the shares allow."""
    engine = tenants("a", kv_slabs=14, pressure="swap", max_model_len=128, swap_bytes=600_000)
    swap_out(engine, "a")
    settle(engine)
    host = engine.tenant("a").scheduler.host
    written = len(host._free) + host.used + len(host._cached)
    reload(engine, "ab")
    settle(engine)
    left = len(host._free) + host.used + len(host._cached)
    assert left <= host.capacity < written
    check(engine)


def test_over_a_link_no_memory_is_given_back():
    """A copy may still use a place that is free already, so what a share lost stays as it is."""
    engine = tenants(
        "a",
        kv_slabs=14,
        pressure="swap",
        max_model_len=128,
        swap_bytes=600_000,
        backend=CpuBackend(link_rate=1e9),
    )
    swap_out(engine, "a")
    settle(engine)
    host = engine.tenant("a").scheduler.host
    written = len(host._free) + host.used + len(host._cached)
    reload(engine, "ab")
    settle(engine)
    assert host.capacity < written
    assert len(host._free) + host.used + len(host._cached) == written
    check(engine)
