"""What this engine can run, as plain data that the planner reads; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trimtab_workers.engine.models.shape import SUPPORTED_FAMILIES

ENGINE_VERSION = "0.1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Options that exist; the planner never plans what is missing here."""

    families: tuple[str, ...]
    precisions: tuple[str, ...]
    kv_precisions: tuple[str, ...]
    devices: tuple[str, ...]
    tensor_parallel_sizes: tuple[int, ...]
    pipeline_parallel_sizes: tuple[int, ...]
    pressures: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready lists."""
        return {name: list(getattr(self, name)) for name in self.__slots__}


CAPABILITIES = Capabilities(
    families=SUPPORTED_FAMILIES,
    precisions=("bf16", "fp32", "int8", "int4"),
    kv_precisions=("bf16", "fp32"),
    devices=("cpu",),
    tensor_parallel_sizes=(1, 2, 4),
    pipeline_parallel_sizes=(1, 2),
    pressures=("recompute", "swap", "remap-idle", "remap"),
)
