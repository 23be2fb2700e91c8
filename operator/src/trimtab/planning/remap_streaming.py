"""What it costs to read layers of a running model again in every step (engine.md §3)."""

import math
from dataclasses import dataclass

from trimtab.planning.remap_values import Hardware, ModelShape, Traffic, positive


def step_floor(model: ModelShape, hw: Hardware, traffic: Traffic, *, kv_bytes: float) -> float:
    """Return the least seconds of a step that reads so many bytes of KV cache.

    Memory reads everything once; compute does two operations per weight and token, a decoding
    row for each sequence that the KV cache holds and the prompt chunk.
    """
    rows = kv_bytes / (traffic.sequence_tokens * model.kv_bytes_per_token)
    operations = 2.0 * model.read_bytes / model.bytes_per_value
    return max(
        (model.read_bytes + kv_bytes) / hw.memory_rate,
        operations * (rows + traffic.prefill_tokens_per_step) / hw.flops_rate,
    )


def layer_share(model: ModelShape, *, kv_bytes: float) -> float:
    """Return one layer's part of a step, 0 to 1: (b + K/n) of n·b + f + K."""
    return (model.layer_bytes + kv_bytes / model.layers) / (model.read_bytes + kv_bytes)


def hidden_bound(*, step_s: float, transfer_s: float, layer_s: float, slots: int) -> float:
    """Return how many layers per step are read again without being waited for.

    With two slots a layer is read while another computes: T ÷ T_T. One slot is free only between
    its layer's end and the next one's start: T ÷ (T_T + t_c).

    Raises:
        ValueError: A time is not positive, or slots is neither 1 nor 2.
    """
    positive("hidden_bound", "step_s", step_s)
    _check_times("hidden_bound", transfer_s=transfer_s, layer_s=layer_s)
    if slots not in (1, 2):
        raise ValueError(f"hidden_bound: slots is {slots}. Give 1 or 2: more only add bytes.")
    return step_s / (transfer_s if slots == 2 else transfer_s + layer_s)


def slots_for(alpha: int, transfer_s: float, layer_s: float) -> int:
    """Return 1 or 2, whichever streams alpha freed layers in less time.

    One slot costs (alpha + 1)·(T_T + t_c), two cost (alpha + 2)·T_T: two iff alpha + 1 > T_T/t_c. The paper's switch
    at alpha = 9 is r = T_T/t_c of about 9.4.

    Raises:
        ValueError: alpha is below 1 or a time is not positive.
    """
    if alpha < 1:
        raise ValueError(f"slots_for: alpha is {alpha}. Give 1 or more: 0 streams nothing.")
    _check_times("slots_for", transfer_s=transfer_s, layer_s=layer_s)
    return 2 if (alpha + 1) * layer_s > transfer_s else 1


def streamed_layers(n: int, m: int) -> tuple[int, ...]:
    """Return which m of n layers rotate: {⌊i·n/m⌋}, whose gaps around the cycle differ by one.

    Raises:
        ValueError: m is negative or above n.
    """
    if not 0 <= m <= n:
        raise ValueError(f"streamed_layers: m is {m}. Give 0 to n, which is {n}.")
    return tuple(i * n // m for i in range(m))


def streaming_ratio(
    model: ModelShape, hw: Hardware, traffic: Traffic, *, pool_bytes: float, alpha: int
) -> float:
    """Return throughput with alpha freed layers over none, at equal sequence length.

    (P + a·b)/P · T(P)/T_slots(P + a·b): as many more sequences as fit, in a step that is as long
    as its reading or as its streaming, whichever is longer.
    """
    stream = Stream.at(model, hw, traffic, pool_bytes=pool_bytes, alpha=alpha)
    if pool_bytes <= 0:
        return math.inf if math.isfinite(stream.cost_s) else 0.0
    before = step_floor(model, hw, traffic, kv_bytes=pool_bytes)
    if traffic.step_s is not None:
        before = traffic.step_s
    growth = (pool_bytes + alpha * model.layer_bytes) / pool_bytes
    return growth * before / max(stream.step_s, stream.cost_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One model's streaming at one level: the step it has to hide behind, and its two prices."""

    alpha: int
    slots: int
    step_s: float
    transfer_s: float
    layer_s: float

    @classmethod
    def at(
        cls, model: ModelShape, hw: Hardware, traffic: Traffic, *, pool_bytes: float, alpha: int
    ) -> "Stream":
        """Return the streaming that frees `alpha` layers beside a pool of so many bytes of KV."""
        grown = pool_bytes + alpha * model.layer_bytes
        step_s = step_floor(model, hw, traffic, kv_bytes=grown)
        if traffic.step_s is not None:
            # What was measured grows as the floor does.
            step_s *= traffic.step_s / step_floor(model, hw, traffic, kv_bytes=pool_bytes)
        transfer_s = hw.transfer_s(model.layer_bytes)
        layer_s = step_s * layer_share(model, kv_bytes=grown)
        return cls(
            alpha=alpha,
            slots=slots_for(alpha, transfer_s, layer_s) if alpha else 2,
            step_s=step_s,
            transfer_s=transfer_s,
            layer_s=layer_s,
        )

    @property
    def hidden_m(self) -> float:
        """Layers per step whose reading hides."""
        return hidden_bound(
            step_s=self.step_s, transfer_s=self.transfer_s, layer_s=self.layer_s, slots=self.slots
        )

    @property
    def load(self) -> float:
        """Layers that stream over layers that hide; up to 1 nothing is waited for."""
        return (self.alpha + self.slots) / self.hidden_m if self.hidden_m else math.inf

    @property
    def cost_s(self) -> float:
        """Seconds that the link needs for one step's layers."""
        each = self.transfer_s if self.slots == 2 else self.transfer_s + self.layer_s
        return (self.alpha + self.slots) * each if self.alpha else 0.0

    @property
    def hidden(self) -> bool:
        """Whether alpha + s ≤ ⌊hidden m⌋."""
        return self.alpha + self.slots <= self.hidden_m


def _check_times(where: str, *, transfer_s: float, layer_s: float) -> None:
    for name, value in (("transfer_s", transfer_s), ("layer_s", layer_s)):
        # Infinite: there is no link.
        if math.isnan(value) or value <= 0:
            raise ValueError(f"{where}: {name} is {value}. Give positive seconds.")
