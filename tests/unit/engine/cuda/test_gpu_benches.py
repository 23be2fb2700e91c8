import math

import pytest
import torch

from tests.unit.engine.cuda.fake_device import FakeDevice
from trimtab_workers.engine.bench.__main__ import main
from trimtab_workers.engine.bench.gpu import c2c, exact
from trimtab_workers.engine.bench.gpu.c2c import idle_seconds
from trimtab_workers.engine.bench.gpu.rig import Rig
from trimtab_workers.engine.bench.gpu.ring import Ring
from trimtab_workers.engine.bench.gpu.roofline import (
    Spread,
    decode_bytes,
    decode_row,
    interference,
    markdown_table,
    named_shape,
    remap_shape,
    streamed_row,
)
from trimtab_workers.engine.models.shape import LlamaShape

TINY = LlamaShape(
    family="llama",
    layers=3,
    hidden=16,
    heads=2,
    kv_heads=1,
    head_dim=16,
    intermediate=16,
    vocab=64,
    norm_eps=1e-5,
    rope_theta=10_000.0,
    max_positions=64,
    tied=True,
)


def a_rig():
    return Rig(
        FakeDevice(),
        TINY,
        dtype="fp32",
        kv_tokens=64,
        spare_slabs=2,
        max_context=64,
        align_bytes=64,
        widen=True,
    )


