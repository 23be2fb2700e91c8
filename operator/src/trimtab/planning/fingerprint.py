"""The fingerprint document: how long 1- and (1+d)-layer models take, measured in the engine.

Standard library only: the measuring Job writes it where pydantic is absent.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeGuard, get_args

MAX_BYTES: Final = 4096
"""A Job returns its document as termination message, which the kubelet cuts at this length."""

Source = Literal["Measured", "Catalogue", "Roofline"]
TpMode = Literal["Real", "Emulated"]
Note = Literal["Contended", "Unidentifiable", "TimeLimit"]


class FingerprintInvalidError(ValueError):
    """A fingerprint document is unusable; the message names the field and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FingerprintKey:
    """What a fingerprint is valid for: change one field and it must be measured again.

    Attributes:
        architecture: ``architecture_hash`` of the model.
        layer_kind: Kind of hidden layer that was repeated; ``full`` where all layers are alike.
        product: Normalised product name; ``cpu`` is a product.
        cpu_model: CPU model name, empty for GPUs.
        threads: Threads per replica, 0 for GPUs.
        precision: Of the weights.
        kv_precision: Of the KV cache.
        tensor_parallel_size: GPUs per group.
        engine: Name of the engine.
        engine_version: Its version: drift moves TPOT by tens of percent.
        flags: Attention backend, graphs, token budget, in sorted order.
    """

    architecture: str
    layer_kind: str = "full"
    product: str
    cpu_model: str = ""
    threads: int = 0
    precision: str
    kv_precision: str
    tensor_parallel_size: int = 1
    engine: str = "trimtab"
    engine_version: str
    flags: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the document's ``key`` object."""
        return {
            "architecture": self.architecture,
            "layerKind": self.layer_kind,
            "product": self.product,
            "cpuModel": self.cpu_model,
            "threads": self.threads,
            "precision": self.precision,
            "kvPrecision": self.kv_precision,
            "tensorParallelSize": self.tensor_parallel_size,
            "engine": self.engine,
            "engineVersion": self.engine_version,
            "flags": list(self.flags),
        }

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Read the document's ``key`` object; unknown fields are ignored.

        Raises:
            FingerprintInvalidError: A field is missing or of the wrong type.
        """
        if not isinstance(data, Mapping):
            raise _invalid("key", data, "must be an object")
        return cls(
            architecture=_text(data, "architecture"),
            layer_kind=_text(data, "layerKind"),
            product=_text(data, "product"),
            cpu_model=_text(data, "cpuModel"),
            threads=_count(data, "threads"),
            precision=_text(data, "precision"),
            kv_precision=_text(data, "kvPrecision"),
            tensor_parallel_size=_count(data, "tensorParallelSize"),
            engine=_text(data, "engine"),
            engine_version=_text(data, "engineVersion"),
            flags=tuple(sorted(str(flag) for flag in data.get("flags") or ())),
        )

    def digest(self) -> str:
        """Return 16 hex digits that name the fingerprint's objects (``fp-<digest>``)."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """One grid point at both depths: medians and median absolute deviations in µs.

    A decode point has ``batch`` sequences of ``context`` tokens each and no chunk. A prefill point
    has a ``chunk`` of new tokens after ``cached`` ones and no batch. A mixed point has both.
    """

    batch: int = 0
    context: int = 0
    chunk: int = 0
    cached: int = 0
    t1_us: int
    mad1_us: int
    t2_us: int
    mad2_us: int
    repeats: int

    @property
    def tokens(self) -> int:
        """Tokens computed in the step."""
        return self.batch + self.chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPoint:
    """Bytes held by a model of ``depth`` layers, loaded alone."""

    depth: int
    weights: int
    activation: int
    non_torch: int
    graphs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Step times of a model with ``depths`` layers over a grid, and where they come from.

    Attributes:
        key: What it is valid for.
        source: ``Measured``, ``Catalogue`` or ``Roofline``.
        tp_mode: Whether a tensor-parallel group was real or emulated on one device.
        depths: The two depths, 1 and 1+d.
        decode: Points with a batch only.
        prefill: Points with a chunk only.
        mixed: Points with both, to check the model built from the others.
        memory: One row per depth.
        collective: All-reduce curve, (bytes, µs), that emulated times already contain.
        notes: What lowers the confidence.
        device_seconds: Devices * seconds that measuring took.
        taken: RFC 3339 time, empty for derived documents.
    """

    key: FingerprintKey
    source: Source
    tp_mode: TpMode = "Real"
    depths: tuple[int, int]
    decode: tuple[StepPoint, ...]
    prefill: tuple[StepPoint, ...]
    mixed: tuple[StepPoint, ...] = ()
    memory: tuple[MemoryPoint, ...] = ()
    collective: tuple[tuple[int, int], ...] = ()
    notes: tuple[Note, ...] = ()
    device_seconds: int = 0
    taken: str = ""


