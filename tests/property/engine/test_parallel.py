"""Ranks' parts make the whole, and a step plan survives its journey."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from trimtab_workers.engine.kv import Block, KvSlab
from trimtab_workers.engine.models.names import tensor_shapes
from trimtab_workers.engine.models.shape import LlamaShape
from trimtab_workers.engine.parallel.placement import Placement
from trimtab_workers.engine.parallel.shard import ShardedCheckpoint
from trimtab_workers.engine.parallel.wire import (
    HEAD,
    Frame,
    head,
    plan_of,
    read_slots,
    read_step,
    slots_frame,
    step_frame,
)
from trimtab_workers.engine.scheduler import Row, StepPlan
from trimtab_workers.engine.sequence import Sequence
from trimtab_workers.engine.types import Request


class Numbered:
    """A checkpoint whose elements are all different."""

    where, directory, gguf_metadata, hf_config = "numbers", None, None, {}

    def __init__(self, shape: LlamaShape) -> None:
        self.shape = shape

    def tensor(self, name, part=None):
        shape = tensor_shapes(self.shape)[name]
        count = int(torch.tensor(shape).prod())
        whole = torch.arange(1, count + 1, dtype=torch.int64).view(shape)
        return (
            whole if part is None else whole.narrow(part.axis, part.start, part.stop - part.start)
        )


@st.composite
def shapes(draw):
    parts = draw(st.sampled_from([1, 2, 4]))
    kv_heads = draw(st.sampled_from([1, 2, 4, 8]))
    family = draw(st.sampled_from(["llama", "qwen2", "qwen3"]))
    config = {
        "model_type": family,
        "num_hidden_layers": 2 * draw(st.integers(1, 2)),
        "hidden_size": draw(st.integers(1, 9)),
        "num_attention_heads": 8,
        "num_key_value_heads": kv_heads,
        "head_dim": 2,
        "intermediate_size": draw(st.integers(1, 200)),
        "vocab_size": draw(st.integers(1, 300)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    return LlamaShape.from_hf_config(config, where="x"), parts, draw(st.sampled_from([1, 2]))


@settings(max_examples=40, deadline=None)
@given(shapes())
def test_parts_make_the_whole(drawn):
    """Every element is on a rank, none is on two but copies of key heads, and padding is zero."""
    shape, parts, stages = drawn
    whole = Numbered(shape)
    seen = {
        name: torch.zeros(size, dtype=torch.int64) for name, size in tensor_shapes(shape).items()
    }
    for rank in range(parts * stages):
        place = Placement(rank=rank, tensor=parts, pipeline=stages)
        shard = ShardedCheckpoint(whole, place, model="m")
        for name, size in tensor_shapes(shard.shape).items():
            tensor = shard.tensor(name).long()
            assert tuple(tensor.shape) == size
            real = shard._whole_name(name)
            found = tensor[tensor > 0] - 1
            seen[real].view(-1).index_add_(0, found, torch.ones_like(found))
    copies = max(1, parts // shape.kv_heads)
    for name, counts in seen.items():
        if len(counts.shape) == 1 and not name.endswith("bias"):
            expected = {parts}
        elif ".k_proj" in name or ".v_proj" in name:
            expected = {copies}
        elif name == "model.embed_tokens.weight" and shape.tied:
            expected = {stages}
        else:
            expected = {1}
        assert set(counts.unique().tolist()) == expected, name


rows = st.lists(
    st.tuples(st.integers(0, 90), st.integers(1, 40), st.booleans(), st.integers(0, 9)), max_size=6
)


@settings(max_examples=60, deadline=None)
@given(rows, rows, st.integers(0, 5), st.sampled_from([None, 1, 7]))
def test_a_plan_survives_its_journey(decode, prefill, model, layers):
    """Tokens to compute, blocks to read and which rows are sampled arrive as they were sent."""

    def row(start, count, sample, spare):
        length = start + count + (0 if sample else 1 + spare)
        tokens = [(7 * i) % 1000 for i in range(length)]
        blocks = [
            Block(3 * i + start, KvSlab(0, borrowed=False)) for i in range(-(-length // 16) + spare)
        ]
        sequence = Sequence(
            request=Request(request_id="r", model="m", prompt_token_ids=(1,)),
            sink=lambda _: None,
            tokens=tokens,
            prompt_length=1,
            limit=length + 1,
            seed=0,
            arrival_seconds=0.0,
            blocks=blocks,
        )
        return Row(sequence, start, count)

    plan = StepPlan(tuple(row(*d) for d in decode), tuple(row(*p) for p in prefill))
    sent = step_frame(9, model=model, layers=layers, plan=plan).encode()
    length, kind, number = head(sent[: HEAD.size])
    step = read_step(Frame(kind, number, sent[HEAD.size :]))
    assert (length, number, step.model, step.layers) == (len(sent) - HEAD.size, 9, model, layers)
    arrived = plan_of(step)
    for before, after in zip(plan.rows, arrived.rows, strict=True):
        end = before.start + before.count
        used = -(-end // 16)
        assert (after.start, after.count, after.sample) == (
            before.start,
            before.count,
            before.sample,
        )
        assert (
            after.sequence.tokens[after.start : end] == before.sequence.tokens[before.start : end]
        )
        assert [b.slot for b in after.sequence.blocks] == [
            b.slot for b in before.sequence.blocks[:used]
        ]
    assert len(arrived.decode) == len(plan.decode)


@given(st.integers(0, 9), st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_cleared_blocks_arrive(model, slots):
    """Model and slots of a frame that clears blocks arrive as they were sent."""
    assert read_slots(slots_frame(1, model=model, slots=slots)) == (model, slots)
