"""What `planner-cpu` measures, and in which order: ways to serve a model, loads, repeats."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from trimtab.bench.open_loop import Arrival, scattered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Kind = Literal["load", "capacity", "preempt"]

SATURATION: Final = 1.5
"""Rate of a capacity run in predicted capacities: enough that requests always wait."""

WARM_UP_SHARE: Final = 0.1
"""Arrivals of this part of a run are sent and not counted: they find an empty replica."""

PREEMPT_PROMPT, PREEMPT_OUTPUT = 64, 192
"""Tokens of a run with preemptions: outputs grow past what admission could see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to serve the model, one thread per replica; `small` is a KV cache that runs short."""

    precision: str
    replicas: int
    small: bool = False

    @property
    def name(self) -> str:
        """Name of its intent and of its rows."""
        return f"{self.precision}-x{self.replicas}" + ("-small" if self.small else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much is measured; seconds are without the warm-up.

    Attributes:
        loads: Shares of the base rate, ascending.
        precisions: The checkpoint's own first: it is the one whose cache is made small.
        replicas: Counts.
        repeats: Of everything, in alternating order.
        seconds: Of a run at a load.
        capacity_seconds: Of a run at saturation; 0 leaves it out.
        preempt: Whether a small cache is tried.
        prompt: Mean tokens of a prompt.
        output: Mean tokens of an answer.
        length_cv: Coefficient of variation of both.
    """

    loads: tuple[float, ...]
    precisions: tuple[str, ...]
    replicas: tuple[int, ...]
    repeats: int
    seconds: float
    capacity_seconds: float
    preempt: bool
    prompt: int
    output: int
    length_cv: float

    def ways(self) -> tuple[Way, ...]:
        """Return the ways whose loads are compared."""
        pairs = itertools.product(self.precisions, self.replicas)
        return tuple(Way(precision=p, replicas=r) for p, r in pairs)

    def small_way(self) -> Way:
        """Return the way whose cache runs short."""
        return Way(precision=self.precisions[0], replicas=1, small=True)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shape:
        """Read what `to_dict` wrote."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Requests per second, all from predictions that know the fingerprint alone.

    Attributes:
        base: What the loads are shares of: the least predicted capacity of one replica.
        saturating: Of each way's capacity run.
        preempt: Of the run on a small cache.
    """

    base: float
    saturating: Mapping[str, float]
    preempt: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One load on one way."""

    way: str
    kind: Kind
    share: float
    repeat: int
    rate: float
    seconds: float
    prompt: int
    output: int
    length_cv: float

    @property
    def key(self) -> str:
        """What tells whether it was measured already."""
        return f"{self.way}/{self.kind}-{self.share:g}/{self.repeat}"

    @property
    def warm_up_seconds(self) -> float:
        """Time before arrivals count."""
        return WARM_UP_SHARE * self.seconds

    @property
    def total_seconds(self) -> float:
        """Time over which requests are sent."""
        return self.seconds + self.warm_up_seconds

    def arrivals(self, model: str) -> list[Arrival]:
        """Return its requests: the same for all ways, others in every repeat."""
        return scattered(
            rate=self.rate,
            seconds=self.total_seconds,
            model=model,
            prompt_tokens=self.prompt,
            output_tokens=self.output,
            length_cv=self.length_cv,
            seed=zlib.crc32(f"{self.kind} {self.share:g} {self.repeat}".encode()),
        )


def blocks(shape: Shape, rates: Rates) -> Iterator[tuple[Way, tuple[Run, ...]]]:
    """Yield ways with the runs to make while they serve, in the order of measuring.

    Every second repeat goes through ways and loads backwards, so that a machine that gets slower
    during a repeat does not make one way look slow.
    """
    for repeat in range(shape.repeats):
        backwards = -1 if repeat % 2 else 1
        for way in shape.ways()[::backwards]:
            loads = [_run(shape, rates, way, repeat, share) for share in shape.loads[::backwards]]
            # Last, because it leaves the machine warm and the queue to drain.
            full = [_full(shape, rates, way, repeat)] if shape.capacity_seconds else []
            yield way, (*loads, *full)
        if shape.preempt:
            yield shape.small_way(), (preempting(shape, rate=rates.preempt, repeat=repeat),)


def total_seconds(runs: Sequence[Run]) -> float:
    """Return how long runs take without what comes between them."""
    return sum(run.total_seconds for run in runs)


def _run(shape: Shape, rates: Rates, way: Way, repeat: int, share: float) -> Run:
    return Run(
        way=way.name,
        kind="load",
        share=share,
        repeat=repeat,
        rate=share * rates.base,
        seconds=shape.seconds,
        prompt=shape.prompt,
        output=shape.output,
        length_cv=shape.length_cv,
    )


def _full(shape: Shape, rates: Rates, way: Way, repeat: int) -> Run:
    return Run(
        way=way.name,
        kind="capacity",
        share=SATURATION,
        repeat=repeat,
        rate=rates.saturating[way.name],
        seconds=shape.capacity_seconds,
        prompt=shape.prompt,
        output=shape.output,
        length_cv=shape.length_cv,
    )


def preempting(shape: Shape, *, rate: float, repeat: int) -> Run:
    """Return a run on the small cache; lengths are equal, so that none fills it alone."""
    return Run(
        way=shape.small_way().name,
        kind="preempt",
        share=0.0,
        repeat=repeat,
        rate=rate,
        seconds=shape.seconds,
        prompt=PREEMPT_PROMPT,
        output=PREEMPT_OUTPUT,
        length_cv=0.0,
    )
