"""How much memory a replica needs and how many tokens its KV cache holds (planner.md §5)."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final

from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import Fingerprint
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import matrix_bytes, table_bytes, value_bytes

_PAGE_BYTES: Final = 4096
_WATERMARK_PERMILLE: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ArenaShape:
    """What one model asks of the engine's slabs, bytes.

    Attributes:
        layer: Matrices of one layer.
        depth: Layers.
        fixed: Embedding, head, norms and biases: beside the slabs, never lent.
        block: One KV block of one layer.
    """

    PAGE_BYTES: ClassVar[int] = _PAGE_BYTES

    layer: int
    depth: int
    fixed: int
    block: int

    @staticmethod
    def kept_blocks(blocks: int) -> int:
        """Return the blocks to allocate so that this many can be used: zero block and watermark."""
        return blocks + 2 + -(-blocks * _WATERMARK_PERMILLE // 1000)


@lru_cache(maxsize=1024)
def arena_shape(
    architecture: Architecture, *, depth: int, precision: str, kv_precision: str, block_tokens: int
) -> ArenaShape:
    """Return what a model asks of the engine's slabs at a precision."""
    layer = matrices_bytes(architecture, precision=precision)
    token = kv_bytes_per_token(architecture, depth=1, kv_precision=kv_precision)
    return ArenaShape(
        layer=layer,
        depth=depth,
        fixed=weight_bytes(architecture, depth=depth, precision=precision) - depth * layer,
        block=token * block_tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Memory of one replica on product ``cpu``, bytes.

    Attributes:
        weights: In the engine's arena.
        kv: In the engine's arena, whole slabs.
        host_weights: The host copy from which lent weights are read again.
        overhead: Interpreter, libraries, activations.
        reserve: Held back.
        kv_tokens: Tokens that ``kv`` holds.
        measured: Overhead comes from the fingerprint's memory rows.
    """

    weights: int
    kv: int
    host_weights: int
    overhead: int
    reserve: int
    kv_tokens: int
    measured: bool

    @property
    def arena(self) -> int:
        """The engine's ``memory_bytes``: weights and KV."""
        return self.weights + self.kv

    @property
    def total(self) -> int:
        """The pod's memory request."""
        return self.arena + self.host_weights + self.overhead + self.reserve


def matrices_bytes(architecture: Architecture, *, precision: str) -> int:
    """Return the bytes of one layer's matrices as they lie in a slab, scales included."""
    return sum(matrix_bytes(*matrix, precision=precision) for matrix in architecture.matrices())


def layer_bytes(architecture: Architecture, *, precision: str) -> int:
    """Return the bytes of one layer's weights: matrices, and norms and biases, never quantised."""
    beside = architecture.layer_parameters() - architecture.matrix_parameters()
    return matrices_bytes(architecture, precision=precision) + beside * value_bytes(precision)


@lru_cache(maxsize=1024)
def weight_bytes(architecture: Architecture, *, depth: int, precision: str) -> int:
    """Return the exact bytes of all weights at a precision."""
    fixed = architecture.fixed_parameters() * table_bytes(precision)
    return fixed + depth * layer_bytes(architecture, precision=precision)


def kv_bytes_per_token(architecture: Architecture, *, depth: int, kv_precision: str) -> int:
    """Return the bytes that one token keeps in all layers."""
    return depth * architecture.kv_values_per_token() * value_bytes(kv_precision)


class ReplicaMemory:
    """Memory of replicas of one configuration on ``cpu``, which differ in their KV caches alone.

    A replica of several ``processes`` needs as many interpreters. Of its pipeline ``stages``, which
    have equal parts of the arena, each is planned as the fullest; a fingerprint is of one of them.
    """

    __slots__ = (
        "_blocks",
        "_exact",
        "_measured",
        "_overhead",
        "_per_slab",
        "_reserve_permille",
        "_slab",
        "_stages",
        "_weights",
    )

    def __init__(
        self,
        architecture: Architecture,
        *,
        depth: int,
        precision: str,
        kv_precision: str,
        block_tokens: int,
        fingerprint: Fingerprint | None,
        policy: PlannerPolicy,
        processes: int = 1,
        stages: int = 1,
    ) -> None:
        """Work out what does not depend on the KV cache.

        The engine divides its memory into equal slabs of one layer's matrices, whole blocks of all
        layers inside each (engine.md §4); embedding, head and norms lie beside them. It keeps a block
        of zeros and a watermark of 2 % free. A slab never holds less than one block of every layer.
        The first stage has the embedding and the last the head: one table that both have, if it is tied.
        """
        layers = -(-depth // stages)
        shape = arena_shape(
            architecture,
            depth=layers,
            precision=precision,
            kv_precision=kv_precision,
            block_tokens=block_tokens,
        )
        elsewhere = 0
        if stages > 1 and not architecture.tied_embeddings:
            elsewhere = architecture.vocab_size * architecture.hidden_size * table_bytes(precision)
        align = math.lcm(_PAGE_BYTES, shape.block)
        self._slab = -(-max(shape.layer, layers * shape.block) // align) * align
        homes = -(-layers // (self._slab // shape.layer))
        self._stages = stages
        self._weights = stages * (shape.fixed - elsewhere + homes * self._slab)
        self._per_slab = self._slab // shape.block // layers
        self._blocks = block_tokens
        self._exact = weight_bytes(architecture, depth=depth, precision=precision)
        self._overhead, self._measured = _overhead(
            fingerprint, weights=self._exact, policy=policy, processes=processes, stages=stages
        )
        self._reserve_permille = policy.memory_reserve_permille

    def holding(self, kv_tokens: int) -> MemoryPlan:
        """Return the memory of a replica whose KV cache holds at least ``kv_tokens`` tokens."""
        blocks = -(-kv_tokens // self._blocks)
        slabs = -(-ArenaShape.kept_blocks(blocks) // self._per_slab)
        held = slabs * self._per_slab
        usable = held - 2 - -(-held * _WATERMARK_PERMILLE // 1000)
        kv = self._stages * slabs * self._slab
        total = self._weights + self._exact + kv + self._overhead
        return MemoryPlan(
            weights=self._weights,
            kv=kv,
            host_weights=self._exact,
            overhead=self._overhead,
            reserve=-(-total * self._reserve_permille // 1000),
            kv_tokens=max(blocks, usable) * self._blocks,
            measured=self._measured,
        )


def memory_plan(
    architecture: Architecture,
    *,
    depth: int,
    precision: str,
    kv_precision: str,
    kv_tokens: int,
    block_tokens: int,
    fingerprint: Fingerprint | None,
    policy: PlannerPolicy,
    processes: int = 1,
    stages: int = 1,
) -> MemoryPlan:
    """Return what `ReplicaMemory.holding` finds, for one KV cache alone."""
    replica = ReplicaMemory(
        architecture,
        depth=depth,
        precision=precision,
        kv_precision=kv_precision,
        block_tokens=block_tokens,
        fingerprint=fingerprint,
        policy=policy,
        processes=processes,
        stages=stages,
    )
    return replica.holding(kv_tokens)


def _overhead(
    fingerprint: Fingerprint | None,
    *,
    weights: int,
    policy: PlannerPolicy,
    processes: int,
    stages: int,
) -> tuple[int, bool]:
    rows = fingerprint.memory if fingerprint is not None else ()
    if rows:
        # Activations and libraries do not grow with depth; the larger row covers noise.
        return stages * max(row.activation + row.non_torch + row.graphs for row in rows), True
    share = weights * policy.unmeasured_weight_overhead_permille // 1000
    return processes * policy.unmeasured_overhead_bytes + share, False
