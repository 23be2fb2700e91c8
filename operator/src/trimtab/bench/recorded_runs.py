"""Recorded runs of functions over input, CPU, memory and machine, as the simulator wants them.

Any CSV with the columns of rethinking-serverless (EuroSys'23): function, input, memory_mib, cpu_millis,
instance_type, seconds, http_status. A run that did not answer 200 failed, for whatever reason: so floors
of memory come from successes alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from trimtab.cli.output import CommandError
from trimtab.cli.traces import read_rows
from trimtab.rightsizing.simulate import Function, Recorded
from trimtab.rightsizing.sizer import Layout
from trimtab.rightsizing.types import LEAST_MEMORY_STEP_MIB, MOST_CLASSES, Features, Ladder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

_COLUMNS: Final = (
    "function",
    "input",
    "memory_mib",
    "cpu_millis",
    "instance_type",
    "seconds",
    "http_status",
)
_SUCCESS: Final = 200
_LEAST_CLASSES: Final = 6
_REFERENCE_M: Final = 1000
_P90: Final = 0.9
SYNTHETIC: Final = "synthetic_work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One recorded run."""

    function: str
    input: str
    mem_mib: int
    cpu_m: int
    machine: str
    seconds: float
    good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Features of one input: numbers by name, and `name=value` categories."""

    numbers: Mapping[str, float]
    categories: tuple[str, ...] = ()


def read_runs(path: Path) -> list[Run]:
    """Read recorded runs.

    Raises:
        CommandError: The file or a value in it cannot be used; names line, column and remedy.
    """
    found = []
    for line, row in read_rows(path):
        where = f"{path} line {line}"
        missing = [name for name in _COLUMNS if row.get(name) is None]
        if missing:
            raise CommandError(
                f"{where} has no column {', '.join(missing)}. Name the columns {', '.join(_COLUMNS)}."
            )
        try:
            run = Run(
                function=row["function"],
                input=row["input"],
                mem_mib=int(row["memory_mib"]),
                cpu_m=int(row["cpu_millis"]),
                machine=row["instance_type"],
                seconds=float(row["seconds"]),
                good=int(row["http_status"]) == _SUCCESS,
            )
        except ValueError as error:
            raise CommandError(f"{where}: {error}. Write numbers in its number columns.") from error
        if run.cpu_m < 1 or run.mem_mib < 1 or not 0 < run.seconds < math.inf:
            raise CommandError(
                f"{where} has cpu_millis {run.cpu_m}, memory_mib {run.mem_mib} and seconds "
                f"{run.seconds}. All must be positive and finite; correct the row or remove it."
            )
        found.append(run)
    if not found:
        raise CommandError(f"{path} holds no run. Give a file with at least one row.")
    return found


def read_features(path: Path) -> dict[str, Known]:
    """Read features by input: every other column is a number, or a category if one value is no number.

    Width and height become pixels.

    Raises:
        CommandError: The file has no column `input`.
    """
    rows = [row for _, row in read_rows(path)]
    if any(row.get("input") is None for row in rows):
        raise CommandError(f"{path} has no column input. Name each row's input as the runs do.")
    columns = [name for name in (rows[0] if rows else {}) if name not in {"input", "function"}]
    numeric = [name for name in columns if all(_number(row[name]) is not None for row in rows)]
    found = {}
    for row in rows:
        numbers = {name: _number(row[name]) or 0.0 for name in numeric}
        if {"width", "height"} <= numbers.keys() and "pixels" not in numbers:
            numbers["pixels"] = numbers.pop("width") * numbers.pop("height")
        categories = tuple(f"{name}={row[name]}" for name in columns if name not in numeric)
        found[row["input"]] = Known(numbers=numbers, categories=categories)
    return found


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def machines(runs: Sequence[Run], *, family: str, classes: Sequence[int]) -> dict[int, str]:
    """Return the machine type of each class: the smallest of the family that ran it.

    Raises:
        CommandError: The family is not in the file.
    """
    ran: dict[int, set[str]] = defaultdict(set)
    for run in runs:
        if run.machine.partition(".")[0] == family:
            ran[run.cpu_m].add(run.machine)
    if not any(cpu in ran for cpu in classes):
        families = sorted({run.machine.partition(".")[0] for run in runs})
        raise CommandError(
            f"No run on machine family {family} has one of the CPU classes {', '.join(map(str, classes))}. "
            f"Choose --machine from {', '.join(families)}, or other --classes."
        )
    return {cpu: min(ran[cpu], key=lambda name: (len(name), name)) for cpu in classes if cpu in ran}


def functions(
    runs: Sequence[Run],
    *,
    family: str,
    classes: Sequence[int],
    known: Mapping[str, Known],
    synthetic: Collection[str],
) -> list[Function]:
    """Return the functions with their inputs that ran at six classes or more; deadlines are 0.

    An input without a row in the features file whose name is a number has that number as its feature.
    Functions named in `synthetic` get theirs from `with_synthetic`.

    Raises:
        CommandError: A function has no usable input, or an input no features.
    """
    at = machines(runs, family=family, classes=classes)
    cells: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    floors: dict[tuple[str, str], int] = {}
    for run in runs:
        if at.get(run.cpu_m) != run.machine:
            continue
        key = (run.function, run.input)
        times = cells[key][run.cpu_m]
        if run.good:
            times.append(run.seconds)
            floors[key] = min(floors.get(key, run.mem_mib), run.mem_mib)
    found: dict[str, list[Recorded]] = defaultdict(list)
    for (function, name), times_of in sorted(cells.items()):
        if len(times_of) < min(_LEAST_CLASSES, max(2, len(at))) or (function, name) not in floors:
            continue
        found[function].append(
            Recorded(
                name=name,
                features=Features(numbers=())
                if function in synthetic
                else _features(function, name, known),
                seconds={cpu: tuple(sorted(times)) for cpu, times in times_of.items()},
                floor_mib=floors[function, name],
            )
        )
    if not found:
        raise CommandError(
            f"No input ran at {_LEAST_CLASSES} of the CPU classes {', '.join(map(str, classes))} on "
            f"{family}. Choose other --classes or another --machine."
        )
    return [
        Function(
            name=name,
            inputs=tuple(inputs),
            ladder=_ladder(inputs, classes=tuple(sorted(at))),
            deadlines=(0.0,) * len(inputs),
        )
        for name, inputs in found.items()
    ]


def _features(function: str, name: str, known: Mapping[str, Known]) -> Features:
    found = known.get(name)
    if found is None:
        number = _number(name)
        if number is None:
            raise CommandError(
                f"Input {name} of function {function} has no features. Give it a row in --features, or "
                f"name the function in --synthetic-feature {function}."
            )
        return Features(numbers=(number,))
    return Features(numbers=tuple(found.numbers.values()), categories=found.categories)


def _ladder(inputs: Sequence[Recorded], *, classes: tuple[int, ...]) -> Ladder:
    """Return the measured CPU classes, and steps of 128 MiB, or more, up to the largest floor."""
    floor = max(recorded.floor_mib for recorded in inputs)
    step = LEAST_MEMORY_STEP_MIB
    step *= max(1, -(-floor // (step * MOST_CLASSES)))
    top = -(-floor // step) * step
    base = Ladder.of(cpu_m=(classes[-1],) * 2 + (100,), mem_mib=(step, top, step))
    return replace(base, cpu_m=classes)


def layout(function: Function, *, deadlines: bool) -> Layout:
    """Return the layout of a function's features."""
    first = function.inputs[0].features
    return Layout(
        numbers=tuple(f"number{i}" for i in range(len(first.numbers))),
        categories=any(recorded.features.categories for recorded in function.inputs),
        deadlines=deadlines,
    )


