"""Step times of a GPU from its data sheet, where nothing is measured: planner.md §4, last resort.

max(FLOPs/peak, bytes/bandwidth)/0.5 per rank, and the all-reduces' bytes over the link.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import Fingerprint, FingerprintKey, StepPoint
from trimtab.planning.gpu_grid import THIN, Grid
from trimtab.planning.policy import PlannerPolicy

_GRID = Grid(
    decode=THIN.decode,
    prefill=((128, 0), (512, 0), (1024, 0), (2048, 0), (8192, 0), (512, 4096), (2048, 8192)),
)
# Whole µs in the document: ten layers apart keep a tenth of a µs of one.
_DEPTHS = (1, 11)
_ACTIVATION_BYTES = 2
_ALL_REDUCES_PER_LAYER = 2

WEIGHT_BYTES: Final[Mapping[str, float]] = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int8": 1.0,
    "nvfp4": 0.5625,
    "int4": 0.5625,
}
"""Bytes of a weight with its share of scales."""

# How much faster than bf16 the matrix units are.
_SPEEDUP: Final[Mapping[str, int]] = {"fp8": 2, "fp8_block": 2, "nvfp4": 4}
_CACHE_BYTES: Final[Mapping[str, int]] = {"bf16": 2, "fp16": 2, "fp8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """A GPU's data sheet.

    Attributes:
        flops_per_us: Dense bf16.
        bytes_per_us: Of its memory.
        link_bytes_per_us: To its group, one way.
    """

    flops_per_us: float
    bytes_per_us: float
    link_bytes_per_us: float


PEAKS: Final[Mapping[str, Peak]] = {
    "NVIDIA-A100-SXM4-80GB": Peak(
        flops_per_us=312e6, bytes_per_us=2.039e6, link_bytes_per_us=0.3e6
    ),
    "NVIDIA-H100-80GB-HBM3": Peak(
        flops_per_us=989e6, bytes_per_us=3.35e6, link_bytes_per_us=0.45e6
    ),
    "NVIDIA-H200": Peak(flops_per_us=989e6, bytes_per_us=4.8e6, link_bytes_per_us=0.45e6),
    "NVIDIA-B200": Peak(flops_per_us=2250e6, bytes_per_us=8e6, link_bytes_per_us=0.9e6),
    "NVIDIA-GB200": Peak(flops_per_us=2500e6, bytes_per_us=8e6, link_bytes_per_us=0.9e6),
    "NVIDIA-A100-SXM4-40GB": Peak(
        flops_per_us=312e6, bytes_per_us=1.555e6, link_bytes_per_us=0.3e6
    ),
    "NVIDIA-A10G": Peak(flops_per_us=70e6, bytes_per_us=0.6e6, link_bytes_per_us=0.032e6),
    "NVIDIA-L4": Peak(flops_per_us=121e6, bytes_per_us=0.3e6, link_bytes_per_us=0.032e6),
    "AMD_Instinct_MI300X_OAM": Peak(
        flops_per_us=1307e6, bytes_per_us=5.3e6, link_bytes_per_us=0.448e6
    ),
    "NVIDIA-L40S": Peak(flops_per_us=362e6, bytes_per_us=0.864e6, link_bytes_per_us=0.032e6),
}
"""Products by normalised name; figures of the makers' data sheets, without sparsity."""


def gpu_roofline(
    architecture: Architecture,
    *,
    key: FingerprintKey,
    peak: Peak,
    policy: PlannerPolicy,
    grid: Grid = _GRID,
) -> Fingerprint:
    """Return an estimated fingerprint of one rank of a group, its all-reduces included.

    Raises:
        KeyError: A precision of the key is not known.
    """
    bound = _Bound(architecture, key, peak, policy)
    return Fingerprint(
        key=key,
        source="Roofline",
        depths=_DEPTHS,
        decode=tuple(bound.point(batch=b, context=c) for b, c in grid.decode),
        prefill=tuple(bound.point(chunk=n, cached=c) for n, c in grid.prefill),
    )


@dataclass(frozen=True, slots=True)
class _Bound:
    architecture: Architecture
    key: FingerprintKey
    peak: Peak
    policy: PlannerPolicy

    def point(
        self, *, batch: int = 0, context: int = 0, chunk: int = 0, cached: int = 0
    ) -> StepPoint:
        a = self.architecture
        tokens = batch + chunk
        work = batch * context + chunk * (cached + chunk / 2)
        read = batch * context + (cached + chunk if chunk else 0)
        weight = WEIGHT_BYTES[self.key.precision]
        layer = self._us(
            flops=2 * a.layer_parameters() * tokens + 4 * a.attention_heads * a.head_dim * work,
            moved=weight * a.layer_parameters()
            + read * a.kv_values_per_token() * _CACHE_BYTES[self.key.kv_precision],
        )
        layer += _ALL_REDUCES_PER_LAYER * self._all_reduce_us(tokens)
        table = a.vocab_size * a.hidden_size
        head = self._us(
            flops=2 * table * (batch + (1 if chunk else 0)), moved=_ACTIVATION_BYTES * table
        )
        return StepPoint(
            batch=batch,
            context=context,
            chunk=chunk,
            cached=cached,
            t1_us=max(1, round(head + _DEPTHS[0] * layer)),
            mad1_us=0,
            t2_us=max(1, round(head + _DEPTHS[1] * layer)),
            mad2_us=0,
            repeats=1,
        )

    def _us(self, *, flops: float, moved: float) -> float:
        rate = self.peak.flops_per_us * _SPEEDUP.get(self.key.precision, 1)
        limit = max(flops / rate, moved / self.peak.bytes_per_us)
        return (
            limit / self.key.tensor_parallel_size * 1000 / self.policy.roofline_utilisation_permille
        )

    def _all_reduce_us(self, tokens: int) -> float:
        ranks = self.key.tensor_parallel_size
        moved = tokens * self.architecture.hidden_size * _ACTIVATION_BYTES
        return 2 * (ranks - 1) / ranks * moved / self.peak.link_bytes_per_us
