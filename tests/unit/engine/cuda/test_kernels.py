import math

import pytest
import torch
from torch.nn import functional

from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.kernels import decode, norm, rotate
from trimtab_workers.engine.models.llama import rotation_table
from trimtab_workers.engine.models.shape import LlamaShape

# One unit in the last place of bfloat16: the interpreter cuts it off where a GPU rounds.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1 / 128}


def a_shape(**fields: object) -> LlamaShape:
    sizes = {
        "family": "llama",
        "layers": 1,
        "hidden": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
        "intermediate": 64,
        "vocab": 64,
        "norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_positions": 64,
        "tied": True,
    }
    return LlamaShape(**(sizes | fields))  # type: ignore[arg-type]


def a_cache(
    lengths: list[int], *, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return a poisoned view, a table of scattered slots, and each sequence's [2, tokens, …]."""
    columns = max(1, -(-max(lengths) // BLOCK_TOKENS))
    blocks = len(lengths) * columns + 1
    view = torch.full((blocks, 2, BLOCK_TOKENS, kv_heads, head_dim), math.nan, dtype=dtype)
    # A slot out of range stands where none may be read.
    table = torch.full((len(lengths), columns), 1 << 40)
    order = torch.randperm(blocks).tolist()
    held = []
    for index, length in enumerate(lengths):
        pair = torch.randn(2, length, kv_heads, head_dim).to(dtype)
        for block in range(-(-length // BLOCK_TOKENS)):
            slot = order.pop()
            table[index, block] = slot
            piece = pair[:, block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS]
            view[slot, :, : piece.shape[1]] = piece
        held.append(pair)
    return view, table, held


def reference(query: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
    """Attend in float64, one query to all of a sequence."""
    group = query.shape[0] // pair.shape[2]
    keys, values = pair.double().repeat_interleave(group, dim=2).transpose(1, 2)
    scores = (keys @ query.double()[:, :, None]).squeeze(-1) / math.sqrt(query.shape[1])
    return (scores.softmax(-1)[:, None] @ values).squeeze(1)


@pytest.mark.parametrize(
    ("heads", "dtype", "lengths", "splits"),
    [
        ((1, 2, 64), torch.float32, [1, 16, 17, 63, 64, 65, 2, 128, 33], 1),
        ((3, 3, 64), torch.float32, [127, 5], 2),
        ((4, 2, 96), torch.float32, [100, 7, 200], 4),
        ((8, 1, 128), torch.bfloat16, [70, 131], 2),
        ((4, 2, 128), torch.bfloat16, [37], 1),
        ((3, 1, 96), torch.bfloat16, [129, 64], 1),
    ],
)
def test_decode_attention(heads, dtype, lengths, splits):
    """Decode attention equals torch's for grouped heads, odd lengths and NaN in stale bytes."""
    group, kv_heads, head_dim = heads
    torch.manual_seed(1)
    view, table, held = a_cache(lengths, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
    queries = torch.randn(len(lengths), group * kv_heads, head_dim).to(dtype)
    out = decode.decode_attention(
        queries,
        view=view,
        slots=table,
        lengths=torch.tensor(lengths, dtype=torch.int32),
        splits=splits,
        widen=True,
    )
    expected = torch.stack([reference(q, pair) for q, pair in zip(queries, held, strict=True)])
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    torch.testing.assert_close(
        out.view_as(expected).double(), expected, rtol=_TOLERANCE[dtype], atol=_TOLERANCE[dtype]
    )


@pytest.mark.parametrize("splits", [1, 4])
def test_decode_padding(splits):
    """A sequence without tokens gives zeros and reads nothing, also when contexts are split."""
    view, table, held = a_cache([0, 40], kv_heads=1, head_dim=64, dtype=torch.float32)
    queries = torch.randn(2, 2, 64)
    out = decode.decode_attention(
        queries,
        view=view,
        slots=table,
        lengths=torch.tensor([0, 40], dtype=torch.int32),
        splits=splits,
        widen=True,
    )
    assert torch.equal(out[0], torch.zeros(128))
    torch.testing.assert_close(out[1].view(2, 64), reference(queries[1], held[1]).float())


def test_decode_passes_nan_on():
    """A NaN that was computed, unlike stale bytes, reaches the output, so that it is detected."""
    view, table, _ = a_cache([20], kv_heads=1, head_dim=64, dtype=torch.float32)
    view[table[0, 1], 0, 2] = math.nan
    out = decode.decode_attention(
        torch.randn(1, 1, 64),
        view=view,
        slots=table,
        lengths=torch.tensor([20], dtype=torch.int32),
        splits=1,
        widen=True,
    )
    assert torch.isnan(out).all()


@pytest.mark.parametrize(
    ("batch", "kv_heads", "tokens", "expected"),
    [(1, 8, 8192, 32), (4, 8, 8192, 8), (64, 8, 8192, 1), (1, 8, 100, 2), (1, 1, 64, 1)],
)
def test_splits(batch, kv_heads, tokens, expected):
    """Small batches split contexts until an H100's 132 processors have work, large ones do not."""
    assert (
        decode.splits_for(batch=batch, kv_heads=kv_heads, processors=132, max_tokens=tokens)
        == expected
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(3, 1, 64), (2, 2, 96)])
def test_rotation_and_write(dtype, normed, heads, kv_heads, head_dim):
    """Queries are rotated, rotated keys and plain values land in their token rows, alone."""
    torch.manual_seed(2)
    kind = "fp32" if dtype == torch.float32 else "bf16"
    table = rotation_table(a_shape(head_dim=head_dim), positions=50, dtype=kind)
    positions = torch.tensor([0, 49, 7])
    qkv = torch.randn(3, (heads + 2 * kv_heads) * head_dim).to(dtype)
    view = torch.full((4, 2, BLOCK_TOKENS, kv_heads, head_dim), math.nan, dtype=dtype)
    writes = torch.tensor([2 * 32 + 5, -1, 31 - 16])
    norms = torch.rand(2, head_dim).to(dtype) if normed else None
    queries = rotate.rotate_and_store(
        qkv,
        view=view,
        writes=writes,
        positions=positions,
        table=table,
        norms=norms,
        eps=1e-5,
        heads=heads,
    )
    wide = qkv.double().view(3, -1, head_dim)
    parts = [wide[:, :heads], wide[:, heads : heads + kv_heads]]
    if norms is not None:
        parts = [
            functional.rms_norm(part, (head_dim,), weight.double(), 1e-5)
            for part, weight in zip(parts, norms, strict=True)
        ]
    cos, sin = table[:, positions].double()
    q, k = (part * cos + part.roll(head_dim // 2, -1) * sin for part in parts)
    close = {"rtol": _TOLERANCE[dtype], "atol": _TOLERANCE[dtype]}
    torch.testing.assert_close(queries.double(), q, **close)
    for row, (slot, offset) in ((0, (2, 5)), (2, (0, 15))):
        torch.testing.assert_close(view[slot, 0, offset].double(), k[row], **close)
        value = qkv.view(3, -1, head_dim)[row, heads + kv_heads :]
        assert torch.equal(view[slot, 1, offset], value)
    assert int(torch.isfinite(view).sum()) == 2 * 2 * kv_heads * head_dim


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 96, 577])
def test_add_norm(dtype, columns):
    """A residual is added in place and the rounded sum is normed, as torch does in two steps."""
    x, delta = torch.randn(2, 3, columns).to(dtype)
    weight = torch.rand(columns).to(dtype)
    both = x + delta
    out = norm.add_norm(x, delta, weight, eps=1e-5)
    torch.testing.assert_close(x, both, rtol=_TOLERANCE[dtype], atol=1e-6)
    expected = functional.rms_norm(x.clone(), (columns,), weight, 1e-5)
    torch.testing.assert_close(out, expected, rtol=_TOLERANCE[dtype], atol=1e-6)
    both = x.clone()
    again = norm.add_norm(x, None, weight, eps=1e-5)
    assert torch.equal(again, out)
    assert torch.equal(x, both)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 130, 1025])
def test_silu_mul(dtype, width):
    """Gate and up are combined as torch does, also past one block of columns."""
    gate_up = torch.randn(2, 2 * width).to(dtype) * 4
    gate, up = gate_up.double().chunk(2, dim=-1)
    torch.testing.assert_close(
        norm.silu_mul(gate_up).double(),
        functional.silu(gate) * up,
        rtol=_TOLERANCE[dtype],
        atol=1e-6,
    )


def test_nothing_to_do():
    """No rows are no launch, which Triton would refuse."""
    view = torch.zeros(1, 2, BLOCK_TOKENS, 1, 64)
    none = torch.zeros(0, dtype=torch.int64)
    assert norm.silu_mul(torch.zeros(0, 8)).shape == (0, 4)
    assert norm.add_norm(torch.zeros(0, 8), None, torch.ones(8), eps=1e-5).shape == (0, 8)
    queries = rotate.rotate_and_store(
        torch.zeros(0, 256),
        view=view,
        writes=none,
        positions=none,
        table=torch.zeros(2, 1, 1, 64),
        norms=None,
        eps=1e-5,
        heads=2,
    )
    out = decode.decode_attention(
        queries, view=view, slots=none.view(0, 1), lengths=none.int(), splits=1, widen=True
    )
    assert (queries.shape, out.shape) == ((0, 2, 64), (0, 128))


def test_wrong_shapes():
    """Shapes that a kernel would misread as memory are refused by name."""
    view = torch.zeros(1, 2, BLOCK_TOKENS, 2, 64)
    none = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="add_norm"):
        norm.add_norm(torch.zeros(2, 8), torch.zeros(2, 4), torch.ones(8), eps=1e-5)
    with pytest.raises(ValueError, match="silu_mul"):
        norm.silu_mul(torch.zeros(8, 2).t())
    with pytest.raises(ValueError, match="rotate_and_store"):
        rotate.rotate_and_store(
            torch.zeros(1, 256),
            view=view,
            writes=none,
            positions=none,
            table=torch.zeros(2, 1, 1, 64),
            norms=None,
            eps=1e-5,
            heads=2,
        )
    with pytest.raises(ValueError, match="decode_attention"):
        decode.decode_attention(
            torch.zeros(1, 3, 64), view=view, slots=none.view(1, 1), lengths=none.int(), splits=1
        )
