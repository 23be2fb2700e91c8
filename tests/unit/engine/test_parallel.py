"""What each rank holds and hears, without processes: shards, step plans on the wire, free memory."""

import dataclasses
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.engine.builders import TINY, a_gguf
from trimtab_workers.engine.arena import Arena
from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights, parse_config
from trimtab_workers.engine.errors import (
    ConfigError,
    ModelCorruptError,
    OutOfMemoryError,
)
from trimtab_workers.engine.models.llama import fixed_bytes
from trimtab_workers.engine.models.names import tensor_shapes
from trimtab_workers.engine.models.shape import LlamaShape
from trimtab_workers.engine.parallel.channel import Channel, PeerGoneError
from trimtab_workers.engine.parallel.host import free_host_bytes
from trimtab_workers.engine.parallel.member import Member, config_document, config_of
from trimtab_workers.engine.parallel.placement import Placement, rank_shape
from trimtab_workers.engine.parallel.ranks import Ranks
from trimtab_workers.engine.parallel.shard import ShardedCheckpoint
from trimtab_workers.engine.parallel.wire import Frame, Kind, WireError, head
from trimtab_workers.engine.weights.checkpoint import Part
from trimtab_workers.engine.weights.gguf import GgufCheckpoint
from trimtab_workers.engine.weights.hf import HfCheckpoint


def a_shape(**changes: object) -> LlamaShape:
    return LlamaShape.from_hf_config(TINY | changes, where="test")


@pytest.mark.parametrize(
    ("changes", "place", "said"),
    [
        ({}, Placement(tensor=4), "num_attention_heads of 6. Set tensor_parallel_size to 1 or 2"),
        ({"num_key_value_heads": 3}, Placement(tensor=2), "num_key_value_heads of 3"),
        ({"num_hidden_layers": 3}, Placement(pipeline=2), "num_hidden_layers of 3"),
    ],
)
def test_what_does_not_divide_is_refused(changes: dict, place: Placement, said: str):
    """The sentence has the field, both numbers and what would do."""
    with pytest.raises(ConfigError, match=said) as caught:
        rank_shape(a_shape(**changes), place, model="team-a/chat")
    assert "Model team-a/chat" in str(caught.value)


def test_fewer_key_heads_than_ranks_are_held_twice():
    """With 2 key heads on 6 ranks each rank has one key head and the queries that go with it."""
    shape = a_shape()
    parts = [rank_shape(shape, Placement(rank=r, tensor=6), model="m") for r in range(6)]
    assert {(p.heads, p.kv_heads) for p in parts} == {(1, 1)}


def test_uneven_sizes_are_padded():
    """An MLP and a vocabulary that do not divide are rounded up to whole blocks on every rank."""
    shape = a_shape(intermediate_size=341, vocab_size=1001)
    part = rank_shape(shape, Placement(rank=1, tensor=2), model="m")
    assert (part.intermediate, part.vocabulary_rows, part.vocab) == (192, 512, 1001)


def test_stages_split_layers_embedding_and_head():
    """The first stage has the embedding, the last norm and head; bytes of the fixed region follow."""
    shape = a_shape(tie_word_embeddings=False, num_hidden_layers=4)
    first, last = (rank_shape(shape, Placement(rank=r, pipeline=2), model="m") for r in (0, 1))
    assert (first.layers, last.layers) == (2, 2)
    assert "model.norm.weight" not in tensor_shapes(first)
    assert "model.embed_tokens.weight" not in tensor_shapes(last)
    assert fixed_bytes(first, "fp32") + fixed_bytes(last, "fp32") == fixed_bytes(shape, "fp32")


