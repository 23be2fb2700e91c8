"""How much memory one GPU of a replica needs, and how many tokens its KV cache holds (planner.md §5).

For benchmarks, which ask more than a plan does: any fraction, padded vocabularies, graphs by depth. Plans
use `trimtab.planning.gpus.gpu_memory`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from trimtab.planning.memory import layer_bytes
from trimtab.planning.precision import padded, table_bytes, value_bytes

if TYPE_CHECKING:
    from trimtab.planning.architecture import Architecture
    from trimtab.planning.fingerprint import MemoryPoint
    from trimtab.planning.policy import PlannerPolicy

# As our engine and vLLM pad a vocabulary that the ranks do not divide; the MLP in the packed layouts.
_VOCABULARY_BLOCK: Final = 64
_INTERMEDIATE_BLOCK: Final = 32

ENGINE_PERMILLE: Final = 920
"""Share of a GPU that vLLM takes from 0.22 on."""
UNMEASURED_BYTES: Final = 2355 * 2**20
"""Libraries, activations and graphs where nothing was measured: 2.3 GiB, and 5 % of the weights (KAITO)."""


class ParallelismError(ValueError):
    """A model cannot be split so; the message names both numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How a model lies on GPUs: ranks that share each layer, and stages of layers."""

    tensor: int = 1
    pipeline: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Memory of the fullest GPU of a replica, bytes.

    Attributes:
        limit: What the engine may take: its fraction of the GPU.
        weights: Of one rank, exact.
        activation: Most that a step allocates.
        non_torch: Contexts and libraries.
        graphs: Captured graphs, which grow with depth.
        reserve: Held back.
        token: What one token keeps in this rank's layers.
        kv_tokens: Tokens of whole blocks that the rest holds; 0 where nothing is left.
        measured: Activation, libraries and graphs are a fingerprint's, not a rule of thumb's.
    """

    limit: int
    weights: int
    activation: int
    non_torch: int
    graphs: int
    reserve: int
    token: int
    kv_tokens: int
    measured: bool

    @property
    def planned(self) -> int:
        """Everything that is planned for, KV cache included, without the reserve."""
        kv = self.kv_tokens * self.token
        return self.weights + self.activation + self.non_torch + self.graphs + kv

    def fits(self, tokens: int) -> bool:
        """Whether the KV cache holds so many tokens: the longest request, and the steady state's."""
        return self.kv_tokens >= max(1, tokens)


def gpu_memory(
    architecture: Architecture,
    *,
    depth: int,
    precision: str,
    kv_precision: str,
    split: Split,
    gpu_bytes: int,
    fraction_permille: int = ENGINE_PERMILLE,
    rows: tuple[MemoryPoint, ...] = (),
    block_tokens: int = 16,
    policy: PlannerPolicy,
) -> GpuMemory:
    """Return the memory of one GPU of a replica.

    Args:
        architecture: Of the model.
        depth: Its layers.
        precision: Of the layers' weights; embedding and head keep 16 bits under an 8-bit one.
        kv_precision: Of the KV cache.
        split: Over GPUs.
        gpu_bytes: Memory of one GPU as the driver reports it.
        fraction_permille: Of it that the engine takes (vLLM from 0.22 on: 920).
        rows: Memory at two depths, measured with as many ranks; empty for the rule of thumb.
        block_tokens: Of a KV block.
        policy: Constants.

    Raises:
        ParallelismError: The ranks do not divide the heads, or there are more stages than layers.
    """
    rank = rank_architecture(architecture, split.tensor)
    layers = -(-depth // split.pipeline)
    if split.pipeline > depth:
        raise ParallelismError(
            f"{split.pipeline} stages cannot share {depth} layers. Ask for fewer."
        )
    weights = layers * layer_bytes(rank, precision=precision) + _table_bytes(
        architecture, split, precision=precision
    )
    activation, non_torch, graphs = _beside(rows, weights=weights, layers=layers, policy=policy)
    limit = gpu_bytes * fraction_permille // 1000
    reserve = -(-limit * policy.memory_reserve_permille // 1000)
    token = layers * rank.kv_values_per_token() * value_bytes(kv_precision)
    left = limit - weights - activation - non_torch - graphs - reserve
    return GpuMemory(
        limit=limit,
        weights=weights,
        activation=activation,
        non_torch=non_torch,
        graphs=graphs,
        reserve=reserve,
        token=token,
        kv_tokens=max(0, left // (token * block_tokens)) * block_tokens,
        measured=bool(rows),
    )


def rank_architecture(architecture: Architecture, ranks: int) -> Architecture:
    """Return the sizes of one rank's part of a layer; few KV heads are held by several ranks.

    Raises:
        ParallelismError: The ranks do not divide the heads.
    """
    heads, kv_heads = architecture.attention_heads, architecture.kv_heads
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        raise ParallelismError(
            f"Tensor parallel size {ranks} does not divide the model's {heads} attention heads and "
            f"{kv_heads} key heads."
        )
    inner = architecture.intermediate_size
    part = inner // ranks if inner % ranks == 0 else padded(-(-inner // ranks), _INTERMEDIATE_BLOCK)
    return replace(
        architecture,
        attention_heads=heads // ranks,
        kv_heads=max(1, kv_heads // ranks),
        intermediate_size=part,
    )


def _table_bytes(architecture: Architecture, split: Split, *, precision: str) -> int:
    """Return the bytes of embedding, head and final norm on the stage that holds most of them."""
    vocab, ranks = architecture.vocab_size, split.tensor
    rows = vocab // ranks if vocab % ranks == 0 else padded(-(-vocab // ranks), _VOCABULARY_BLOCK)
    # Stages hold the embedding or the head; a tied head needs its copy on the last one.
    tables = 1 if architecture.tied_embeddings or split.pipeline > 1 else 2
    return (tables * rows + 1) * architecture.hidden_size * table_bytes(precision)


def _beside(
    rows: tuple[MemoryPoint, ...], *, weights: int, layers: int, policy: PlannerPolicy
) -> tuple[int, int, int]:
    """Return the bytes of activation, of libraries, and of graphs at a depth."""
    if not rows:
        share = weights * policy.unmeasured_weight_overhead_permille // 1000
        return UNMEASURED_BYTES + share, 0, 0
    shallow, deep = min(rows, key=lambda r: r.depth), max(rows, key=lambda r: r.depth)
    each = (deep.graphs - shallow.graphs) / max(1, deep.depth - shallow.depth)
    # NB: an engine may report less than nothing, when capturing gave memory back.
    graphs = max(0, round(shallow.graphs + (layers - shallow.depth) * each))
    return (
        max(row.activation for row in rows),
        max(row.non_torch for row in rows),
        graphs,
    )
