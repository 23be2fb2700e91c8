"""Step models of many configurations side by side: one call times a step of each.

`StepModel.step_us` times one step of one model. A plan asks for thousands, so this is the same arithmetic,
operation by operation, over arrays; a test holds the two together.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtab.planning.curves import Curve, Surface
from trimtab.planning.step_model import LayerModel, StepModel

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]
Kind = TypeVar("Kind", bound=np.generic)

_ZERO: Final = Curve((0.0,), (0.0,))
_NONE: Final = LayerModel(layers=0, lin=_ZERO, sequences=_ZERO, prefill_us_per_work=0.0, kv=_ZERO)


def totals(table: Floats) -> Floats:
    """Return the sum of every row, added up in order: so it does not hang on how wide the table is."""
    last: Floats = np.cumsum(table, axis=1)[:, -1]
    return last


def pick(table: NDArray[Kind], columns: Ints) -> NDArray[Kind]:
    """Return of every row the values in its columns."""
    return table[np.arange(len(table))[:, None], columns]


class StepModels:
    """Several step models, asked together.

    ``which`` says by number whose step is meant. It, batches and tokens are arrays that broadcast.
    """

    def __init__(self, models: Sequence[StepModel]) -> None:
        self.fixed = _Curves([model.fixed for model in models])
        self.fixed_us_per_token = np.array([model.fixed_us_per_token for model in models])
        most = max(len(model.kinds) for model in models)
        self.kinds = [
            _Kinds([m.kinds[n] if n < len(m.kinds) else _NONE for m in models]) for n in range(most)
        ]
        corrections = [model.correction for model in models]
        # The factor of a model without one is e^0, exactly 1.
        self._corrections = (
            _Curves([_ZERO if one is None else one for one in corrections])
            if any(one is not None for one in corrections)
            else None
        )
        self._grids = np.array([model.grid for model in models], dtype=float).T

    def decode_us(self, which: Ints, batch: Floats, *, context: Floats) -> Floats:
        """Return the time of a step that decodes ``batch`` sequences; 0 where there is none."""
        steps = Beside(self, which, batch, context=context, sampled=batch)
        return np.where(batch > 0, steps.step_us(batch, np.zeros(1)), 0.0)

    def extrapolates(self, which: Ints, *, tokens: Floats, batch: Floats, context: Floats) -> Bools:
        """Tell which steps lie outside the grid that their model was measured on."""
        most_tokens, most_batch, longest = (figures[which] for figures in self._grids)
        seen = batch * context / batch
        outside: Bools = (tokens > most_tokens) | (batch > most_batch) | (seen > 2 * longest)
        return outside

    def corrections(self, which: Ints, batch: Floats) -> Floats | None:
        """Return the factors that live replicas ask for; None where none do."""
        if self._corrections is None:
            return None
        factors: Floats = np.exp(self._corrections.at(which, np.log2(np.maximum(1.0, batch))))
        return factors


class Beside:
    """Steps that decode the same sequences, whatever part of a prompt is computed beside them."""

    __slots__ = (
        "_batch",
        "_context",
        "_decoding",
        "_factors",
        "_fixed",
        "_models",
        "_sampled",
        "_which",
    )

    def __init__(
        self, models: StepModels, which: Ints, batch: Floats, *, context: Floats, sampled: Floats
    ) -> None:
        self._models, self._which, self._batch, self._sampled = models, which, batch, sampled
        # The mean context as a step's own figures give it, K/B, so that not a bit differs.
        self._context = batch * context / np.where(batch > 0, batch, 1.0)
        self._fixed = models.fixed.at(which, sampled)
        self._decoding = [kind.decoding_us(which, batch, self._context) for kind in models.kinds]
        self._factors = models.corrections(which, batch)

    def step_us(self, tokens: Floats, work: Floats) -> Floats:
        """Return the time of steps of ``tokens``, decodes included, and ``work`` of prompts."""
        models, which = self._models, self._which
        others = np.maximum(0.0, tokens - self._sampled)
        layers: Floats = np.zeros(1)
        for kind, decoding in zip(models.kinds, self._decoding, strict=True):
            one = kind.lin.at(which, tokens) + kind.us_per_work[which] * work + decoding
            if kind.mixed:
                one = one + kind.mixed_us(which, tokens - self._batch, self._batch, self._context)
            layers = layers + kind.layers[which] * one
        plain: Floats = self._fixed + models.fixed_us_per_token[which] * others + layers
        return plain if self._factors is None else plain * self._factors


class _Kinds:
    """One kind of layer of every model."""

    def __init__(self, kinds: Sequence[LayerModel]) -> None:
        self.layers = np.array([float(kind.layers) for kind in kinds])
        self.lin = _Curves([kind.lin for kind in kinds])
        self.us_per_work = np.array([kind.prefill_us_per_work for kind in kinds])
        self._sequences = _Curves([kind.sequences for kind in kinds])
        self._kv = _Curves([kind.kv for kind in kinds])
        # Surfaces come with imported profiles, of which a plan has few: one model after the other.
        self._surfaces = [
            (number, kind.decode) for number, kind in enumerate(kinds) if kind.decode is not None
        ]
        self.mixed = [(number, kind.mixed) for number, kind in enumerate(kinds) if kind.mixed]

    def decoding_us(self, which: Ints, batch: Floats, context: Floats) -> Floats:
        """Return what sequences cost beyond their tokens; 0 where there is none."""
        line = self._sequences.at(which, batch) + self._kv.at(which, batch) * context
        if self._surfaces:
            which, batch, context = np.broadcast_arrays(which, batch, context)
            for number, surface in self._surfaces:
                mine = which == number
                line[mine] = _on(surface, batch[mine], context[mine])
        return np.where(batch > 0, line, 0.0)

    def mixed_us(self, which: Ints, chunk: Floats, batch: Floats, context: Floats) -> Floats:
        """Return what decoding costs more beside a chunk; 0 where either is missing."""
        which, chunk, batch, context = np.broadcast_arrays(which, chunk, batch, context)
        found = np.zeros(chunk.shape)
        for number, surfaces in self.mixed:
            mine = (which == number) & (batch > 0) & (chunk > 0)
            knots = np.array([size for size, _ in surfaces])
            values = np.stack([_on(one, batch[mine], context[mine]) for _, one in surfaces])
            low, high, share = _between(knots, np.minimum(chunk[mine], knots[-1]))
            places = np.arange(share.size)
            below = values[low, places]
            found[mine] = below + (values[high, places] - below) * share
        return found


class _Curves:
    """One `Curve` per model, padded to equal numbers of knots."""

    __slots__ = ("_columns", "_first", "_knots", "_last", "_rise", "_run", "_xs", "_ys")

    def __init__(self, curves: Sequence[Curve]) -> None:
        # A single knot is a constant: so are two with equal values.
        padded = [c if len(c.xs) > 1 else Curve((c.xs[0], c.xs[0] + 1), c.ys * 2) for c in curves]
        self._last = np.array([len(curve.xs) - 1 for curve in padded])
        width = int(self._last.max()) + 1
        self._knots = np.full((len(padded), width), np.inf)
        ys = np.zeros((len(padded), width))
        for row, curve in enumerate(padded):
            self._knots[row, : len(curve.xs)] = curve.xs
            ys[row, : len(curve.ys)] = curve.ys
        with np.errstate(invalid="ignore"):  # between two pads, where nobody asks
            self._run = np.diff(self._knots, axis=1, prepend=0.0).ravel()
        self._columns = np.ascontiguousarray(self._knots.T)
        self._rise = np.diff(ys, axis=1, prepend=0.0).ravel()
        self._first, self._xs, self._ys = self._knots[:, 0], self._knots.ravel(), ys.ravel()

    def at(self, which: Ints, x: Floats) -> Floats:
        """Return every curve's value at its ``x``, as `Curve.at` does."""
        x = np.maximum(x, self._first[which])
        # Knot by knot: an array per knot is shorter work than a short sum per value.
        right = np.zeros(np.broadcast_shapes(which.shape, x.shape), dtype=np.intp)
        for knot in self._columns:
            right += knot[which] < x
        right = np.minimum(np.maximum(right, 1), self._last[which])
        place = which * self._knots.shape[1] + right
        left = place - 1
        value: Floats = self._ys[left] + self._rise[place] * (x - self._xs[left]) / self._run[place]
        return value


def _on(surface: Surface, x: Floats, y: Floats) -> Floats:
    """Return a surface's values, as `Surface.at` does."""
    rows = np.array(surface.rows)
    low, high, part = _between(np.array(surface.xs), x)
    left, right, share = _between(np.array(surface.ys), y)
    below = rows[low, left] + (rows[low, right] - rows[low, left]) * share
    above = rows[high, left] + (rows[high, right] - rows[high, left]) * share
    value: Floats = below + (above - below) * part
    return value


def _between(knots: Floats, x: Floats) -> tuple[Ints, Ints, Floats]:
    """Return the two knots around ``x`` and how far it is from the first to the second."""
    if len(knots) == 1:
        nowhere = np.zeros(x.shape, dtype=np.intp)
        return nowhere, nowhere, np.zeros(x.shape)
    right = np.clip(np.searchsorted(knots, x), 1, len(knots) - 1)
    left = right - 1
    share = (np.maximum(x, knots[0]) - knots[left]) / (knots[right] - knots[left])
    return left, right, share
