from types import SimpleNamespace

import pytest
import torch

from tests.unit.engine.cuda.fake_device import FakeDevice
from trimtab_workers.engine import transfer_cuda
from trimtab_workers.engine.kv import KvLayout
from trimtab_workers.engine.transfer_cuda import CudaTransfer

LAYOUT = KvLayout(slab_bytes=13 * 256, block_bytes=256, layers=3, kv_heads=1, head_dim=4)
SLABS = 4


def a_transfer():
    device = FakeDevice()
    arena = torch.randint(0, 256, (SLABS * LAYOUT.slab_bytes,), dtype=torch.uint8)
    transfer = CudaTransfer(
        device, arena=arena, slab_bytes=LAYOUT.slab_bytes, assumed_link_rate=50e9
    )
    return device, arena, transfer


def block(arena, slot):
    """Return one block of all layers, by the definition of KvLayout."""
    size, step = LAYOUT.block_bytes, LAYOUT.blocks_per_slab
    return torch.stack([arena[(slot + i * step) * size :][:size] for i in range(LAYOUT.layers)])


def host_blocks(places):
    """Return host memory for so many blocks."""
    shape = places, LAYOUT.layers, LAYOUT.block_bytes
    return SimpleNamespace(data=torch.zeros(shape, dtype=torch.uint8))


def order(log, *entries):
    """Return where these entries are in the log."""
    return [log.index(entry) for entry in entries]


def test_load_waits_for_readers():
    """A load waits for every kernel before it, and kernels wait for the load."""
    device, arena, transfer = a_transfer()
    host = torch.arange(200, dtype=torch.uint8)
    before = arena.clone()
    ticket = transfer.load(host, slab=2, reason="wake")
    transfer.wait(ticket)
    start = 2 * LAYOUT.slab_bytes
    assert torch.equal(arena[start : start + 200], host)
    assert torch.equal(arena[:start], before[:start])
    assert torch.equal(arena[start + 200 :], before[start + 200 :])
    places = order(
        device.log,
        ("compute", "records", 0),
        ("inward", "waits for", 0),
        ("inward", "begins", None),
        ("inward", "records", ticket.done.number),
        ("compute", "waits for", ticket.done.number),
    )
    assert places == sorted(places)
    assert transfer.moved_bytes == {("h2d", "wake"): 200}


def test_units_and_zeros():
    """A unit of a host copy arrives in its slab, and a cleared slab is zero, alone."""
    _, arena, transfer = a_transfer()
    copy = SimpleNamespace(unit=lambda index: torch.full((10,), index, dtype=torch.uint8))
    transfer.load_unit(copy, 7, slab=1, slabs=1, reason="load")
    assert arena[LAYOUT.slab_bytes :][:10].tolist() == [7] * 10
    before = arena.clone()
    transfer.zero(2)
    assert not arena[2 * LAYOUT.slab_bytes : 3 * LAYOUT.slab_bytes].any()
    assert torch.equal(arena[: 2 * LAYOUT.slab_bytes], before[: 2 * LAYOUT.slab_bytes])


def test_stream_waits_for_its_slots_reader_alone():
    """A streamed layer's load waits for the given event, not for kernels launched since."""
    device, _, transfer = a_transfer()
    read = transfer.mark()
    device.log.clear()
    transfer.load(torch.zeros(8, dtype=torch.uint8), slab=0, reason="stream", after=read)
    assert [entry for entry in device.log if entry[0] == "compute"] == []
    assert ("inward", "waits for", read.number) in device.log


def test_compaction_keeps_order():
    """Blocks are copied in the kernels' own stream, all layers, and nothing else changes."""
    device, arena, transfer = a_transfer()
    before = arena.clone()
    pairs = [(0, 14), (3, 28), (13, 1)]
    ticket = transfer.copy_blocks(LAYOUT, pairs)
    for source, target in pairs:
        assert torch.equal(block(arena, target), block(before, source))
    touched = 3 * LAYOUT.layers * LAYOUT.block_bytes
    assert int((arena != before).sum()) <= touched
    assert {entry[0] for entry in device.log} == {"compute"}
    assert (ticket.size_bytes, ticket.direction) == (touched, "d2d")


@pytest.mark.parametrize("staged_blocks", [1, 2, 100])
def test_swap_there_and_back(monkeypatch, staged_blocks):
    """Blocks survive a round trip through scattered host rows, whatever fits into the staging."""
    size = LAYOUT.layers * LAYOUT.block_bytes
    monkeypatch.setattr(transfer_cuda, "STAGING_BYTES", staged_blocks * size)
    _, arena, transfer = a_transfer()
    host = host_blocks(8)
    slots, rows = [0, 15, 2, 27], [5, 6, 1, 0]
    held = [block(arena, slot) for slot in slots]
    transfer.swap_out(LAYOUT, host, list(zip(slots, rows, strict=True)))
    for slot in slots:
        for layer in range(LAYOUT.layers):
            at = (slot + layer * LAYOUT.blocks_per_slab) * LAYOUT.block_bytes
            arena[at : at + LAYOUT.block_bytes] = 0
    targets = [28, 1, 14, 3]
    ticket = transfer.swap_in(LAYOUT, host, list(zip(rows, targets, strict=True)))
    assert transfer.wait(ticket) == 0.0
    assert all(
        torch.equal(block(arena, target), kept) for target, kept in zip(targets, held, strict=True)
    )
    assert transfer.moved_bytes == {("d2h", "swap"): 4 * size, ("h2d", "swap"): 4 * size}


def test_swapped_slots_are_free_once_packed(monkeypatch):
    """Later kernels wait until the last block is packed, not until it has crossed the link."""
    size = LAYOUT.layers * LAYOUT.block_bytes
    monkeypatch.setattr(transfer_cuda, "STAGING_BYTES", size)
    device, _, transfer = a_transfer()
    host = host_blocks(2)
    ticket = transfer.swap_out(LAYOUT, host, [(0, 0), (1, 1)])
    outward = [
        number for name, what, number in device.log if (name, what) == ("outward", "records")
    ]
    started, _, last_packed, done = outward
    assert started == ticket.started.number
    assert done == ticket.done.number
    assert device.log[-1] == ("compute", "waits for", last_packed)


def test_stalls_are_reported_once_and_late():
    """What a wait cost is known when its events are done, and counted for its own reason."""
    device, _, transfer = a_transfer()
    device.prompt = False
    nothing = torch.zeros(1, dtype=torch.uint8)
    assert transfer.wait(transfer.load(nothing, slab=0, reason="stream")) == 0.0
    before, after = device.events[-2:]
    before.at_milliseconds, after.at_milliseconds = 10.0, 13.0
    assert transfer.stalled("stream") == 0.0
    after.done = True
    assert transfer.stalled("wake") == 0.0
    assert transfer.stalled("stream") == pytest.approx(0.003)
    assert transfer.stalled("stream") == 0.0


def test_link_rate_is_measured():
    """The rate is assumed until a load was timed, then the fastest of the last ones."""
    _, _, transfer = a_transfer()
    assert transfer.link_rate == 50e9
    for milliseconds in [1e-6] + 20 * [4e-6]:
        ticket = transfer.load(torch.zeros(400, dtype=torch.uint8), slab=0, reason="stream")
        ticket.done.at_milliseconds = milliseconds
        rate = transfer.link_rate
    assert rate == pytest.approx(100e9)