@pytest.mark.parametrize("name", ["calibrate", "decode", "exact", "active", "c2c"])
def test_refused_without_a_gpu(name, monkeypatch, capsys):
    """Without a GPU a benchmark names what is missing and exits with 2."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([name]) == 2
    assert "device is 'cuda:0', but torch" in capsys.readouterr().err
    assert main([name, "--device", "cpu"]) == 2
    assert f"{name} measures a GPU" in capsys.readouterr().err


def test_known_shapes():
    """Sizes are those that engine.md §1 prints."""
    llama = remap_shape(named_shape("llama-3-8b"))
    assert round(llama.layer_bytes / 1e6) == 436
    assert llama.kv_bytes_per_token == 128 << 10
    assert round(llama.read_outside_bytes / 1e9, 2) == 1.05
    assert round(llama.weight_bytes / 1e9, 1) == 16.1
    older = remap_shape(named_shape("llama-2-7b"))
    assert round(older.layer_bytes / 1e6) == 405
    assert older.kv_bytes_per_token == 512 << 10


def test_decode_row():
    """The floor is weights, head and context over the rate; the target is a quarter above it."""
    shape = named_shape("llama-3-8b")
    size = 32 * 436_207_616 + 128256 * 4096 * 2 + 8 * 1024 * (128 << 10)
    assert decode_bytes(shape, batch=8, context=1024) == size
    floor = size / 3e12
    step = Spread.of([floor * 1.3, floor * 1.2, floor * 1.24])
    row = decode_row(shape, batch=8, context=1024, graphs=True, step=step, memory_rate=3e12)
    assert row["over_floor"] == pytest.approx(1.24)
    assert row["met"]
    assert row["tokens_per_second"] == pytest.approx(8 / (1.24 * floor))
    slow = decode_row(
        shape, batch=8, context=1024, graphs=True, step=Spread.of([1.26 * floor]), memory_rate=3e12
    )
    assert not slow["met"]


def test_spread():
    """Repeats give median, range and a rate; none is refused."""
    spread = Spread.of([3.0, 1.0, 2.0])
    assert (spread.median, spread.least, spread.greatest) == (2.0, 1.0, 3.0)
    assert spread.rate(10) == 5.0
    assert interference(spread, Spread.of([3.0])) == 1.5
    with pytest.raises(ValueError, match="no timing"):
        Spread.of([])


@pytest.mark.parametrize(
    ("alpha", "slots", "transfer_s", "predicted"),
    [
        (0, 1, 1.0, 32.0),
        (4, 2, 1.0, 32.0),  # hidden: six transfers in 32 s
        (40, 2, 1.0, 42.0),  # bound by the link
        (20, 1, 1.0, 42.0),  # each waits for its layer, 1 s
    ],
)
def test_streamed_row(alpha, slots, transfer_s, predicted):
    """A step takes as long as its reading or its streaming, whichever is longer."""
    resident = Spread.of([32.0])
    row = streamed_row(
        alpha=alpha,
        slots=slots,
        step=Spread.of([predicted * 1.09]),
        resident=resident,
        transfer_s=transfer_s,
        layers=32,
    )
    assert row["predicted_s"] == pytest.approx(predicted)
    assert row["within_tolerance"]
    assert row["hidden_bound_layers"] == (32.0 if slots == 2 else 16.0)


def test_tables():
    """Rows become a table with four digits; what is missing shows as a dash."""
    table = markdown_table([{"a": 1.23456, "b": True}, {"a": 7}], ["a", "b"])
    assert table == "| a | b |\n|---|---|\n| 1.235 | yes |\n| 7 | - |"


def test_throttle():
    """Pieces and idle time together flow at the emulated rate; a slow device is not slowed."""
    piece = 8 << 20
    idle = idle_seconds(piece_bytes=piece, rate=100e9, own_rate=1e12)
    assert piece / (piece / 1e12 + idle) == pytest.approx(100e9)
    assert idle_seconds(piece_bytes=piece, rate=2e12, own_rate=1e12) == 0.0


def test_throttled_copies_are_whole(monkeypatch):
    """Throttled loads move every byte, the last odd piece included."""
    monkeypatch.setattr(c2c, "_PIECE_BYTES", 100)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    rig = a_rig()
    transfer = c2c.ThrottledTransfer(
        rig.device, arena=rig.arena, slab_bytes=rig.slab_bytes, assumed_link_rate=1.0
    )
    transfer.load(rig.host_copy((1,))[0], slab=rig.slots[0], reason="stream")
    assert torch.equal(rig.home(rig.slots[0]), rig.home(1))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NaN, which numpy tells
def test_streaming_is_exact(monkeypatch):
    """Every level, one and two slots, NaN before each load: the resident logits; no copy: not."""
    monkeypatch.setattr(exact, "_PROMPT", 3)
    monkeypatch.setattr(exact, "_CHUNK", 2)
    monkeypatch.setattr(exact, "_SEQUENCES", 1)
    rig = a_rig()
    host = rig.host_copy((0, 1, 2))
    rows = list(exact.compare(rig, host=host, tokens=1))
    assert [(row["alpha"], row["slots"]) for row in rows[:-1]] == [
        (0, 1),
        (1, 1),
        (2, 1),
        (0, 2),
        (1, 2),
    ]
    assert exact.passed(rows), rows
    assert rows[1]["bytes"] > 0
    assert not rows[-1]["equal"]
    for broken in ({"equal": False}, {"bytes": 1}):
        assert not exact.passed([rows[1] | broken])


def test_ring_leaves_the_model_as_it_was():
    """After a ring every layer is at home again and nothing waits at a gate."""
    rig = a_rig()
    layers = list(rig.model.layers)
    with Ring(rig, alpha=1, slots=1, host=rig.host_copy((0, 1, 2))) as ring:
        assert ring.streamed == (0, 1)
        assert rig.runner.gate is ring
        ring.enter(0)
        assert rig.model.layers[0] is not layers[0]
        with pytest.raises(IndexError):
            ring.enter(1)
    assert rig.runner.gate is None
    assert all(a is b for a, b in zip(rig.model.layers, layers, strict=True))


def test_full_cache():
    """A rig whose cache is full says how much fits."""
    rig = a_rig()
    capacity = rig.blocks.capacity * 16
    with pytest.raises(ValueError, match="Raise kv_tokens"):
        rig.sequence([1] * capacity)
    assert math.isfinite(float(rig.home(0).sum()))