def dump(fingerprint: Fingerprint, *, limit: int | None = MAX_BYTES) -> str:
    """Return the document as compact JSON with sorted keys.

    Args:
        fingerprint: What to write.
        limit: Most bytes allowed; None for imported and derived fingerprints, which keep their
            whole grid.

    Raises:
        FingerprintInvalidError: The document is longer than the limit.
    """
    document = {
        "v": 1,
        "key": fingerprint.key.to_dict(),
        "source": fingerprint.source,
        "tpMode": fingerprint.tp_mode,
        "depths": list(fingerprint.depths),
        "decode": [[p.batch, p.context, *_times(p)] for p in fingerprint.decode],
        "prefill": [[p.chunk, p.cached, *_times(p)] for p in fingerprint.prefill],
        "mixed": [[p.chunk, p.cached, p.batch, p.context, *_times(p)] for p in fingerprint.mixed],
        "memory": [list(dataclasses.astuple(row)) for row in fingerprint.memory],
        "collective": [list(row) for row in fingerprint.collective],
        "notes": list(fingerprint.notes),
        "gpuSeconds": fingerprint.device_seconds,
        "taken": fingerprint.taken,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    if limit is not None and len(text.encode()) > limit:
        raise FingerprintInvalidError(
            f"Fingerprint document of {len(text.encode())} bytes exceeds {limit} bytes. "
            "Use a smaller grid."
        )
    return text


def parse(text: str) -> Fingerprint:
    """Read a document; unknown fields are ignored.

    Raises:
        FingerprintInvalidError: Not JSON, another version, or a field that cannot be right. The
            previous fingerprint must then be kept.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid("document", text[:80], f"is not JSON ({error})") from error
    if not isinstance(data, Mapping) or data.get("v") != 1:
        version = data.get("v") if isinstance(data, Mapping) else data
        raise _invalid("v", version, "must be 1")
    depths = data.get("depths")
    if not _is_ints(depths, 2) or not 1 <= depths[0] < depths[1]:
        raise _invalid("depths", depths, "must be two rising positive integers")
    fingerprint = Fingerprint(
        key=FingerprintKey.from_dict(data.get("key")),
        source=_choice(data, "source", get_args(Source)),
        tp_mode=_choice(data, "tpMode", get_args(TpMode)),
        depths=(depths[0], depths[1]),
        decode=tuple(_points(data, "decode", ("batch", "context"))),
        prefill=tuple(_points(data, "prefill", ("chunk", "cached"))),
        mixed=tuple(_points(data, "mixed", ("chunk", "cached", "batch", "context"))),
        memory=tuple(
            MemoryPoint(**dict(zip(_MEMORY, r, strict=True))) for r in _rows(data, "memory", 5)
        ),
        collective=tuple((r[0], r[1]) for r in _rows(data, "collective", 2)),
        notes=tuple(n for n in data.get("notes") or () if n in get_args(Note)),
        device_seconds=_count(data, "gpuSeconds"),
        taken=str(data.get("taken") or ""),
    )
    if not fingerprint.decode or not fingerprint.prefill:
        raise _invalid("decode and prefill", [], "must each hold at least one point")
    return fingerprint


_MEMORY: Final = ("depth", "weights", "activation", "non_torch", "graphs")
_TIMES: Final = ("t1_us", "mad1_us", "t2_us", "mad2_us", "repeats")


def _times(point: StepPoint) -> tuple[int, ...]:
    return (point.t1_us, point.mad1_us, point.t2_us, point.mad2_us, point.repeats)


def _points(data: Mapping[str, Any], name: str, axes: tuple[str, ...]) -> Iterable[StepPoint]:
    fields = (*axes, *_TIMES)
    for row in _rows(data, name, len(fields)):
        point = StepPoint(**dict(zip(fields, row, strict=True)))
        if point.tokens < 1 or point.t1_us < 1 or point.t2_us < 1 or point.repeats < 1:
            raise _invalid(name, row, "must hold positive tokens, times and repeats")
        yield point


def _rows(data: Mapping[str, Any], name: str, width: int) -> list[list[int]]:
    rows = data.get(name) or []
    if not isinstance(rows, list) or not all(_is_ints(row, width) for row in rows):
        raise _invalid(name, rows, f"must be a list of rows of {width} integers")
    return rows


def _is_ints(row: object, width: int) -> TypeGuard[list[int]]:
    return isinstance(row, list) and len(row) == width and all(type(v) is int for v in row)


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise _invalid(f"key.{name}", value, "must be a string")
    return value


def _count(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name, 0)
    if type(value) is not int or value < 0:
        raise _invalid(name, value, "must be a non-negative integer")
    return value


def _choice(data: Mapping[str, Any], name: str, allowed: tuple[Any, ...]) -> Any:
    value = data.get(name)
    if value not in allowed:
        raise _invalid(name, value, f"must be one of {', '.join(allowed)}")
    return value


def _invalid(field: str, value: object, why: str) -> FingerprintInvalidError:
    shown = repr(value)[:120]
    return FingerprintInvalidError(
        f"Fingerprint field {field} is {shown}; it {why}. Measure the fingerprint again."
    )
