"""A function's model as text and back (rightsizer.md §6.10).

Any flipped byte is found, and answered by a fresh model, never by an exception.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trimtab.rightsizing import policy as policies
from trimtab.rightsizing.learner import LEVELS
from trimtab.rightsizing.selection import CANDIDATES
from trimtab.rightsizing.sizer import FunctionModel
from trimtab.rightsizing.targets import Work
from trimtab.rightsizing.types import Size, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from trimtab.rightsizing.buckets import Key
    from trimtab.rightsizing.policy import SizerPolicy
    from trimtab.rightsizing.resource import Resource
    from trimtab.rightsizing.sizer import Layout
    from trimtab.rightsizing.types import Ladder

JSON = dict[str, Any]  # any: JSON
_VERSION: Final = 1
_KEPT_BUCKETS: Final = 64
_HEAD: Final = '{"crc":"'
_NECK: Final = '","body":'
_CRC_DIGITS: Final = 8


class Fate(StrEnum):
    """What became of a checkpoint."""

    LOADED = "Loaded"
    NEW_IMAGE = "NewImage"
    """The weights are kept; the default size is used until it is confirmed."""
    OTHER_LADDER = "OtherLadder"
    """The buckets are kept; the learner begins anew."""
    OTHER_FEATURES = "OtherFeatures"
    OTHER_FUNCTION = "OtherFunction"
    CORRUPT = "Corrupt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Whose model it is.

    Attributes:
        uid: The ServerlessFunction's.
        digest: Its image's.
    """

    uid: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model, and what became of the text it was to come from."""

    model: FunctionModel
    fate: Fate


def dump(model: FunctionModel, *, origin: Origin) -> str:
    """Return the model as one line of JSON with its CRC-32 in front."""
    body = json.dumps(_body(model, origin), separators=(",", ":"), ensure_ascii=True)
    return f"{_HEAD}{_crc(body)}{_NECK}{body}}}"


def load(
    text: str,
    *,
    ladder: Ladder,
    layout: Layout,
    origin: Origin,
    few_sizes: bool = True,
    policy: SizerPolicy = policies.DEFAULT,
) -> Loaded:
    """Return the model of a checkpoint, as far as it still fits; a fresh one where it does not."""

    def fresh() -> FunctionModel:
        return FunctionModel(ladder, layout=layout, few_sizes=few_sizes, policy=policy)

    body = _checked(text)
    fate = _unusable(body, layout=layout, origin=origin)
    if body is None or fate is not None:
        return Loaded(model=fresh(), fate=fate or Fate.CORRUPT)
    model = fresh()
    same_ladder = body.get("ladder") == [list(ladder.cpu_m), list(ladder.mem_mib)]
    try:
        _restore(model, body, learner=same_ladder)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        # A CRC that holds over a body that does not: written by a build with other fields.
        return Loaded(model=fresh(), fate=Fate.CORRUPT)
    if not same_ladder:
        return Loaded(model=model, fate=Fate.OTHER_LADDER)
    if body.get("digest") != origin.digest:
        model.restart()
        return Loaded(model=model, fate=Fate.NEW_IMAGE)
    return Loaded(model=model, fate=Fate.LOADED)


def _unusable(body: JSON | None, *, layout: Layout, origin: Origin) -> Fate | None:
    """Return why nothing of a checkpoint can be used, None if something can."""
    if body is None:
        return Fate.CORRUPT
    if body.get("uid") != origin.uid:
        return Fate.OTHER_FUNCTION
    return None if body.get("layout") == _layout(layout) else Fate.OTHER_FEATURES


def _checked(text: str) -> JSON | None:
    at = len(_HEAD) + _CRC_DIGITS
    if not (text.startswith(_HEAD) and text[at:].startswith(_NECK) and text.endswith("}")):
        return None
    body = text[at + len(_NECK) : -1]
    if _crc(body) != text[len(_HEAD) : at]:
        return None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("v") == _VERSION else None


def _crc(body: str) -> str:
    return f"{zlib.crc32(body.encode(errors='surrogatepass')):0{_CRC_DIGITS}x}"


def _layout(layout: Layout) -> JSON:
    return {
        "numbers": list(layout.numbers),
        "categories": layout.categories,
        "deadlines": layout.deadlines,
    }


def _body(model: FunctionModel, origin: Origin) -> JSON:
    return {
        "v": _VERSION,
        "uid": origin.uid,
        "digest": origin.digest,
        "layout": _layout(model.layout),
        "ladder": [list(model.ladder.cpu_m), list(model.ladder.mem_mib)],
        "observations": model.observations,
        "scaler": [model.scaler.count, _text(model.scaler.mean), _text(model.scaler.square)],
        "levels": model.basis.levels,
        "cpu": _resource(model.cpu),
        "memory": _resource(model.memory),
        "works": _works(model.works),
        "gated": [int(value) for value in model.gated],
        "undersized": [int(value) for value in model.undersized],
        "sizes": [[size.cpu_m, size.mem_mib] for size in model.sizes],
        "buckets": [
            [
                list(key),
                _works(bucket.works),
                _text(np.asarray(bucket.widths)),
                _text(np.asarray(bucket.peaks)),
            ]
            for key, bucket in model.buckets.newest(_KEPT_BUCKETS)
        ],
    }


def _resource(resource: Resource) -> JSON:
    """Squares are float32: they set the pace of learning, not the decision."""
    scores = resource.scores
    return {
        "weights": _text(resource.learner.weights),
        "squares": _text(resource.learner.squares.astype(np.float32)),
        "feedbacks": resource.feedbacks,
        "count": scores.count,
        "cost": {str(name): value for name, value in scores.cost.items()},
        "under": {str(name): value for name, value in scores.under.items()},
        "clean": scores.clean,
        "rejected": resource.rejected,
        "resets": resource.resets,
    }


def _restore(model: FunctionModel, body: JSON, *, learner: bool) -> None:
    count, mean, square = body["scaler"]
    width = model.scaler.mean.shape
    model.scaler.count = _count(count)
    model.scaler.mean = _finite(_array(mean, np.float64)).reshape(width)
    model.scaler.square = _finite(_array(square, np.float64), least=0.0).reshape(width)
    model.basis.levels = _levels(body["levels"])
    model.observations = _count(body["observations"])
    model.works.extend(_unworks(body["works"]))
    for key, works, widths, peaks in body["buckets"]:
        bucket = model.buckets.ensure(_key(key))
        bucket.works.extend(_unworks(works))
        bucket.widths.extend(_at_least(_array(widths, np.float64), 1.0).tolist())
        bucket.peaks.extend(_finite(_array(peaks, np.float64), least=0.0).tolist())
    for resource, saved in ((model.cpu, body["cpu"]), (model.memory, body["memory"])):
        resource.feedbacks = _count(saved["feedbacks"])
        if learner:
            _restore_resource(resource, saved)
    if learner:
        model.gated.extend(bool(value) for value in body["gated"])
        model.undersized.extend(bool(value) for value in body["undersized"])
        sizes = tuple(_size(cpu, mem, ladder=model.ladder) for cpu, mem in body["sizes"])
        model.sizes = sizes if model.few_sizes else ()


def _restore_resource(resource: Resource, saved: JSON) -> None:
    shape = resource.learner.weights.shape
    squares = _array(saved["squares"], np.float32).astype(np.float64)
    if not (squares > 0).all():
        raise ValueError("A sum of squared gradients is not positive: learning would divide by it.")
    resource.learner.weights = _finite(_array(saved["weights"], np.float64)).reshape(shape)
    resource.learner.squares = _finite(squares).reshape(shape)
    resource.scores.count = float(_finite(np.asarray(float(saved["count"])), least=0.0))
    resource.scores.cost = _scores(saved["cost"])
    resource.scores.under = _scores(saved["under"])
    resource.scores.clean = _count(saved["clean"])
    resource.rejected, resource.resets = _count(saved["rejected"]), _count(saved["resets"])


def _count(value: Any) -> int:  # any: JSON
    found = int(value)
    if found < 0:
        raise ValueError(f"{found} is no count.")
    return found


def _finite(array: NDArray[np.float64], *, least: float = -np.inf) -> NDArray[np.float64]:
    if not np.isfinite(array).all():
        raise ValueError("A number is not finite.")
    return _at_least(array, least)


def _at_least(array: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Return the array; a width may be infinite, where a run took no time that could be told."""
    if not (array >= least).all():
        raise ValueError(f"A number is not at least {least}.")
    return array


