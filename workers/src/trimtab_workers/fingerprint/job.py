"""What a fingerprint Job does: specification in, document out."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from trimtab.planning.architecture import (
    Architecture,
    UnsupportedArchitectureError,
    architecture_hash,
)
from trimtab.planning.fingerprint import (
    Fingerprint,
    FingerprintKey,
    MemoryPoint,
    Note,
    StepPoint,
)
from trimtab.planning.precision import compute_precision
from trimtab_workers.engine.capabilities import CAPABILITIES, ENGINE_VERSION
from trimtab_workers.fingerprint import machine
from trimtab_workers.fingerprint.grid import GridError, GridPoint, grid_of
from trimtab_workers.fingerprint.measure import DISTANCES, measure
from trimtab_workers.fingerprint.truncate import truncated

if TYPE_CHECKING:
    from collections.abc import Callable

ENGINE = "trimtab"
_DEFAULT_SECONDS = 120
_MEMORY_CHUNK = 512
# Computing per thread and second below which others used the same threads.
_CONTENDED_SHARE = 0.8


class SpecificationError(ValueError):
    """The Job's specification cannot be measured; ``reason`` is for its message."""

    reason = "InvalidSpecification"


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """Contracts §4, checked."""

    architecture: Architecture
    precision: str
    threads: int
    tensor_parallel_size: int
    points: tuple[GridPoint, ...]
    max_seconds: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``TRIMTAB_FINGERPRINT_SPEC``.

        Raises:
            SpecificationError: Names the field, its value and what is possible.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise SpecificationError(
                f"TRIMTAB_FINGERPRINT_SPEC is not JSON ({error}). Set it to a specification."
            ) from error
        if not isinstance(data, Mapping) or data.get("v") != 1:
            raise SpecificationError(
                "TRIMTAB_FINGERPRINT_SPEC has no field v of 1. Use operator and worker of one release."
            )
        _require(data, "precision", CAPABILITIES.precisions)
        _require(data, "kvPrecision", (compute_precision(str(data["precision"])),))
        _require(data, "product", ("cpu",))
        _require(data, "tensorParallelSize", CAPABILITIES.tensor_parallel_sizes)
        ranks = int(data["tensorParallelSize"])
        threads = _positive(data, "threads", 1)
        if threads % ranks:
            raise SpecificationError(
                f"Fingerprint specification's threads is {threads}, which its tensorParallelSize of "
                f"{ranks} does not divide. Give a multiple of {ranks}."
            )
        try:
            architecture = Architecture.from_dict(data.get("architecture") or {})
            points = grid_of(data.get("grid", "cpu"))
        except (UnsupportedArchitectureError, GridError) as error:
            raise SpecificationError(str(error)) from error
        return cls(
            architecture=architecture,
            precision=str(data["precision"]),
            threads=threads,
            tensor_parallel_size=ranks,
            points=points,
            max_seconds=_positive(data, "maxSeconds", _DEFAULT_SECONDS),
        )


def fingerprint(spec: Specification, *, clock: Callable[[], float] = time.monotonic) -> Fingerprint:
    """Measure a specification in this process and return its document."""
    from trimtab_workers.fingerprint.bench import EngineBench  # noqa: PLC0415 - torch

    began, computed = clock(), time.process_time()

    def bench(depth: int, points: tuple[GridPoint, ...], *, cold: bool) -> EngineBench:
        return EngineBench(
            truncated(spec.architecture, depth=depth, points=spec.points),
            dtype=spec.precision,
            threads=spec.threads,
            tensor_parallel_size=spec.tensor_parallel_size,
            points=points,
            cache_bytes=machine.cache_bytes() if cold else 0,
        )

    largest = GridPoint(chunk=min(_MEMORY_CHUNK, max(p.chunk for p in spec.points)))
    memory = []
    for depth in (1, 2):
        small = bench(depth, (largest,), cold=False)
        row = small.memory_row(chunk=largest.chunk)
        small.close()
        del small
        memory.append(MemoryPoint(**dict(zip(_MEMORY, (*row, 0), strict=True))))
        gc.collect()
        machine.log("memory_measured", depth=depth, activation=row[2], non_torch=row[3])
    deep = bench(1 + DISTANCES[-1], spec.points, cold=True)
    measured = measure(
        deep,
        spec.points,
        seconds=max(1.0, spec.max_seconds - (clock() - began)),
        clock=clock,
        progress=lambda done, of, error: machine.log(
            "fingerprint_progress", points=done, of=of, relative_error=round(error, 4)
        ),
    )
    deep.close()
    seconds = clock() - began
    share = (time.process_time() - computed) / max(1e-9, seconds * spec.threads)
    notes: tuple[Note, ...] = measured.notes
    # Ranks wait for each other on an idle machine too: their share says nothing about others.
    if share < _CONTENDED_SHARE and spec.tensor_parallel_size == 1:
        notes = (*notes, "Contended")
    machine.log(
        "fingerprint_measured",
        seconds=round(seconds, 1),
        distance=measured.distance,
        relative_error=round(measured.worst_error, 4),
        cpu_share=round(share, 2),
        notes=list(notes),
    )
    return Fingerprint(
        key=key_of(spec),
        source="Measured",
        depths=(1, 1 + measured.distance),
        decode=_of_kind(measured.points, spec.points, "decode"),
        prefill=_of_kind(measured.points, spec.points, "prefill"),
        mixed=_of_kind(measured.points, spec.points, "mixed"),
        memory=tuple(memory),
        notes=notes,
        device_seconds=round(seconds * spec.threads),
        taken=machine.now(),
    )


def key_of(spec: Specification) -> FingerprintKey:
    """Return the key on this machine: its own CPU model, whatever was asked for."""
    return FingerprintKey(
        architecture=architecture_hash(spec.architecture),
        product="cpu",
        cpu_model=machine.cpu_model(),
        threads=spec.threads,
        precision=spec.precision,
        kv_precision=compute_precision(spec.precision),
        tensor_parallel_size=spec.tensor_parallel_size,
        engine=ENGINE,
        engine_version=ENGINE_VERSION,
    )


_MEMORY = ("depth", "weights", "activation", "non_torch", "graphs")


def _of_kind(
    measured: tuple[StepPoint, ...], points: tuple[GridPoint, ...], kind: str
) -> tuple[StepPoint, ...]:
    pairs = zip(measured, points, strict=True)
    return tuple(step for step, point in pairs if point.kind == kind)


def _require(data: Mapping[str, Any], name: str, allowed: tuple[object, ...]) -> None:
    if data.get(name) not in allowed:
        raise SpecificationError(
            f"Fingerprint specification's {name} is {data.get(name)!r}; this engine measures "
            f"{', '.join(str(a) for a in allowed)}. Ask for one of these."
        )


def _positive(data: Mapping[str, Any], name: str, default: int) -> int:
    value = data.get(name, default)
    if type(value) is not int or value < 1:
        raise SpecificationError(
            f"Fingerprint specification's {name} is {value!r}. Give an integer of at least 1."
        )
    return value
