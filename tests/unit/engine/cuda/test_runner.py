import math

import pytest
import torch

from tests.unit.engine.builders import TINY, a_request, an_engine, run, submit
from trimtab_workers.engine.attention_cuda import Chunk, SlotTables, StepInputs, attend_chunk
from trimtab_workers.engine.config import BLOCK_TOKENS
from trimtab_workers.engine.graphs import GraphCache
from trimtab_workers.engine.kv import Block, KvLayout, KvSlab
from trimtab_workers.engine.runner_cuda import CudaRunner, choose
from trimtab_workers.engine.sampling import NanLogitsError
from trimtab_workers.engine.scheduler import Row

WIDE = TINY | {"head_dim": 24, "num_attention_heads": 3, "num_key_value_heads": 1}
QWEN3 = WIDE | {"model_type": "qwen3"}
QWEN2 = WIDE | {"model_type": "qwen2"}
_LIMITS = {"max_seqs": 4, "max_model_len": 32}
PROMPTS = ([5, 6], list(range(18)), [9] * 3)


class Recorder:
    """Replays Python calls; counts recordings."""

    def __init__(self):
        self.recorded = 0

    def warm_up(self, work):
        work()

    def record(self, work):
        self.recorded += 1
        return work


class Gate:
    """Streams some layers and keeps a log."""

    def __init__(self, *streamed):
        self.streamed, self.log = streamed, []

    def cuts(self, layer):
        return layer in self.streamed

    def enter(self, layer):
        self.log.append(("enter", layer))

    def leave(self, layer):
        self.log.append(("leave", layer))


def a_gpu_like_engine(hf_config, *, graphs=None, poison=False, **settings):
    """Return an engine whose runner is the GPU's, on CPU tensors and interpreted kernels."""
    engine = an_engine(hf_config=hf_config, **_LIMITS, **settings)
    tenant, shape = engine.tenant("m"), engine.tenant("m").shape
    slab_bytes = engine.arena_bytes // sum(engine.state()["slabs"].values())
    layout = KvLayout(
        slab_bytes=slab_bytes,
        block_bytes=tenant.unit.block_bytes,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )
    arena = engine.backend.memory.flat(tenant.model.dtype)
    if poison:
        for slab in range(len(engine._arena)):
            if engine._arena[slab].state == "kv":
                per_slab = slab_bytes // arena.itemsize
                arena[slab * per_slab : (slab + 1) * per_slab] = math.nan
    tenant.runner = CudaRunner(
        tenant.model,
        name="m",
        layout=layout,
        arena=arena,
        max_positions=32,
        max_seqs=4,
        processors=4,
        graphs=graphs,
        widen=True,
    )
    return engine


