"""From the operators of one hidden layer, measured alone, to a fingerprint with their whole grid.

Third parties profile single layers (planner.md §1, LLMServingSim 2.0). Their operators add up to the
layer time h and to the part F that does not depend on depth; no step of a whole model is timed, so
scheduling, sampling on the host and launch gaps are missing: the overhead per step is an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from trimtab.planning.curves import Curve
from trimtab.planning.fingerprint import (
    Fingerprint,
    FingerprintInvalidError,
    FingerprintKey,
    StepPoint,
)

# The document holds whole µs; ten layers apart keep a tenth of a µs of one.
_DEPTHS: Final = (1, 11)
_ALL_REDUCES_PER_LAYER: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPoint:
    """One measured attention kernel: a prompt's chunk, sequences that decode, or both; µs.

    ``batch`` sequences have ``context`` tokens each; the chunk follows ``cached`` ones.
    """

    chunk: int
    cached: int
    batch: int
    context: int
    us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OneLayerProfile:
    """Measured operators, µs.

    Attributes:
        layer: One hidden layer without attention, over the step's tokens.
        once: What is computed once per step for every token: embedding, final norm.
        sampled: Head and sampler, over the sequences that get a token.
        attention: Attention of one layer over its whole grid.
        repeats: Measurements behind each figure.
        absent: Operators that have no time of their own in the profile: they count as nothing.
    """

    layer: Curve
    once: Curve
    sampled: Curve
    attention: tuple[AttentionPoint, ...]
    repeats: int
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduce:
    """What one all-reduce costs a tensor-parallel group on one product and link.

    Attributes:
        curve: (bytes, µs), rising bytes.
        bytes_per_token: What one token's values take: hidden size times bytes per value.
    """

    curve: tuple[tuple[int, int], ...]
    bytes_per_token: int
    _times: Curve = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Keep the curve in the form that is asked."""
        times = Curve(
            tuple(float(x) for x, _ in self.curve), tuple(float(y) for _, y in self.curve)
        )
        object.__setattr__(self, "_times", times)

    def us(self, tokens: int) -> float:
        """Return the time of one all-reduce of a step's tokens."""
        return self._times.at(tokens * self.bytes_per_token)


def fingerprint_of(
    profile: OneLayerProfile,
    *,
    key: FingerprintKey,
    step_overhead_us: float,
    all_reduce: AllReduce | None,
    taken: str,
) -> Fingerprint:
    """Return the fingerprint that a profile amounts to, with every point of its grid.

    Decode and mixed points are the measured ones. Prefill points are the measured ones and, without
    cached tokens, every token count at which the other operators were measured: their cost goes up
    in steps that the attention's coarser grid would miss.

    Args:
        profile: The measured operators of one rank.
        key: What it is valid for.
        step_overhead_us: Added to every step, from a source other than the run to be predicted.
        all_reduce: Cost of a group's all-reduces, two per layer, which is added to the times; None
            leaves them out.
        taken: RFC 3339 time of the measurement, or empty.

    Raises:
        FingerprintInvalidError: The attention grid lacks steps that only decode or only prefill.
    """
    decode = [p for p in profile.attention if not p.chunk]
    alone = [p for p in profile.attention if p.chunk and not p.batch]
    mixed = [p for p in profile.attention if p.chunk and p.batch]
    for name, found in (("only decode", decode), ("only prefill", alone)):
        if not found:
            raise FingerprintInvalidError(
                f"The profile's attention grid has no point of steps that {name}. "
                "Profile the layer again with the default grid."
            )

    def points(kernels: Sequence[AttentionPoint]) -> tuple[StepPoint, ...]:
        ordered = sorted(kernels, key=lambda p: (p.chunk, p.cached, p.batch, p.context))
        return tuple(
            _point(profile, kernel, overhead=step_overhead_us, all_reduce=all_reduce)
            for kernel in ordered
        )

    return Fingerprint(
        key=key,
        source="Measured",
        tp_mode="Emulated" if key.tensor_parallel_size > 1 else "Real",
        depths=_DEPTHS,
        decode=points(decode),
        prefill=points([*alone, *_between_chunks(profile, alone)]),
        mixed=points(mixed),
        collective=all_reduce.curve if all_reduce else (),
        taken=taken,
    )


def _between_chunks(
    profile: OneLayerProfile, alone: Sequence[AttentionPoint]
) -> list[AttentionPoint]:
    """Return kernels without cached tokens at the other operators' token counts, interpolated."""
    fresh = {p.chunk: p.us for p in alone if not p.cached}
    if not fresh:
        return []
    chunks = sorted(fresh)
    times = Curve(tuple(float(c) for c in chunks), tuple(fresh[c] for c in chunks))
    return [
        AttentionPoint(chunk=int(x), cached=0, batch=0, context=0, us=times.at(x))
        for x in profile.layer.xs
        if int(x) not in fresh and chunks[0] <= x <= chunks[-1]
    ]


def _point(
    profile: OneLayerProfile,
    kernel: AttentionPoint,
    *,
    overhead: float,
    all_reduce: AllReduce | None,
) -> StepPoint:
    tokens = kernel.chunk + kernel.batch
    exchange = all_reduce.us(tokens) if all_reduce else 0.0
    layer = profile.layer.at(tokens) + kernel.us + _ALL_REDUCES_PER_LAYER * exchange
    sampled = kernel.batch + (1 if kernel.chunk else 0)
    fixed = overhead + profile.once.at(tokens) + profile.sampled.at(sampled)
    return StepPoint(
        batch=kernel.batch,
        context=kernel.context,
        chunk=kernel.chunk,
        cached=kernel.cached,
        t1_us=round(fixed + _DEPTHS[0] * layer),
        mad1_us=0,
        t2_us=round(fixed + _DEPTHS[1] * layer),
        mad2_us=0,
        repeats=profile.repeats,
    )