def test_slices_of_safetensors_and_gguf_are_those_of_the_whole(glass_en: Path, tmp_path: Path):
    """Rows and columns read alone equal those of the whole tensor, also where GGUF permutes rows."""
    rng = np.random.default_rng(1)
    query = rng.standard_normal((96, 96), dtype=np.float32)
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.embedding_length": 96,
        "llama.attention.head_count": 6,
        "llama.feed_forward_length": 128,
        "llama.context_length": 64,
    }
    tensors = {
        "token_embd.weight": rng.standard_normal((64, 96), dtype=np.float32),
        "blk.0.attn_q.weight": query,
    }
    file = a_gguf(tmp_path / "m.gguf", metadata=metadata, tensors=tensors)
    # The builder has no floats; the epsilon alone is read as one.
    header = dict(metadata) | {"llama.attention.layer_norm_rms_epsilon": 1e-5}
    whole = GgufCheckpoint.__new__(GgufCheckpoint)
    whole.where, whole._path = str(file), file
    from trimtab_workers.engine.weights.gguf import hf_config
    from trimtab_workers.engine.weights.gguf_header import read_header

    whole.header = dataclasses.replace(read_header(file), metadata=header)
    whole.shape = LlamaShape.from_hf_config(hf_config(whole.header, where="x"), where="x")
    for checkpoint, name in (
        (whole, "model.layers.0.self_attn.q_proj.weight"),
        (HfCheckpoint(glass_en), "model.layers.1.self_attn.o_proj.weight"),
    ):
        full = checkpoint.tensor(name)
        rows = checkpoint.tensor(name, Part(axis=0, start=32, stop=64))
        columns = checkpoint.tensor(name, Part(axis=1, start=16, stop=48))
        assert torch.equal(rows, full[32:64])
        assert torch.equal(columns, full[:, 16:48])


def test_a_rank_reads_only_its_part(glass_en: Path):
    """Of every matrix but norms a rank of two asks the files for no more than half."""
    asked: dict[str, Part | None] = {}

    class Watched(HfCheckpoint):
        def tensor(self, name: str, part: Part | None = None) -> torch.Tensor:
            asked[name] = part
            return super().tensor(name, part)

    checkpoint = Watched(glass_en)
    sizes = tensor_shapes(checkpoint.shape)
    shard = ShardedCheckpoint(checkpoint, Placement(rank=0, tensor=2), model="m")
    for name in tensor_shapes(shard.shape):
        shard.tensor(name)
    for name, part in asked.items():
        if len(sizes[name]) == 1:
            assert part is None
        else:
            # The uneven MLP's blocks are rounded up: 192 of 341 rows.
            assert part.stop - part.start <= 0.57 * sizes[name][part.axis]


def test_the_configuration_travels_whole():
    """A follower is started with every field of rank 0's configuration but its files."""
    config = EngineConfig(
        models=(
            ModelSpec(name="a", path=Path("/m/a"), dtype="int8", chat_template="{{ x }}"),
            ModelSpec(name="b", path=Path(), random=RandomWeights(hf_config=TINY, seed=4)),
        ),
        tensor_parallel_size=2,
        memory_bytes=5,
        limits={"active_cap": 0.5},
        file=Path("/set.json"),
        model_root=Path("/m"),
    )
    import json

    travelled = config_of(json.loads(json.dumps(config_document(config))))
    assert travelled == dataclasses.replace(config, file=None, model_root=None)


@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_sizes_that_are_not_run_are_refused(name: str):
    """The model set's field, its value and what is possible are named."""
    document = {"v": 1, name: 3, "models": [{"name": "m", "path": "m"}]}
    with pytest.raises(ConfigError, match=f"{name} is 3, and this engine runs 1, 2"):
        parse_config(document, model_root=Path("/models"))
    parsed = parse_config(document | {name: 2}, model_root=Path("/models"))
    assert parsed.ranks == 2


def test_ranks_move_no_slabs_yet():
    """Pressure policies that move slabs are refused over several ranks, with both remedies."""
    with pytest.raises(ConfigError, match=r"pressure is 'remap-idle'.*or both sizes to 1"):
        EngineConfig(models=(), tensor_parallel_size=2, pressure="remap-idle")


