"""From bytes and seconds to the figures that the GPU benchmarks print; pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab.planning.remap import ModelShape, hidden_bound, slots_for
from trimtab_workers.engine.models.shape import LlamaShape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DECODE_TARGET: Final = 1.25
BOUND_TOLERANCE: Final = 0.10
BF16_BYTES: Final = 2

_LLAMA: Final[Mapping[str, Any]] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
CONFIGURATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama-3-8b": {
        **_LLAMA,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
    },
    "llama-2-7b": {
        **_LLAMA,
        "num_key_value_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "rope_theta": 10000.0,
    },
}


def named_shape(name: str, *, layers: int | None = None) -> LlamaShape:
    """Return a known shape in bf16, cut to a depth if one is given.

    Raises:
        KeyError: It is not known.
    """
    config = dict(CONFIGURATIONS[name])
    if layers is not None:
        config["num_hidden_layers"] = layers
    return LlamaShape.from_hf_config(config, where=name)


def remap_shape(shape: LlamaShape) -> ModelShape:
    """Return what the remap formulas ask of a shape in bf16."""
    return ModelShape(
        layers=shape.layers,
        layer_bytes=shape.layer_elements * BF16_BYTES,
        fixed_bytes=shape.fixed_elements * BF16_BYTES,
        read_outside_bytes=shape.vocab * shape.hidden * BF16_BYTES,
        kv_bytes_per_token=shape.layers * 2 * shape.kv_heads * shape.head_dim * BF16_BYTES,
    )


def decode_bytes(shape: LlamaShape, *, batch: int, context: int) -> int:
    """Return the bytes that a decode step must read: layers, head, and every sequence's KV."""
    model = remap_shape(shape)
    return model.read_bytes + batch * context * model.kv_bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Repeated timings of one thing, seconds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Return the median and the range.

        Raises:
            ValueError: There is no timing.
        """
        if not seconds:
            raise ValueError("Spread: no timing was given. Measure at least once.")
        return cls(median=statistics.median(seconds), least=min(seconds), greatest=max(seconds))

    def rate(self, size_bytes: float) -> float:
        """Bytes per second at the median."""
        return size_bytes / self.median

    def to_dict(self) -> dict[str, float]:
        """Return JSON-ready seconds."""
        return {"median_s": self.median, "least_s": self.least, "greatest_s": self.greatest}


def decode_row(
    shape: LlamaShape,
    *,
    batch: int,
    context: int,
    graphs: bool,
    step: Spread,
    memory_rate: float,
) -> dict[str, Any]:
    """Return one line of `decode`: the step beside the time that its bytes take to read."""
    size = decode_bytes(shape, batch=batch, context=context)
    floor = size / memory_rate
    return {
        "batch": batch,
        "context": context,
        "graphs": graphs,
        **step.to_dict(),
        "bytes": size,
        "floor_s": floor,
        "over_floor": step.median / floor,
        "target": DECODE_TARGET,
        "met": step.median <= DECODE_TARGET * floor,
        "tokens_per_second": batch / step.median,
    }


def streamed_row(
    *, alpha: int, slots: int, step: Spread, resident: Spread, transfer_s: float, layers: int
) -> dict[str, Any]:
    """Return one line of `active`: a step with streamed layers beside the formula (engine.md §3).

    The formula knows the resident step and one layer's transfer alone. A step is bound by the link
    where more layers stream than hide; then it takes (alpha + s)·T_T with two slots and
    (alpha + 1)·(T_T + t_c) with one.
    """
    layer_s = resident.median / layers
    bound = hidden_bound(
        step_s=resident.median, transfer_s=transfer_s, layer_s=layer_s, slots=slots
    )
    each = transfer_s if slots == 2 else transfer_s + layer_s
    predicted = max(resident.median, (alpha + slots) * each if alpha else 0.0)
    return {
        "alpha": alpha,
        "slots": slots,
        **step.to_dict(),
        "resident_s": resident.median,
        "hidden_bound_layers": bound,
        "predicted_s": predicted,
        "measured_over_predicted": step.median / predicted,
        "within_tolerance": abs(step.median / predicted - 1.0) <= BOUND_TOLERANCE,
        "rule_takes_slots": slots_for(alpha, transfer_s, layer_s) if alpha else None,
    }


def interference(alone: Spread, together: Spread) -> float:
    """Return how many times as long something takes beside something else."""
    return together.median / alone.median


def markdown_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as a table; numbers with four significant digits."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += [
        "| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows
    ]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
