"""How long one engine step takes: fixed part F and layer part h from two depths (planner.md §4, §5).

T = F(s, x) + L·h(x, W, B, K). At both depths of a fingerprint h = (T₂ - T₁)/d and F = T₁ - h.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from trimtab.planning.curves import (
    Curve,
    Surface,
    isotonic,
    rising_curve,
    rising_surface,
    slope,
)
from trimtab.planning.fingerprint import Fingerprint, FingerprintInvalidError, StepPoint

# 1.253 (median of normals) · √2 (two depths) · 1.4826 (MAD to standard deviation): planner.md §4.
_SE_PER_MAD: Final = 1.253 * math.sqrt(2) * 1.4826
_FALL_LIMIT: Final = 0.10
# A line through three contexts evens out noise; with more of them the attention's own bends show
# (KV that falls out of a cache), and a line through all would be set by the longest.
_LINE_CONTEXTS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What one step computes.

    Attributes:
        tokens: x, new tokens of all sequences.
        sampled: s, sequences that get a token.
        work: W, sum of chunk·(cached + chunk/2) over prefilled chunks.
        batch: B, decoding sequences.
        kv_tokens: K, their KV tokens.
    """

    tokens: float
    sampled: float
    work: float = 0.0
    batch: float = 0.0
    kv_tokens: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerModel:
    """h of one kind of layer, in µs, and how many layers are of that kind.

    h = lin(x) + sequences(B) + p₁·W + kv(B)·K/B. ``sequences`` holds what decoding costs beyond
    the same number of prompt tokens (attention is called per sequence on a CPU); ``kv`` is the
    cost of one token of mean context for the whole batch. Both rise with B, so that a step never
    gets cheaper by one more sequence of the same context.

    Attributes:
        decode: Replaces ``sequences`` and ``kv`` where many contexts were measured: over (B, K/B).
        mixed: What decoding costs more beside a prompt's chunk, over (B, K/B), by the chunk's
            tokens: attention kernels that take both at once read the KV cache less well.
    """

    layers: int
    lin: Curve
    sequences: Curve
    prefill_us_per_work: float
    kv: Curve
    decode: Surface | None = None
    mixed: tuple[tuple[float, Surface], ...] = ()

    def layer_us(self, work: StepWork) -> float:
        """Return the time of one layer."""
        prompt = self.lin.at(work.tokens) + self.prefill_us_per_work * work.work
        if work.batch <= 0:
            return prompt
        context = work.kv_tokens / work.batch
        return (
            prompt
            + self.decode_us(work.batch, context)
            + self.mixed_us(work.tokens - work.batch, work.batch, context)
        )

    def decode_us(self, batch: float, context: float) -> float:
        """Return what ``batch`` sequences of a mean context cost beyond their tokens."""
        if self.decode is not None:
            return self.decode.at(batch, context)
        return self.sequences.at(batch) + self.kv.at(batch) * context

    def contexts(self) -> tuple[float, ...]:
        """Return the mean contexts between which the time of a decode step is a straight line."""
        return self.decode.ys if self.decode is not None else (0.0, 1.0)

    def mixed_us(self, chunk: float, batch: float, context: float) -> float:
        """Return what decoding costs more beside a chunk of a prompt."""
        if chunk <= 0 or not self.mixed:
            return 0.0
        low = high = self.mixed[0]
        for high in self.mixed:
            if high[0] >= chunk:
                break
            low = high
        below = low[1].at(batch, context)
        # Beyond the largest chunk and before the smallest one it is taken to stay as it is.
        if high is low:
            return below
        share = (chunk - low[0]) / (high[0] - low[0])
        return below + (high[1].at(batch, context) - below) * share


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """Step time of a full model, with what is known about its quality.

    Attributes:
        fixed: f(s), µs, over sampled sequences.
        fixed_us_per_token: e, per token that is not sampled.
        kinds: One per kind of layer.
        residual: Root mean square of (fitted - measured)/measured full-depth time over the grid.
        mixed_error: The same, signed, of the mixed points; None without any.
        standard_error: Largest relative SE of the full-depth time over the grid.
        grid: Largest (tokens, batch, context) measured.
        correction: From live replicas, ln(factor) over log₂ B; None if there is none (§7).
    """

    fixed: Curve
    fixed_us_per_token: float
    kinds: tuple[LayerModel, ...]
    residual: float
    mixed_error: float | None
    standard_error: float
    grid: tuple[int, int, int]
    correction: Curve | None = None

    def step_us(self, work: StepWork) -> float:
        """Return the time of one step, µs."""
        plain = self.fixed_us(work) + sum(k.layers * k.layer_us(work) for k in self.kinds)
        return plain * self.factor(work.batch)

    def factor(self, batch: float) -> float:
        """Return what live replicas correct the time of a step by."""
        if self.correction is None:
            return 1.0
        return math.exp(self.correction.at(math.log2(max(1.0, batch))))

    def fixed_us(self, work: StepWork) -> float:
        """Return the part that does not depend on depth, µs; never corrected."""
        others = max(0.0, work.tokens - work.sampled)
        return self.fixed.at(work.sampled) + self.fixed_us_per_token * others

    def contexts(self) -> tuple[float, ...]:
        """Return the mean contexts between which the time of a decode-only step is a straight line."""
        return tuple(sorted({c for kind in self.kinds for c in kind.contexts()}))

    def extrapolates(self, work: StepWork) -> bool:
        """Tell whether the step lies outside the measured grid."""
        context = work.kv_tokens / work.batch if work.batch > 0 else 0.0
        tokens, batch, longest = self.grid
        # Twice the longest context is still a straight line: K enters linearly.
        return work.tokens > tokens or work.batch > batch or context > 2 * longest


