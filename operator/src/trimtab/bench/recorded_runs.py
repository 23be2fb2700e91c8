"""Recorded runs of functions over input, CPU, memory and machine, as the simulator wants them.

Any CSV with the columns of rethinking-serverless (EuroSys'23): function, input, memory_mib, cpu_millis,
instance_type, seconds, http_status. A run that did not answer 200 failed, for whatever reason: so floors
of memory come from successes alone.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from trimtab.cli.columns import Columns, cell, number
from trimtab.cli.output import CommandError
from trimtab.cli.traces import read_rows
from trimtab.rightsizing.simulate import Function, Recorded
from trimtab.rightsizing.sizer import Layout
from trimtab.rightsizing.types import LEAST_MEMORY_STEP_MIB, MOST_CLASSES, Features, Ladder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from trimtab.bench.report import JSON
    from trimtab.cli.traces import Row

_COLUMNS: Final = (
    "function",
    "input",
    "memory_mib",
    "cpu_millis",
    "instance_type",
    "seconds",
    "http_status",
)
_MAY_BE_BLANK: Final = frozenset({"seconds", "http_status"})
_SUCCESS: Final = 200
_LEAST_CLASSES: Final = 6
_TRAILING_NUMBER: Final = re.compile(r"-\d+$")
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


def read_runs(path: Path) -> list[Run]:
    """Read recorded runs.

    Raises:
        CommandError: The file or a value in it cannot be used; names line, column and remedy.
    """
    found = []
    for line, row in read_rows(path):
        where = f"{path} line {line}"
        missing = [
            name
            for name in _COLUMNS
            if name not in row or (row[name] is None and name not in _MAY_BE_BLANK)
        ]
        if missing:
            raise CommandError(
                f"{where} has no column {', '.join(missing)}. Name the columns {', '.join(_COLUMNS)}."
            )
        found.append(_run(row, where=where))
    if not found:
        raise CommandError(f"{path} holds no run. Give a file with at least one row.")
    return found


def _run(row: Row, *, where: str) -> Run:
    status = cell(row["http_status"])
    good = bool(status) and _whole(status, "http_status", where=where) == _SUCCESS
    run = Run(
        function=cell(row["function"]),
        input=cell(row["input"]),
        mem_mib=_whole(row["memory_mib"], "memory_mib", where=where),
        cpu_m=_whole(row["cpu_millis"], "cpu_millis", where=where),
        machine=cell(row["instance_type"]),
        seconds=_seconds(row["seconds"], where=where) if good else math.nan,
        good=good,
    )
    if run.cpu_m < 1 or run.mem_mib < 1 or (good and not 0 < run.seconds < math.inf):
        raise CommandError(
            f"{where} has cpu_millis {run.cpu_m}, memory_mib {run.mem_mib} and seconds "
            f"{run.seconds}. All must be positive and finite; correct the row or remove it."
        )
    return run


def _whole(value: object, name: str, *, where: str) -> int:
    text = cell(value)
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not found.is_integer():
        raise CommandError(f"{where}: {name} is {text!r}, which is no whole number. Correct it.")
    return int(found)


def _seconds(value: object, *, where: str) -> float:
    try:
        return float(cell(value))
    except ValueError as error:
        raise CommandError(
            f"{where}: seconds is {cell(value)!r}, which is no number. Write the seconds of a run that "
            "answered 200."
        ) from error


def read_features(path: Path) -> dict[tuple[str, str], Row]:
    """Read the rows of features by function and input; without a column `function`, by ("", input).

    Raises:
        CommandError: The file has no column `input`.
    """
    rows = [row for _, row in read_rows(path)]
    if any(row.get("input") is None for row in rows):
        raise CommandError(f"{path} has no column input. Name each row's input as the runs do.")
    return {(cell(row.get("function")), cell(row["input"])): row for row in rows}


def family_of(machine: str) -> str:
    """Return the family of a machine type: m5 of m5.large, n2-standard of n2-standard-2."""
    name, dot, _ = machine.partition(".")
    return name if dot else _TRAILING_NUMBER.sub("", name)


def _of_family(machine: str, family: str) -> bool:
    return family in {family_of(machine), machine}


def usual_family(runs: Sequence[Run], *, wanted: str) -> str:
    """Return the wanted family if it is in the file, else the one with the most cells that succeeded."""
    cells: dict[str, set[tuple[str, str, int]]] = defaultdict(set)
    for run in runs:
        found = cells[family_of(run.machine)]
        if run.good:
            found.add((run.function, run.input, run.cpu_m))
    return wanted if wanted in cells else max(sorted(cells), key=lambda name: len(cells[name]))


def usual_classes(runs: Sequence[Run], *, family: str, wanted: Sequence[int]) -> list[int]:
    """Return the wanted classes if six of them ran on the family, else all that ran on it.

    Raises:
        CommandError: More classes ran than can be learned apart.
    """
    ran = {run.cpu_m for run in runs if _of_family(run.machine, family)}
    if len(ran.intersection(wanted)) >= _LEAST_CLASSES or not ran:
        return list(wanted)
    if len(ran) > MOST_CLASSES:
        raise CommandError(
            f"The runs on {family} have {len(ran)} CPU classes; at most {MOST_CLASSES} are learned apart. "
            "Name some in --classes."
        )
    return sorted(ran)


def machines(runs: Sequence[Run], *, family: str, classes: Sequence[int]) -> dict[int, str]:
    """Return the machine type of each class: the smallest of the family that ran it.

    Raises:
        CommandError: The family is not in the file.
    """
    ran: dict[int, set[str]] = defaultdict(set)
    for run in runs:
        if _of_family(run.machine, family):
            ran[run.cpu_m].add(run.machine)
    if not any(cpu in ran for cpu in classes):
        families = sorted({family_of(run.machine) for run in runs})
        raise CommandError(
            f"No run on machine family {family} has one of the CPU classes {', '.join(map(str, classes))}. "
            f"Choose --machine from {', '.join(families)}, or other --classes."
        )
    return {cpu: _smallest(ran[cpu]) for cpu in classes if cpu in ran}


def _smallest(types: Collection[str]) -> str:
    return min(types, key=lambda name: (len(name), name))


def left_out(
    runs: Sequence[Run], functions: Sequence[Function], *, family: str, classes: Sequence[int]
) -> list[JSON]:
    """Return the inputs of the file that are in no function, and why."""
    kept = {(function.name, one.name) for function in functions for one in function.inputs}
    tried: dict[tuple[str, str], set[int]] = defaultdict(set)
    good: set[tuple[str, str]] = set()
    for run in runs:
        key = (run.function, run.input)
        tried.setdefault(key, set())
        if _of_family(run.machine, family) and run.cpu_m in classes:
            tried[key].add(run.cpu_m)
            if run.good:
                good.add(key)
    return [
        {
            "function": key[0],
            "input": key[1],
            "why": f"ran at {len(tried[key])} of {len(classes)} classes on {family}"
            + ("" if key in good else ", never with success"),
        }
        for key in sorted(tried.keys() - kept)
    ]


def functions(
    runs: Sequence[Run],
    *,
    family: str,
    classes: Sequence[int],
    known: Mapping[tuple[str, str], Row],
    synthetic: Collection[str],
) -> list[Function]:
    """Return the functions with their inputs that ran at six classes or more; deadlines are 0.

    A function of which no input has a row in the features file has its inputs' names as features, where
    they are numbers; otherwise an input without a row lacks its features. Functions named in `synthetic` get theirs from `with_synthetic`.

    Raises:
        CommandError: A function has no usable input, or an input no features.
    """
    at = machines(runs, family=family, classes=classes)
    types: dict[tuple[str, int], set[str]] = defaultdict(set)
    for run in runs:
        if run.cpu_m in at and _of_family(run.machine, family):
            types[run.function, run.cpu_m].add(run.machine)
    smallest = {key: _smallest(names) for key, names in types.items()}
    cells: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    floors: dict[tuple[str, str], int] = {}
    for run in runs:
        if smallest.get((run.function, run.cpu_m)) != run.machine:
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
                features=Features(numbers=()),
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
            inputs=tuple(inputs if name in synthetic else _with_features(name, inputs, known)),
            ladder=_ladder(inputs, classes=tuple(sorted(at))),
            deadlines=(0.0,) * len(inputs),
        )
        for name, inputs in found.items()
    ]


def _with_features(
    function: str, inputs: Sequence[Recorded], known: Mapping[tuple[str, str], Row]
) -> list[Recorded]:
    """Return a function's inputs with their features; what is a number is decided over them alone.

    Width and height become pixels.
    """
    rows = {one.name: known.get((function, one.name), known.get(("", one.name))) for one in inputs}
    columns = Columns.of([row for row in rows.values() if row], but=("input", "function"))
    if not (columns.numbers or columns.categories):
        return [replace(one, features=_by_name(function, one.name)) for one in inputs]
    return [
        replace(one, features=_with_pixels(columns, columns.features(rows[one.name])))
        for one in inputs
    ]


def _with_pixels(columns: Columns, features: Features) -> Features:
    named = dict(zip(columns.numbers, features.numbers, strict=True))
    if {"width", "height"} <= named.keys() and "pixels" not in named:
        named["pixels"] = named.pop("width") * named.pop("height")
    return replace(features, numbers=tuple(named.values()))


def _by_name(function: str, name: str) -> Features:
    found = number(name)
    if found is None:
        raise CommandError(
            f"Input {name} of function {function} has no features. Give it a row in --features, or "
            f"name the function in --synthetic-feature {function}."
        )
    return Features(numbers=(found,))


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
    """Return the function with its deadlines, from times at the class nearest to 1 vCPU that ever succeeded.

    A: factor times the input's own time; B: times the slowest input's; C: times that of the input at the 90th
    percentile, so that some cannot be met.
    """
    nearest = sorted(function.ladder.cpu_m, key=lambda cpu: abs(cpu - _REFERENCE_M))
    own = [
        recorded.typical_s(next(filter(recorded.ran, nearest), nearest[0]))
        for recorded in function.inputs
    ]
    if regime == "A":
        return replace(function, deadlines=tuple(factor * time for time in own))
    ranked = sorted(own)
    time = ranked[-1] if regime == "B" else ranked[math.ceil(_P90 * len(ranked)) - 1]
    return replace(function, deadlines=(factor * time,) * len(own))


def tells_memory(function: Function) -> bool:
    """Return whether the runs tell inputs apart by memory: floors differ."""
    return len({recorded.floor_mib for recorded in function.inputs}) > 1