def _levels(names: Any) -> list[str]:  # any: JSON
    """Return the categories; one more than there are places would be looked up beyond the weights."""
    if not isinstance(names, list) or len(names) >= LEVELS:
        raise ValueError("The categories are no list of fewer than their places.")
    return [str(name) for name in names]


def _key(parts: Any) -> Key:  # any: JSON
    if not isinstance(parts, list) or not all(isinstance(part, int | str) for part in parts):
        raise ValueError("A bucket's key is no list of numbers and names.")
    return tuple(parts)


def _size(cpu_m: Any, mem_mib: Any, *, ladder: Ladder) -> Size:  # any: JSON
    if not (isinstance(cpu_m, int) and isinstance(mem_mib, int)):
        raise TypeError("A size in use is no pair of whole numbers.")
    if cpu_m not in ladder.cpu_m or mem_mib not in ladder.mem_mib:
        raise ValueError("A size in use is none of the ladder's.")
    return Size(cpu_m, mem_mib)


def _scores(saved: JSON) -> dict[Source, float]:
    found = {Source(name): float(value) for name, value in saved.items()}
    if found.keys() != set(CANDIDATES):
        raise ValueError("Not every candidate has a score.")
    _finite(np.asarray(list(found.values())), least=0.0)
    return found


def _works(works: Iterable[Work]) -> str:
    return _text(np.asarray([(w.cpu_s, w.idle_s, w.width) for w in works]))


def _unworks(text: str) -> list[Work]:
    array = _array(text, np.float64).reshape(-1, 3)
    _finite(array[:, :2], least=0.0)
    _at_least(array[:, 2], 1.0)
    rows: Sequence[Sequence[float]] = array.tolist()
    return [Work(cpu_s=cpu, idle_s=idle, width=width) for cpu, idle, width in rows]


def _text(array: NDArray[Any]) -> str:  # any: float32 or float64
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _array(text: str, kind: type[np.floating[Any]]) -> NDArray[Any]:  # any: as `kind` says
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=kind).copy()
