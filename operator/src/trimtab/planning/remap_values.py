"""What `trimtab.planning.remap` is asked with and what it answers (engine.md §3)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["DoNotRemap", "IdleOnly", "IdleAndActive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """One model on one rank, bytes.

    Attributes:
        layers: Number of equal layers.
        layer_bytes: Weights of one layer.
        fixed_bytes: Weights that are never lent: embedding, head, norms.
        read_outside_bytes: The part of them that a step reads (the head).
        kv_bytes_per_token: KV cache of one token in all layers.
        bytes_per_value: Of a weight; a token computes two operations per weight.
    """

    layers: int
    layer_bytes: int
    fixed_bytes: int
    read_outside_bytes: int
    kv_bytes_per_token: int
    bytes_per_value: float = 2.0

    def __post_init__(self) -> None:
        for name in ("layers", "layer_bytes", "kv_bytes_per_token", "bytes_per_value"):
            positive("ModelShape", name, getattr(self, name))
        for name in ("fixed_bytes", "read_outside_bytes"):
            not_negative("ModelShape", name, getattr(self, name))

    @property
    def weight_bytes(self) -> int:
        """All layers and what is fixed."""
        return self.layers * self.layer_bytes + self.fixed_bytes

    @property
    def read_bytes(self) -> int:
        """Weights that one step reads."""
        return self.layers * self.layer_bytes + self.read_outside_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One device and its link to host memory.

    Attributes:
        memory_bytes: What weights and KV cache may take together.
        memory_rate: Device memory, bytes/s.
        link_rate: Host to device, one way, bytes/s; 0 where nothing can be read again.
        link_latency_s: Added to every copy.
        flops_rate: Usable operations/s.
        host_bytes: Host memory for copies of the weights.
    """

    memory_bytes: int
    memory_rate: float
    link_rate: float
    link_latency_s: float
    flops_rate: float
    host_bytes: int

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "memory_rate", "flops_rate"):
            positive("Hardware", name, getattr(self, name))
        for name in ("link_rate", "link_latency_s", "host_bytes"):
            not_negative("Hardware", name, getattr(self, name))

    def transfer_s(self, size_bytes: int) -> float:
        """Return the seconds of one copy to the device; infinite without a link."""
        return self.link_latency_s + size_bytes / self.link_rate if self.link_rate else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What the models do.

    Attributes:
        sequence_tokens: Mean tokens of a running sequence in the KV cache.
        prefill_tokens_per_step: Prompt tokens that a step computes beside the decoding rows.
        switch_interval_s: Mean seconds between requests to another model than before; None if
            idle models stay idle.
        step_s: Measured step at the present KV cache; None uses the roofline's floor.
    """

    sequence_tokens: int
    prefill_tokens_per_step: int
    switch_interval_s: float | None
    step_s: float | None

    def __post_init__(self) -> None:
        positive("Traffic", "sequence_tokens", self.sequence_tokens)
        not_negative("Traffic", "prefill_tokens_per_step", self.prefill_tokens_per_step)
        for name in ("switch_interval_s", "step_s"):
            value = getattr(self, name)
            if value is not None:
                positive("Traffic", name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Policy, not physics.

    Attributes:
        min_resident_units: Layers that every idle model keeps.
        active_cap: Greatest share of an active model's layers that may become KV cache.
        min_gain: Active streaming must promise at least this much more throughput.
        levels: Numbers of freed layers to choose from, ascending from 0.
    """

    min_resident_units: int = 2
    active_cap: float = 0.25
    min_gain: float = 0.02
    levels: tuple[int, ...] = (0, 1, 2, 4, 8)

    def __post_init__(self) -> None:
        for name in ("min_resident_units", "active_cap", "min_gain"):
            not_negative("Limits", name, getattr(self, name))
        if not self.levels or self.levels[0] != 0 or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(
                f"Limits: levels is {self.levels}. Give ascending numbers that begin with 0."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RemapAdvice:
    """What to lend and why not more.

    Attributes:
        lend_units: Layers that each idle model gives, last ones first.
        alpha: Layers that each active model frees; 0 streams nothing.
        slots: Buffers its streamed layers rotate through: 0 without streaming, else 1 or 2.
        hidden_m: Layers whose reading hides behind a step, with these slots and this KV cache;
            without streaming the most that two slots could hide.
        kv_tokens_before: Of the active model with the largest KV per token, as all below.
        kv_tokens_after: With everything lent and freed.
        switch_s: Reading one lent model again; the largest counts.
        ratio_if_forced: Throughput at `alpha` over none; at alpha 0 that of the lowest level,
            which was refused. Infinite where nothing can run without.
        reasons: One sentence for everything refused; each begins with its name and has numbers.
    """

    verdict: Verdict
    lend_units: Mapping[str, int]
    alpha: int
    slots: int
    hidden_m: float
    kv_tokens_before: int
    kv_tokens_after: int
    switch_s: float
    ratio_if_forced: float
    reasons: tuple[str, ...]


def positive(owner: str, name: str, value: float) -> None:
    """Raise ValueError unless a value is finite and above 0; names owner, field and value."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{owner}: {name} is {value}. Give a finite number above 0.")


def not_negative(owner: str, name: str, value: float) -> None:
    """Raise ValueError unless a value is finite and at least 0; names owner, field and value."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{owner}: {name} is {value}. Give a finite number, 0 or more.")
