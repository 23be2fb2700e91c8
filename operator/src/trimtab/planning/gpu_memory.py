"""How much memory one GPU of a replica needs, and how many tokens its KV cache holds (planner.md §5)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import MemoryPoint
from trimtab.planning.memory import kv_bytes_per_token, layer_bytes, weight_bytes
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import padded, table_bytes
from trimtab.planning.snapshot import Config

# As our engine and vLLM pad a vocabulary that the ranks do not divide; the MLP in the packed layouts.
_VOCABULARY_BLOCK: Final = 64
_INTERMEDIATE_BLOCK: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Memory of one replica on GPUs, bytes; everything but ``total`` is of its fullest GPU.

    Attributes:
        budget: What the engine takes of a GPU: its fraction of the memory.
        weights: Of the fullest rank, exact.
        beside: Activations, libraries, graphs.
        reserve: Held back.
        token: What one token keeps in this rank's layers.
        kv: What is left for the KV cache, whole blocks; 0 where nothing is.
        kv_tokens: Tokens that it holds.
        ranks: GPUs of the replica.
        total: Host memory that the pod requests, of the whole replica.
        measured: ``beside`` was measured, and is not the rule of thumb's.
    """

    budget: int
    weights: int
    beside: int
    reserve: int
    token: int
    kv: int
    kv_tokens: int
    ranks: int
    total: int
    measured: bool

    @property
    def arena(self) -> int:
        """The engine's memory on all ranks: weights and KV."""
        return self.ranks * (self.weights + self.kv)

    @property
    def without_kv(self) -> int:
        """What a GPU holds before its first token."""
        return self.weights + self.beside + self.reserve

    @property
    def planned(self) -> int:
        """Everything that is planned for on a GPU, KV cache included, without the reserve."""
        return self.weights + self.beside + self.kv


def gpu_memory(
    architecture: Architecture,
    config: Config,
    *,
    depth: int,
    gpu_bytes: int,
    kv_precision: str,
    block_tokens: int,
    rows: Sequence[MemoryPoint],
    policy: PlannerPolicy,
) -> GpuMemory:
    """Return the memory of a replica on GPUs of ``gpu_bytes`` each.

    The engine takes a fixed fraction of each GPU; what weights, activations and the reserve leave
    of it is the KV cache (planner.md §5; fraction 1.0 is what AIConfigurator #1396 promised). Sizes
    that `indivisible` refuses are rounded up.

    Args:
        architecture: Of the model.
        config: Precision of the weights, ranks that share each layer, stages of layers.
        depth: The model's layers.
        gpu_bytes: Memory of one GPU as the driver reports it.
        kv_precision: Of the KV cache.
        block_tokens: Of a KV block.
        rows: Memory at one or two depths, measured with as many ranks; empty for the rule of thumb.
        policy: Constants, the engine's fraction among them.
    """
    tp, pp = config.tensor_parallel_size, config.pipeline_parallel_size
    layers = -(-depth // pp)
    weights = _rank_weights(architecture, config.precision, tp, pp, layers)
    beside = _beside(rows, weights=weights, layers=layers, policy=policy)
    budget = gpu_bytes * policy.gpu_memory_permille // 1000
    reserve = -(-budget * policy.memory_reserve_permille // 1000)
    rank = _rank(architecture, tp)
    token = kv_bytes_per_token(rank, depth=layers, kv_precision=kv_precision)
    blocks = max(0, budget - weights - beside - reserve) // (token * block_tokens)
    # Weights are read through the host, and each rank is a process of its own.
    exact = weight_bytes(architecture, depth=depth, precision=config.precision)
    host = exact + tp * pp * policy.gpu_rank_host_bytes
    return GpuMemory(
        budget=budget,
        weights=weights,
        beside=beside,
        reserve=reserve,
        token=token,
        kv=blocks * token * block_tokens,
        kv_tokens=blocks * block_tokens,
        ranks=tp * pp,
        total=host + -(-host * policy.memory_reserve_permille // 1000),
        measured=bool(rows),
    )


def indivisible(architecture: Architecture, *, depth: int, ranks: int, stages: int) -> str | None:
    """Return why a model does not divide over the ranks and stages of a replica; None if it does."""
    heads, kv_heads = architecture.attention_heads, architecture.kv_heads
    if depth % stages:
        return f"Pipeline parallel size {stages} does not divide the model's {depth} layers."
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        return (
            f"Tensor parallel size {ranks} does not divide the model's {heads} attention heads and "
            f"{kv_heads} key heads."
        )
    return None


@lru_cache(maxsize=1024)
def _rank(architecture: Architecture, ranks: int) -> Architecture:
    """Return the sizes of one rank's part of a layer; few key heads are held by several ranks."""
    heads, kv_heads = architecture.attention_heads, architecture.kv_heads
    keys = max(1, -(-kv_heads // ranks))
    inner = architecture.intermediate_size
    return replace(
        architecture,
        attention_heads=keys * (heads // kv_heads) if ranks <= kv_heads else -(-heads // ranks),
        kv_heads=keys,
        intermediate_size=_part(inner, ranks, _INTERMEDIATE_BLOCK),
    )


@lru_cache(maxsize=4096)
def _rank_weights(
    architecture: Architecture, precision: str, ranks: int, stages: int, layers: int
) -> int:
    """Return the weights of the fullest rank: its layers, and the tables of the stage with the most."""
    rows = _part(architecture.vocab_size, ranks, _VOCABULARY_BLOCK)
    # Stages hold the embedding or the head; a tied head needs its copy on the last one.
    tables = 1 if architecture.tied_embeddings or stages > 1 else 2
    norm = 1
    fixed = (tables * rows + norm) * architecture.hidden_size * table_bytes(precision)
    return layers * layer_bytes(_rank(architecture, ranks), precision=precision) + fixed


def _part(size: int, ranks: int, block: int) -> int:
    return size // ranks if size % ranks == 0 else padded(-(-size // ranks), block)


def _beside(
    rows: Sequence[MemoryPoint], *, weights: int, layers: int, policy: PlannerPolicy
) -> int:
    """Return the bytes of activations, libraries and graphs; only graphs grow with depth."""
    if not rows:
        share = weights * policy.unmeasured_weight_overhead_permille // 1000
        return policy.unmeasured_gpu_bytes + share
    shallow, deep = min(rows, key=lambda r: r.depth), max(rows, key=lambda r: r.depth)
    each = (deep.graphs - shallow.graphs) / max(1, deep.depth - shallow.depth)
    # NB: an engine may report less than nothing, when capturing gave memory back.
    graphs = max(0, round(shallow.graphs + (layers - shallow.depth) * each))
    return max(row.activation for row in rows) + max(row.non_torch for row in rows) + graphs
