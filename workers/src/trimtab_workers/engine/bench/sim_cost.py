"""What a simulated step costs: the roofline, or Vidur's measured operators; pure.

Copies are priced by the simulated link, and stalls come from the engine's own waiting for them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.planning.remap import Hardware, ModelShape

if TYPE_CHECKING:
    from collections.abc import Sequence

Table = tuple[tuple[int, float], ...]

# Tokens in the step, seconds of all linear operators of one layer of Llama-2-7B on an H100
# (Vidur, microsoft/vidur 7d47513, profiling data; engine.md §9).
VIDUR_LLAMA_2_7B: Final[Table] = (
    (1, 0.177e-3),
    (64, 0.187e-3),
    (256, 0.295e-3),
    (1024, 0.687e-3),
    (2048, 1.32e-3),
)
H100: Final = Hardware(
    memory_bytes=80 * 10**9,
    memory_rate=3.0e12,
    link_rate=50e9,
    link_latency_s=10e-6,
    flops_rate=600e12,
    host_bytes=400 * 10**9,
)
LLAMA_3_8B: Final[dict[str, object]] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128_256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
LLAMA_2_7B: Final[dict[str, object]] = LLAMA_3_8B | {
    "intermediate_size": 11008,
    "num_key_value_heads": 32,
    "vocab_size": 32_000,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 4096,
}


def model_shape(config: dict[str, object]) -> ModelShape:
    """Return the sizes of a model in bf16 from its configuration."""
    number = {key: int(value) for key, value in config.items() if isinstance(value, int)}
    hidden, head, layers = number["hidden_size"], number["head_dim"], number["num_hidden_layers"]
    heads, kv_heads = number["num_attention_heads"], number["num_key_value_heads"]
    attention = hidden * head * (2 * heads + 2 * kv_heads)
    matrices = attention + 3 * hidden * number["intermediate_size"]
    table = number["vocab_size"] * hidden
    tables = 1 if config.get("tie_word_embeddings") else 2
    return ModelShape(
        layers=layers,
        layer_bytes=2 * matrices,
        fixed_bytes=2 * (tables * table + hidden + 2 * hidden * layers),
        read_outside_bytes=2 * table,
        kv_bytes_per_token=2 * 2 * layers * kv_heads * head,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """Seconds of a step by what it computes and reads.

    Attributes:
        linear: One layer's linear operators by tokens; None takes the roofline's.
    """

    shape: ModelShape
    hw: Hardware
    linear: Table | None = None

    def compute_seconds(self, *, tokens: int, kv_bytes: float) -> float:
        """Return the step without streaming: `tokens` rows that read so many bytes of KV."""
        if self.linear is None:
            operations = 2.0 * self.shape.read_bytes / self.shape.bytes_per_value * tokens
            return max(
                (self.shape.read_bytes + kv_bytes) / self.hw.memory_rate,
                operations / self.hw.flops_rate,
            )
        outside = self.shape.read_outside_bytes + kv_bytes
        layers = self.shape.layers * at_tokens(self.linear, tokens)
        return layers + outside / self.hw.memory_rate


def at_tokens(table: Sequence[tuple[int, float]], tokens: int) -> float:
    """Return the seconds at a number of tokens, linear between and beyond the table's last two."""
    if tokens <= table[0][0]:
        return table[0][1]
    for below, above in itertools.pairwise(table):
        if tokens <= above[0] or above is table[-1]:
            part = (tokens - below[0]) / (above[0] - below[0])
            return below[1] + (above[1] - below[1]) * part
    raise ValueError(f"at_tokens: the table has {len(table)} rows. Give at least two.")
