"""How far the GPUs that a replica gets are from the median GPU that was measured (planner.md §5).

Compute scores scale the work of prompts, memory scores the rest; what a score cannot be trusted for
is 1000 per mille, so without scores nothing changes. All-reduces are part of a layer's time and are
scaled with it, unless the group is of one GPU, which has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trimtab.placement.choose import expected_max, group_factor
from trimtab.planning.curves import Curve, Surface
from trimtab.planning.slots import Nodes
from trimtab.planning.snapshot import Config, DeviceScore
from trimtab.planning.step_model import LayerModel, StepModel

_MEDIAN = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """Factors on the step times of the median GPU, per mille: of prompts' work and of the rest."""

    compute_permille: int = _MEDIAN
    memory_permille: int = _MEDIAN


NONE = Slowdown()


def slowdown(config: Config, scores: Sequence[DeviceScore], *, nodes: Nodes = ()) -> Slowdown:
    """Return how much slower a tensor-parallel group is than one of median GPUs.

    Args:
        config: How a replica runs: its product and the size of its groups.
        scores: Of the fleet's GPUs.
        nodes: Where its replicas run; empty before places are chosen, when a group of any of the
            product's GPUs is expected. The slowest replica counts.
    """
    size = config.tensor_parallel_size
    mine = [score for score in scores if score.product == config.product]
    places = [[s for s in mine if s.node == node] for node, _ in nodes] if nodes else [mine]
    known = [place for place in places if len(place) >= size]
    if not known:
        return NONE
    return Slowdown(
        compute_permille=max(_factor([s.compute_permille for s in p], size) for p in known),
        memory_permille=max(_factor([s.memory_permille for s in p], size) for p in known),
    )


def slowed(model: StepModel, slow: Slowdown) -> StepModel:
    """Return a step model of slower GPUs; the same one where nothing is known."""
    if slow == NONE:
        return model
    compute, memory = slow.compute_permille / _MEDIAN, slow.memory_permille / _MEDIAN
    batches = float(model.grid[1])
    return replace(
        model,
        fixed=_times(model.fixed, memory),
        fixed_us_per_token=model.fixed_us_per_token * compute,
        kinds=tuple(_layer(k, batches, compute=compute, memory=memory) for k in model.kinds),
    )


def _factor(scores: Sequence[int], size: int) -> int:
    """Return a group's factor; of a whole node's group it is known which GPUs it has."""
    if len(scores) == size:
        return group_factor(scores)
    return round(expected_max(scores, size))


def _layer(kind: LayerModel, batches: float, *, compute: float, memory: float) -> LayerModel:
    return replace(
        kind,
        lin=_bent(kind.lin, batches, compute=compute, memory=memory),
        sequences=_times(kind.sequences, memory),
        prefill_us_per_work=kind.prefill_us_per_work * compute,
        kv=_times(kind.kv, memory),
        decode=None if kind.decode is None else _surface(kind.decode, memory),
        mixed=tuple((chunk, _surface(one, memory)) for chunk, one in kind.mixed),
    )


def _bent(lin: Curve, batches: float, *, compute: float, memory: float) -> Curve:
    """Return the time of a step's tokens: bound by memory up to the decode batches, then by compute."""
    base = lin.at(batches)
    xs = sorted({*lin.xs, batches})
    ys = [
        lin.at(x) * memory if x <= batches else base * memory + (lin.at(x) - base) * compute
        for x in xs
    ]
    return Curve(tuple(xs), tuple(ys))


def _times(curve: Curve, factor: float) -> Curve:
    return Curve(curve.xs, tuple(y * factor for y in curve.ys))


def _surface(surface: Surface, factor: float) -> Surface:
    rows = tuple(tuple(value * factor for value in row) for row in surface.rows)
    return Surface(surface.xs, surface.ys, rows)