def with_synthetic(
    function: Function, *, sigma: float, split: bool, random: np.random.Generator
) -> Function:
    """Return the function with a synthetic feature: each input's logarithm of CPU seconds, plus noise.

    Args:
        function: Its inputs' own features are replaced.
        sigma: Standard deviation of the noise, drawn once per input.
        split: Spread the work at random over two features of which the bucket sees one.
        random: Draws noise and split.
    """
    logs = np.log([recorded.cpu_s for recorded in function.inputs])
    logs = logs + random.normal(0.0, sigma, size=len(logs))
    parts = random.uniform(0.2, 0.8, size=len(logs))
    found = []
    for recorded, log, part in zip(function.inputs, logs, parts, strict=True):
        numbers = (
            (1.0, 10 * math.exp(part * log), 10 * math.exp((1 - part) * log))
            if split
            else (math.exp(log),)
        )
        found.append(replace(recorded, features=Features(numbers=numbers)))
    return replace(function, inputs=tuple(found))


def with_deadlines(function: Function, *, regime: str, factor: float) -> Function:
    """Return the function with its deadlines, from times at the class nearest to 1 vCPU.

    A: factor times the input's own time; B: times the slowest input's; C: times that of the input at the 90th
    percentile, so that some cannot be met.
    """
    reference = min(function.ladder.cpu_m, key=lambda cpu: abs(cpu - _REFERENCE_M))
    own = [recorded.typical_s(reference) for recorded in function.inputs]
    if regime == "A":
        return replace(function, deadlines=tuple(factor * time for time in own))
    ranked = sorted(own)
    time = ranked[-1] if regime == "B" else ranked[math.ceil(_P90 * len(ranked)) - 1]
    return replace(function, deadlines=(factor * time,) * len(own))


def tells_memory(function: Function) -> bool:
    """Return whether the runs tell inputs apart by memory: floors differ."""
    return len({recorded.floor_mib for recorded in function.inputs}) > 1