def fit(fingerprint: Fingerprint, *, depth: int) -> StepModel:
    """Fit the step model of a model with ``depth`` equal layers.

    Raises:
        FingerprintInvalidError: The layer time is negative beyond noise, or time falls by more
            than 10 % as the load grows.
    """
    _check(fingerprint)
    d = fingerprint.depths[1] - fingerprint.depths[0]
    shallow = fingerprint.depths[0]
    decode = [_Split.of(p, d=d, shallow=shallow) for p in fingerprint.decode]
    prefill = [_Split.of(p, d=d, shallow=shallow) for p in fingerprint.prefill]
    mixed = [_Split.of(p, d=d, shallow=shallow) for p in fingerprint.mixed]
    layer = _layer(decode, prefill, mixed, depth=depth)
    fixed = rising_curve([(float(s.point.batch), s.fixed) for s in decode])
    extra = [(s.point.chunk - 1, s.fixed - fixed.at(1.0)) for s in prefill if s.point.chunk > 1]
    per_token = (
        max(0.0, sum(x * y for x, y in extra) / sum(x * x for x, _ in extra)) if extra else 0.0
    )
    model = StepModel(
        fixed=fixed,
        fixed_us_per_token=per_token,
        kinds=(layer,),
        residual=0.0,
        mixed_error=None,
        standard_error=max(s.standard_error(depth) for s in (*decode, *prefill)),
        grid=(
            max(p.tokens for p in (*fingerprint.decode, *fingerprint.prefill, *fingerprint.mixed)),
            max(p.batch for p in fingerprint.decode),
            max(p.context for p in fingerprint.decode),
        ),
    )
    errors = [_error(model, s, depth) for s in (*decode, *prefill)]
    beside = [_error(model, s, depth) for s in mixed]
    return StepModel(
        fixed=model.fixed,
        fixed_us_per_token=model.fixed_us_per_token,
        kinds=model.kinds,
        residual=math.sqrt(statistics.fmean(e * e for e in errors)),
        mixed_error=statistics.fmean(beside) if beside else None,
        standard_error=model.standard_error,
        grid=model.grid,
    )


def work_of(point: StepPoint) -> StepWork:
    """Return the work of a grid point; its chunk is the last of its prompt, so it is sampled."""
    return StepWork(
        tokens=point.tokens,
        sampled=point.batch + (1 if point.chunk else 0),
        work=point.chunk * (point.cached + point.chunk / 2),
        batch=point.batch,
        kv_tokens=point.batch * point.context,
    )


@dataclass(frozen=True, slots=True)
class _Split:
    """A point's fixed and layer time, and the SE of the layer time, µs."""

    point: StepPoint
    fixed: float
    layer: float
    layer_se: float

    @classmethod
    def of(cls, point: StepPoint, *, d: int, shallow: int) -> "_Split":
        layer = (point.t2_us - point.t1_us) / d
        mad = math.hypot(point.mad1_us, point.mad2_us) / math.sqrt(2)
        error = _SE_PER_MAD * mad / (d * math.sqrt(point.repeats))
        clamped = max(0.0, layer)
        return cls(point, max(0.0, point.t1_us - shallow * clamped), clamped, error)

    def full(self, depth: int) -> float:
        return self.fixed + depth * self.layer

    def standard_error(self, depth: int) -> float:
        return (depth - 1) * self.layer_se / max(1.0, self.full(depth))