def requests(**params):
    params = {"max_tokens": 3} | params
    return [a_request(str(i), prompt, **params) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("hf_config", [WIDE, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_same_tokens_as_the_cpu_path(hf_config):
    """Fused kernels, paged decode and chunked prefill answer as the CPU path, over NaN in the KV."""
    ours = a_gpu_like_engine(hf_config, poison=True, max_batch_tokens=16)
    theirs = an_engine(hf_config=hf_config, **_LIMITS, max_batch_tokens=16)
    expected = [answer.tokens for answer in run(theirs, *requests())]
    assert [answer.tokens for answer in run(ours, *requests())] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS)


def test_graphs_answer_the_same():
    """Replayed steps with padding rows answer as eager ones; a batch of 3 runs in a graph of 4."""
    recorder = Recorder()
    graphs = GraphCache(recorder, max_seqs=4)
    asked = [a_request(str(n), range(n, n + 2), max_tokens=2) for n in range(3)]
    eager = run(a_gpu_like_engine(WIDE), *asked)
    replayed = run(a_gpu_like_engine(WIDE, graphs=graphs), *asked)
    assert [answer.tokens for answer in replayed] == [answer.tokens for answer in eager]
    assert recorder.recorded == len(graphs) >= 1


def test_streamed_layers_cut_graphs():
    """A streamed layer is a graph of its own, entered and left around it, in every step."""
    recorder = Recorder()
    engine = a_gpu_like_engine(WIDE, graphs=GraphCache(recorder, max_seqs=4))
    gate = engine.tenant("m").runner.gate = Gate(1)
    answer = submit(engine, a_request("r", [1, 2, 3], max_tokens=3))
    while engine.step():
        pass
    assert (
        answer.tokens
        == run(a_gpu_like_engine(WIDE), a_request("r", [1, 2, 3], max_tokens=3))[0].tokens
    )
    assert recorder.recorded == 2
    # Prefill is eager and passes every layer's gate; two decodes and one warm-up only the cut's.
    assert gate.log == [
        *((what, layer) for layer in (0, 1) for what in ("enter", "leave")),
        *[("enter", 1), ("leave", 1)] * 3,
    ]


def test_sampling_beyond_greedy():
    """Log-probabilities come from logits that leave the device."""
    asked = a_request(prompt=PROMPTS[0], logprobs=2, max_tokens=1)
    (ours,) = run(a_gpu_like_engine(WIDE), asked)
    (theirs,) = run(an_engine(hf_config=WIDE), asked)
    assert ours.tokens == theirs.tokens


def test_nan_is_noticed():
    """NaN logits of a greedy row fail the step."""
    engine = an_engine()
    submit(engine, a_request())
    sequence = next(iter(engine.tenant("m").scheduler or ()), None)
    engine.step()
    sequence = sequence or engine.tenant("m").scheduler.running[0]
    with pytest.raises(NanLogitsError):
        choose(torch.tensor([[0.0, math.nan]]), [sequence])
    ((_, sampled),) = choose(torch.tensor([[0.0, 3.0, 1.0]]), [sequence]).sampled
    assert sampled.token_id == 1


def test_slot_tables_follow_blocks():
    """Slots are extended with new blocks and read again when the version or the list changes."""
    engine = an_engine()
    submit(engine, a_request())
    engine.step()
    sequence = engine.tenant("m").scheduler.running[0]
    version = [0]
    tables = SlotTables(lambda: version[0])
    slab = KvSlab(0, borrowed=False)
    sequence.blocks = [Block(3, slab), Block(5, slab)]
    assert tables.slots(sequence) == [3, 5]
    sequence.blocks.append(Block(9, slab))
    assert tables.slots(sequence) == [3, 5, 9]
    sequence.blocks[0].slot = 7
    version[0] = 1
    assert tables.slots(sequence) == [7, 5, 9]
    sequence.blocks = [Block(1, slab)]
    assert tables.slots(sequence) == [1]
    tables.keep_only([])
    assert len(tables) == 0


def test_inputs_pad():
    """Rows beyond the batch write nothing and have no length; what lies behind a length stays."""
    engine = an_engine()
    submit(engine, a_request(prompt=range(20)))
    engine.step()
    sequence = engine.tenant("m").scheduler.running[0]
    inputs = StepInputs(2, columns=4, place=torch.device("cpu"))
    inputs.fill([Row(sequence, 20, 1)], SlotTables(lambda: 0))
    slots = [block.slot for block in sequence.blocks]
    assert inputs.positions.tolist() == [20, -1]
    assert inputs.writes.tolist() == [slots[1] * 2 * BLOCK_TOKENS + 4, -1]
    assert inputs.token_ids.tolist() == [sequence.tokens[20], 0]
    assert inputs.slots[0, :2].tolist() == slots


@pytest.mark.parametrize("start", [0, 5, 16])
def test_chunk_is_causal(start):
    """A chunk's query sees its own position and what lies before, never the stale rest of a block."""
    torch.manual_seed(0)
    count, heads, dim = 7, 4, 32
    end = start + count
    view = torch.full((6, 2, BLOCK_TOKENS, 2, dim), math.nan)
    pair = torch.randn(2, end, 2, dim)
    slots = torch.tensor([4, 1])[: -(-end // BLOCK_TOKENS)]
    for block, slot in enumerate(slots):
        piece = pair[:, block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS]
        view[slot, :, : piece.shape[1]] = piece
    queries = torch.randn(count + 1, heads, dim)
    out = attend_chunk(queries, view, Chunk(1, count, end, slots))
    keys, values = pair.repeat_interleave(2, dim=2).transpose(1, 2)
    scores = queries[1:].transpose(0, 1) @ keys.transpose(1, 2) / math.sqrt(dim)
    later = torch.arange(end)[None, :] > torch.arange(start, end)[:, None]
    expected = (scores.masked_fill(later, -math.inf).softmax(-1) @ values).transpose(0, 1)
    torch.testing.assert_close(out, expected.reshape(count, -1))
