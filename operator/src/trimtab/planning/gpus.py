"""What of a model a GPU must hold, and which groups of GPUs can serve it (planner.md §5, §8)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import Fingerprint
from trimtab.planning.memory import layer_bytes, weight_bytes
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import table_bytes, value_bytes
from trimtab.planning.roofline_gpu import PEAKS, WEIGHT_BYTES
from trimtab.planning.snapshot import Config, FleetSnapshot, GpuPool

_GIB: Final = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Memory of one replica on GPUs, bytes; everything but ``total`` is of its fullest GPU.

    Attributes:
        budget: What the engine takes of a GPU: its fraction of the memory.
        weights: Of the fullest rank.
        beside: Activations, libraries, graphs.
        reserve: Held back.
        kv: What is left for the KV cache, whole blocks; 0 where nothing is.
        kv_tokens: Tokens that it holds.
        ranks: GPUs of the replica.
        total: Host memory that the pod requests, of the whole replica.
        measured: ``beside`` comes from the fingerprint's memory rows.
    """

    budget: int
    weights: int
    beside: int
    reserve: int
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


def gpu_memory(
    architecture: Architecture,
    config: Config,
    *,
    depth: int,
    gpu_bytes: int,
    kv_precision: str,
    block_tokens: int,
    fingerprint: Fingerprint | None,
    policy: PlannerPolicy,
) -> GpuMemory:
    """Return the memory of a replica on GPUs of ``gpu_bytes`` each.

    The engine takes a fixed fraction of each GPU; what weights, activations and the reserve leave
    of it is the KV cache (planner.md §5; fraction 1.0 is what AIConfigurator #1396 promised). Key
    heads are replicated where there are fewer than ranks.
    """
    tp, pp = config.tensor_parallel_size, config.pipeline_parallel_size
    layers = -(-depth // pp)
    weights = _rank_weights(architecture, config, layers=layers)
    beside, measured = _beside(fingerprint, weights=weights, policy=policy)
    reserve = gpu_bytes * policy.memory_reserve_permille // 1000
    budget = gpu_bytes * policy.gpu_memory_permille // 1000
    heads = max(1, -(-architecture.kv_heads // tp))
    token = layers * 2 * heads * architecture.head_dim * value_bytes(kv_precision)
    block = token * block_tokens
    blocks = max(0, budget - weights - beside - reserve) // block
    exact = weight_bytes(architecture, depth=depth, precision=config.precision)
    # Weights are read through the host, and each rank is a process of its own.
    host = exact + tp * pp * policy.gpu_rank_host_bytes
    return GpuMemory(
        budget=budget,
        weights=weights,
        beside=beside,
        reserve=reserve,
        kv=blocks * block,
        kv_tokens=blocks * block_tokens,
        ranks=tp * pp,
        total=host + -(-host * policy.memory_reserve_permille // 1000),
        measured=measured,
    )


def _rank_weights(architecture: Architecture, config: Config, *, layers: int) -> int:
    """Return the weights of the fullest rank: its share of the layers, and of the tables at an end."""
    tp = config.tensor_parallel_size
    layer = layer_bytes(architecture, precision=config.precision)
    # Beyond one key head per rank the key and value columns are on several ranks.
    copies = max(0, tp - architecture.kv_heads)
    columns = 2 * architecture.head_dim * architecture.hidden_size
    layer += copies * columns * value_bytes(config.precision)
    table = architecture.vocab_size * architecture.hidden_size * table_bytes(config.precision)
    tables = 1 if architecture.tied_embeddings or config.pipeline_parallel_size > 1 else 2
    return -(-(layers * layer + tables * table) // tp)


def _beside(
    fingerprint: Fingerprint | None, *, weights: int, policy: PlannerPolicy
) -> tuple[int, bool]:
    rows = fingerprint.memory if fingerprint is not None else ()
    if rows:
        # NB: an engine may report less than nothing, when capturing graphs gave memory back.
        return max(r.activation + r.non_torch + max(0, r.graphs) for r in rows), True
    share = weights * policy.unmeasured_weight_overhead_permille // 1000
    return policy.unmeasured_gpu_bytes + share, False


def gpu_bytes(pools: Iterable[GpuPool], product: str) -> int:
    """Return the memory of the smallest GPU of a product; 0 where there is none."""
    return min((p.gpu_memory_bytes for p in pools if p.product == product), default=0)


def gpu_configs(
    product: str,
    *,
    stages: int,
    precisions: Iterable[str],
    sizes: Sequence[int],
) -> Iterator[Config]:
    """Yield the configurations of a product with so many pipeline stages."""
    for precision in sorted(set(precisions)):
        for tp in sorted(set(sizes)):
            yield Config(
                product=product,
                cpu_model="",
                precision=precision,
                threads=0,
                tensor_parallel_size=tp,
                pipeline_parallel_size=stages,
            )


def largest_node(snapshot: FleetSnapshot, product: str) -> int:
    """Return the most GPUs of a product that one node has for plans."""
    return max((p.gpus for p in snapshot.gpu_pools if p.product == product), default=0)


def known_peak(config: Config) -> bool:
    """Whether a configuration can be estimated from the data sheet of its product."""
    return config.product in PEAKS and config.precision in WEIGHT_BYTES


def too_large(memory: GpuMemory, config: Config, *, longest: int, gpu_bytes: int) -> str | None:
    """Return why one request of the longest length finds no room on the GPUs; None if it does."""
    if memory.kv_tokens >= longest:
        return None
    have = memory.budget / _GIB
    need = memory.without_kv / _GIB
    group = f"each of {memory.ranks} GPUs" if memory.ranks > 1 else "one GPU"
    return (
        f"{config.precision} on {group} of {config.product} needs {need:.1f} GiB before its first "
        f"token and holds {memory.kv_tokens} tokens of KV cache, fewer than the {longest} of one "
        f"long request; the engine has {have:.1f} of {math.floor(gpu_bytes / _GIB)} GiB."
    )