def _layer(
    decode: Sequence[_Split], prefill: Sequence[_Split], mixed: Sequence[_Split], *, depth: int
) -> LayerModel:
    intercepts, kv = _decode_lines(decode)
    per_work = _prefill_slope(prefill)
    chunks = rising_curve(
        [
            (float(s.point.chunk), max(0.0, s.layer - per_work * work_of(s.point).work))
            for s in prefill
        ]
    )
    # What a decode intercept has above the tokens' own cost is the cost of its sequences.
    floor = chunks.ys[0]
    bent = len({s.point.context for s in decode}) > _LINE_CONTEXTS
    small = _shortest(decode) if bent else intercepts
    lin_points = [(x, min(y, floor)) for x, y in small if x < chunks.xs[0]]
    lin_points += list(zip(chunks.xs, chunks.ys, strict=True))
    lin = Curve(tuple(x for x, _ in lin_points), tuple(y for _, y in lin_points))
    above = isotonic([max(0.0, y - lin.at(x)) for x, y in intercepts])
    line = LayerModel(
        layers=depth,
        lin=lin,
        sequences=Curve(tuple(x for x, _ in intercepts), tuple(above)),
        prefill_us_per_work=per_work,
        kv=kv,
    )
    alone = replace(line, decode=_decode_surface(decode, lin=lin)) if bent else line
    return replace(alone, mixed=_mixed_surfaces(mixed, alone=alone))


def _shortest(decode: Sequence[_Split]) -> list[tuple[float, float]]:
    """Return per batch the time at the shortest context, rising: hardly more than its tokens cost."""
    least: dict[int, _Split] = {}
    for split in sorted(decode, key=lambda s: -s.point.context):
        least[split.point.batch] = split
    batches = sorted(least)
    times = isotonic([least[batch].layer for batch in batches])
    return list(zip(map(float, batches), times, strict=True))


def _decode_surface(decode: Sequence[_Split], *, lin: Curve) -> Surface:
    """Return what decoding costs beyond its tokens, through every measured context."""
    return rising_surface(
        [
            (
                float(s.point.batch),
                float(s.point.context),
                max(0.0, s.layer - lin.at(float(s.point.batch))),
            )
            for s in decode
        ]
    )


def _mixed_surfaces(
    mixed: Sequence[_Split], *, alone: LayerModel
) -> tuple[tuple[float, Surface], ...]:
    """Return what mixed steps take beyond decode and chunk alone, by chunk; empty if not measured.

    A few mixed points check the model; a grid of them over batches and contexts is part of it. Of
    each chunk the prompts with the fewest cached tokens count, as most prompts are one chunk.
    """
    by_chunk: dict[int, list[_Split]] = {}
    for split in mixed:
        by_chunk.setdefault(split.point.chunk, []).append(split)
    first = min((s.point.context for s in mixed), default=0)
    surfaces: list[tuple[float, Surface]] = []
    for chunk, found in sorted(by_chunk.items()):
        fewest = min(s.point.cached for s in found)
        group = [s for s in found if s.point.cached == fewest]
        batches, contexts = {s.point.batch for s in group}, {s.point.context for s in group}
        # A chunk without short contexts would hide what others say of them.
        if min(len(batches), len(contexts)) < 2 or min(contexts) > first:
            continue
        points = [
            (
                float(s.point.batch),
                float(s.point.context),
                max(0.0, s.layer - alone.layer_us(work_of(s.point))),
            )
            for s in group
        ]
        surfaces.append((float(chunk), rising_surface(points)))
    return _rising_in_chunks(surfaces)


