"""The simulated situations: engine.md §9's registered ones, and the curve's points."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from trimtab_workers.engine.bench.arrivals import Arrival, Load, alternating, bursts_on_one
from trimtab_workers.engine.bench.sim_cost import (
    H100,
    LLAMA_3_8B,
    Table,
    model_shape,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.planning.remap import Hardware

_GB: Final = 10**9
_ALL: Final = ("recompute", "swap", "remap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One situation, run under each policy with equal bytes and arrivals.

    Attributes:
        config: Every model's configuration.
        kind: `bursts` on the first model, or `alternating` between all.
    """

    models: tuple[str, ...]
    memory_bytes: int
    load: Load
    kind: Literal["bursts", "alternating"] = "bursts"
    policies: tuple[str, ...] = _ALL
    hw: Hardware = H100
    config: Mapping[str, object]
    linear: Table | None = None
    max_model_len: int = 4096
    max_batch_tokens: int = 2048
    max_seqs: int = 256

    def arrivals(self) -> tuple[Arrival, ...]:
        """Return the requests."""
        chosen = bursts_on_one if self.kind == "bursts" else alternating
        return chosen(self.models, self.load)

    def lasting(self, seconds: float | None) -> Scenario:
        """Return the same for another time; None leaves it."""
        if seconds is None:
            return self
        return replace(self, load=replace(self.load, seconds=seconds))

    def describe(self) -> str:
        """Return models, bytes, rates and load in a sentence."""
        load = self.load
        return (
            f"{len(self.models)} models in {self.memory_bytes / _GB:.1f} GB, link "
            f"{self.hw.link_rate / _GB:g} GB/s, memory {self.hw.memory_rate / _GB:g} GB/s; "
            f"{load.lengths}, {load.burst_rate:g} requests/s ({self.kind}), {load.seconds:g} s"
        )


def _load(lengths: str, **changes: float | None) -> Load:
    base = Load(
        lengths=lengths,
        divisor=1.0,
        longest=4096,
        seconds=60.0,
        burst_seconds=20.0,
        pause_seconds=10.0,
        burst_rate=16.0,
        visit_seconds=None,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


_THREE: Final = ("a", "b", "c")
# Round robin by the millisecond: all models are active all the time.
_MIXED: Final = 1e-3
_EIGHT_B: Final = model_shape(LLAMA_3_8B).weight_bytes

SCENARIOS: Final[Mapping[str, Scenario]] = {
    "temporal": Scenario(
        models=_THREE,
        memory_bytes=56 * _GB,
        load=_load("azure-conv", burst_rate=20.0, visit_seconds=20.0),
        config=LLAMA_3_8B,
        policies=(*_ALL, "remap-idle"),
    ),
    "alternating": Scenario(
        models=_THREE,
        memory_bytes=56 * _GB,
        load=_load("azure-conv", burst_rate=10.0, burst_seconds=0.5),
        kind="alternating",
        config=LLAMA_3_8B,
    ),
    "all-active-decode": Scenario(
        models=_THREE,
        memory_bytes=56 * _GB,
        load=_load("azure-conv", burst_rate=9.0, burst_seconds=_MIXED),
        kind="alternating",
        config=LLAMA_3_8B,
        policies=(*_ALL, "static:4"),
    ),
    "all-active-prefill": Scenario(
        models=_THREE,
        memory_bytes=56 * _GB,
        load=_load("azure-code", burst_rate=20.0, burst_seconds=_MIXED),
        kind="alternating",
        config=LLAMA_3_8B,
    ),
    "large-kv-share": Scenario(
        models=("a",),
        memory_bytes=40 * _GB,
        load=_load("azure-conv", burst_rate=34.0),
        config=LLAMA_3_8B,
        max_seqs=512,
    ),
    "fast-link": Scenario(
        models=("a",),
        memory_bytes=_EIGHT_B + 3 * _GB // 2,
        load=_load("azure-conv", burst_rate=14.0),
        hw=replace(H100, memory_rate=4.0e12, link_rate=400e9),
        config=LLAMA_3_8B,
    ),
}

CURVE_POOL_GB: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
CURVE_RATES: Final = (7.0, 8.5, 10.0, 15.0, 30.0, 60.0)
_PROMPT, _OUTPUT = 512, 256


def curve_point(*, pool_bytes: int, slowness: float) -> tuple[Scenario, tuple[Arrival, ...]]:
    """Return one active 8B model beside so much KV cache, with a backlog of equal requests.

    Args:
        pool_bytes: The home KV cache.
        slowness: r, the memory's rate over the link's.
    """
    shape = model_shape(LLAMA_3_8B)
    scenario = Scenario(
        models=("a",),
        memory_bytes=shape.weight_bytes + pool_bytes,
        load=_load("azure-conv"),
        hw=replace(H100, link_rate=H100.memory_rate / slowness),
        config=LLAMA_3_8B,
        max_model_len=1024,
    )
    held = pool_bytes // (shape.kv_bytes_per_token * (_PROMPT + _OUTPUT))
    backlog = tuple(
        Arrival(seconds=0.0, model="a", prompt_tokens=_PROMPT, output_tokens=_OUTPUT, seed=n)
        for n in range(max(32, 4 * held))
    )
    return scenario, backlog