class Told(Ranks):
    """A rank that hears what others are made to say."""

    def __init__(self, rank: int, *others: object) -> None:
        super().__init__(Placement(rank=rank, tensor=1 + len(others)))
        self.others = others

    def share(self, value: object, *, seconds: float = 0) -> list[object]:
        return [*self.others[: self.placement.rank], value, *self.others[self.placement.rank :]]


def test_a_problem_of_one_rank_is_the_problem_of_all():
    """Every rank raises the first rank's error, with its class and its sentence."""
    theirs = {"kind": "ModelCorruptError", "message": "m: cut. Fetch it again."}
    healthy = Told(1, theirs).settle(None)
    assert isinstance(healthy, ModelCorruptError)
    assert healthy.message == "m: cut. Fetch it again."
    assert Told(0, None).settle(None) is None


def test_the_poorest_rank_decides():
    """The least slabs win; where the poorest host has too little, every rank says so equally."""
    told = [Told(0, [10, 100, 50]), Told(1, [12, 100, 50])]
    said = set()
    for mine, rank in zip((12, 10), told, strict=True):
        rank.free_bytes = [10_000, 2_100]
        assert rank.agree_on_slabs(mine, slab_bytes=100, fixed_bytes=50) == 10
        rank.free_bytes = [10_000, 2_099]
        with pytest.raises(OutOfMemoryError, match="Rank 1 of 2 has 2099 bytes") as caught:
            rank.agree_on_slabs(mine, slab_bytes=100, fixed_bytes=50)
        said.add(str(caught.value))
    assert len(said) == 1
    assert "need 2100" in said.pop()


def test_free_memory_is_the_least_of_cgroup_and_machine(tmp_path: Path):
    """Page cache that can be dropped counts as free; without a limit the machine's memory counts."""
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal: 100 kB\nMemAvailable:  50 kB\n")
    (tmp_path / "memory.max").write_text("30000\n")
    (tmp_path / "memory.current").write_text("20000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 5000\n")
    assert free_host_bytes(cgroup=tmp_path, meminfo=machine) == 15_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_host_bytes(cgroup=tmp_path, meminfo=machine) == 50 * 1024


def test_frames_of_another_release_are_refused():
    """A frame with another version, and one that is impossibly long, are named as such."""
    good = Frame(Kind.STOP, 7, b"abc").encode()
    assert head(good[:10]) == (3, Kind.STOP, 7)
    for place, value in ((4, 9), (5, 99), (3, 255)):
        bad = bytearray(good[:10])
        bad[place] = value
        with pytest.raises(WireError, match="one release"):
            head(bytes(bad))


def test_the_end_of_the_other_side_is_known_at_once():
    """Whoever waits for a frame and whoever watches both learn that the other process has gone."""
    ours, theirs = socket.socketpair()
    ended = threading.Event()
    channel = Channel(ours, on_end=ended.set)
    theirs.sendall(Frame(Kind.DONE, 3, b"x").encode())
    assert channel.receive(30) == Frame(Kind.DONE, 3, b"x")
    theirs.close()
    assert ended.wait(30)
    with pytest.raises(PeerGoneError):
        channel.receive(30)
    assert channel.take() is None
    channel.close()


def test_the_check_sum_sees_slabs_and_steps():
    """Ranks that executed the same frames over equal slabs agree; any difference shows for ever."""
    arenas = [Arena(slab_bytes=64, slabs=4) for _ in range(3)]
    members = [Member(Placement(rank=r, tensor=3)) for r in range(3)]
    for member, arena in zip(members, arenas, strict=True):
        for slab in (0, 1):
            arena.change(slab, "kv", model="m")
        member.watch(arena)
    arenas[2].change(2, "kv", model="m")
    first = [member.checksum(b"step 1") for member in members]
    assert first[0] == first[1] != first[2]
    assert members[0].checksum(b"step 2") != members[1].checksum(b"another")
    assert members[0].checksum(b"step 3") != members[1].checksum(b"step 3")