def _rising_in_chunks(
    surfaces: Sequence[tuple[float, Surface]],
) -> tuple[tuple[float, Surface], ...]:
    """Return the nearest surfaces that do not fall from one chunk to a larger one."""
    if not surfaces:
        return ()
    xs = sorted({x for _, surface in surfaces for x in surface.xs})
    ys = sorted({y for _, surface in surfaces for y in surface.ys})
    columns = {
        (x, y): isotonic([surface.at(x, y) for _, surface in surfaces]) for x in xs for y in ys
    }
    return tuple(
        (
            chunk,
            Surface(
                tuple(xs),
                tuple(ys),
                tuple(tuple(columns[x, y][number] for y in ys) for x in xs),
            ),
        )
        for number, (chunk, _) in enumerate(surfaces)
    )


def _decode_lines(decode: Sequence[_Split]) -> tuple[list[tuple[float, float]], Curve]:
    """Return per batch the time at no context (rising), and the cost of one token of context."""
    by_batch: dict[int, list[_Split]] = {}
    for split in decode:
        by_batch.setdefault(split.point.batch, []).append(split)
    batches = sorted(by_batch)
    slopes: list[float] = []
    for batch in batches:
        points = [(float(s.point.context), s.layer) for s in by_batch[batch]]
        slopes.append(max(0.0, slope(points) or 0.0))
    slopes = isotonic(slopes)
    intercepts = isotonic(
        [
            max(0.0, statistics.fmean(s.layer - g * s.point.context for s in by_batch[batch]))
            for batch, g in zip(batches, slopes, strict=True)
        ]
    )
    xs = [float(b) for b in batches]
    return list(zip(xs, intercepts, strict=True)), Curve((0.0, *xs), (0.0, *slopes))


def _prefill_slope(prefill: Sequence[_Split]) -> float:
    """Return p₁ from chunks of one size after different prefixes; µs per unit of work."""
    by_chunk: dict[int, list[_Split]] = {}
    for split in prefill:
        by_chunk.setdefault(split.point.chunk, []).append(split)
    top = bottom = 0.0
    for group in by_chunk.values():
        works = [work_of(s.point).work for s in group]
        mean_w = statistics.fmean(works)
        mean_h = statistics.fmean(s.layer for s in group)
        top += sum((w - mean_w) * (s.layer - mean_h) for w, s in zip(works, group, strict=True))
        bottom += sum((w - mean_w) ** 2 for w in works)
    return max(0.0, top / bottom) if bottom > 0 else 0.0


def _error(model: StepModel, split: _Split, depth: int) -> float:
    truth = max(1.0, split.full(depth))
    return (model.step_us(work_of(split.point)) - truth) / truth


def _check(fingerprint: Fingerprint) -> None:
    d = fingerprint.depths[1] - fingerprint.depths[0]
    for point in (*fingerprint.decode, *fingerprint.prefill, *fingerprint.mixed):
        split = _Split.of(point, d=d, shallow=fingerprint.depths[0])
        if (point.t2_us - point.t1_us) / d < -3 * split.layer_se:
            raise FingerprintInvalidError(
                f"Fingerprint {fingerprint.key.digest()}: the model of depth "
                f"{fingerprint.depths[1]} took {point.t2_us} µs, less than the {point.t1_us} µs of "
                f"depth {fingerprint.depths[0]} (batch {point.batch}, context {point.context}, "
                f"chunk {point.chunk}). Measure it again on an idle machine."
            )
    for smaller in (*fingerprint.decode, *fingerprint.prefill):
        for larger in (*fingerprint.decode, *fingerprint.prefill):
            if not _grows(smaller, larger):
                continue
            noise = 3 * 1.253 * 1.4826 * (smaller.mad2_us + larger.mad2_us)
            noise /= math.sqrt(min(smaller.repeats, larger.repeats))
            floor = (1 - _FALL_LIMIT) * smaller.t2_us - noise
            if larger.t2_us < floor:
                raise FingerprintInvalidError(
                    f"Fingerprint {fingerprint.key.digest()}: time falls from {smaller.t2_us} to "
                    f"{larger.t2_us} µs from (batch {smaller.batch}, context {smaller.context}, "
                    f"chunk {smaller.chunk}) to the larger (batch {larger.batch}, context "
                    f"{larger.context}, chunk {larger.chunk}). Measure it again on an idle machine."
                )


def _grows(smaller: StepPoint, larger: StepPoint) -> bool:
    if bool(smaller.chunk) != bool(larger.chunk):
        return False
    return (
        larger.batch >= smaller.batch
        and larger.context >= smaller.context
        and larger.chunk >= smaller.chunk
        and larger.cached >= smaller.cached
        and smaller != larger
    )
