"""Packed products, slab arithmetic, attention's padding."""

from collections.abc import Iterator

import pytest
import torch

from trimtab_workers.engine import linear as linear_module
from trimtab_workers.engine.arena import Arena, UnitShape, choose_slab
from trimtab_workers.engine.attention import padded_keys
from trimtab_workers.engine.errors import OutOfMemoryError
from trimtab_workers.engine.kv import KvLayout
from trimtab_workers.engine.linear import Linear, PackedLinear, pack_in_place

SHAPES = [(960, 576), (576, 1536), (512, 96), (96, 128), (682, 128), (128, 341)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_packing(shape: tuple[int, int], dtype: torch.dtype):
    """A packed weight lives in the given memory, multiplies and looks up as a plain one does."""
    weight = torch.randn(shape).to(dtype)
    plain, address = weight.clone(), weight.data_ptr()
    linear = pack_in_place(weight)
    x = torch.randn(20, shape[1]).to(dtype)
    torch.testing.assert_close(linear(x), Linear(plain)(x), atol=1e-3, rtol=2e-2)
    index = torch.arange(0, shape[0], 3)
    assert torch.equal(linear.rows(index), plain[index])
    if isinstance(linear, PackedLinear):
        assert linear._weight.data_ptr() == address


@pytest.fixture
def fresh_tools() -> Iterator[None]:
    """Looks for torch's packing anew, before and after."""
    linear_module._tools.cache_clear()
    yield
    linear_module._tools.cache_clear()


@pytest.mark.usefixtures("fresh_tools")
@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError, ValueError])
@pytest.mark.parametrize("part", ["__init__", "size", "bytes_of", "over"])
def test_a_torch_without_this_private_interface_serves(
    part: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    """Where torch lacks the packing, or has it with other arguments, products are right without."""

    def gone(*_: object) -> object:
        raise error("not in this torch")

    monkeypatch.setattr(linear_module._Tools, part, gone)
    plain = torch.randn(64, 96)
    linear = pack_in_place(plain.clone())
    assert linear_module._tools() is None
    assert type(linear) is not PackedLinear
    x = torch.randn(5, 96)
    torch.testing.assert_close(linear(x), Linear(plain)(x), atol=1e-3, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_ignore_their_number(shape: tuple[int, int], dtype: torch.dtype):
    """From 4 rows on, a row's product has the same bits however many rows are beside it."""
    linear = pack_in_place(torch.randn(shape).to(dtype))
    x = torch.randn(300, shape[1]).to(dtype)
    whole = linear(x)
    different = [
        n
        for n in [*range(4, 40), 63, 64, 65, 128, 200, 299]
        if not torch.equal(linear(x[:n]), whole[:n])
    ]
    assert different == []


def test_smollm2_slabs():
    """SmolLM2's slab is one layer of 7,077,888 bytes and holds 19 blocks (engine.md §4)."""
    shape = UnitShape(layer_bytes=7_077_888, layers=30, block_bytes=12_288)
    choice = choose_slab([shape], align_bytes=4096)
    assert (choice.slab_bytes, choice.layers_per_slab, choice.waste) == (7_077_888, (1,), 0.0)
    layout = KvLayout(
        slab_bytes=choice.slab_bytes, block_bytes=12_288, layers=30, kv_heads=3, head_dim=64
    )
    assert (layout.rows_per_slab, layout.blocks_per_slab) == (576, 19)


def test_views_do_not_overlap():
    """Every (layer, block) is a row of its own, inside its own slab."""
    layout = KvLayout(slab_bytes=1000 * 128, block_bytes=128, layers=7, kv_heads=1, head_dim=2)
    arena = torch.zeros(3 * 1000 * 64, dtype=torch.int16)
    seen: set[int] = set()
    for slab in (0, 2):
        for layer in range(7):
            view = layout.view(arena, layer)
            for slot in layout.slots(slab):
                seen.add(view[slot].storage_offset())
                assert slab * 64_000 <= view[slot].storage_offset() <= (slab + 1) * 64_000 - 64
    assert len(seen) == 2 * 7 * (1000 // 7)


def test_weights_need_room():
    """Weights that do not fit name bytes needed and free, and take nothing."""
    arena = Arena(slab_bytes=100, slabs=3)
    with pytest.raises(OutOfMemoryError, match=r"need 400 bytes .4 slabs., but 300 bytes"):
        arena.claim_homes("m", homes=2, slabs_per_home=2)
    assert arena.free == 3


@pytest.mark.parametrize("tokens", [*range(1, 2000, 7), 192, 193, 383, 384, 512, 704, 705])
def test_padded_keys(tokens: int):
    """Padding covers the context, in whole blocks, and avoids the unsafe remainders."""
    keys = padded_keys(tokens)
    assert keys >= tokens
    assert keys % 16 == 0
    assert not 192 < keys % 512 < 384
    assert keys - tokens < 208
