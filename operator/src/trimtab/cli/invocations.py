"""Recorded invocations of a user's own function, as `trimtab functions replay` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab.cli.columns import Columns, number
from trimtab.cli.output import CommandError
from trimtab.cli.traces import read_rows
from trimtab.rightsizing.types import Outcome, PeakKind, Size, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trimtab.rightsizing.types import Features

_NEEDED: Final = ("cpu_seconds", "wall_seconds", "peak_memory_mib", "cpu_millis", "memory_mib")
_OPTIONAL: Final = ("throttled_seconds", "status")
_THROTTLED_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One recorded invocation."""

    features: Features
    usage: Usage
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A file of invocations in its order.

    Attributes:
        numbers: Names of its numeric features; the first two make the bucket.
        categories: Whether it has categories.
        invocations: At least one.
    """

    numbers: tuple[str, ...]
    categories: bool
    invocations: tuple[Invocation, ...]


def read_invocations(path: Path) -> Recording:
    """Read a CSV or JSON lines file with a row per invocation.

    Every column beyond cpu_seconds, wall_seconds, peak_memory_mib, cpu_millis, memory_mib,
    throttled_seconds and status is a feature: a number, or a category if one value is no number. A row
    whose number is blank, not finite or negative lacks that feature.

    Raises:
        CommandError: The file or a value in it cannot be used; names line, column and remedy.
    """
    rows = read_rows(path)
    if not rows:
        raise CommandError(f"{path} holds no invocation. Give a file with at least one row.")
    columns = Columns.of([row for _, row in rows], but=(*_NEEDED, *_OPTIONAL))
    if not (columns.numbers or columns.categories):
        raise CommandError(
            f"{path} has no column beyond {', '.join(_NEEDED)}. Add what is known of each input before it "
            "runs, such as its bytes."
        )
    return Recording(
        numbers=columns.numbers,
        categories=bool(columns.categories),
        invocations=tuple(
            _invocation(row, columns=columns, where=f"{path} line {line}") for line, row in rows
        ),
    )


def _invocation(
    row: Mapping[str, Any],  # any: CSV or JSON
    *,
    columns: Columns,
    where: str,
) -> Invocation:
    values = {name: _positive(row.get(name), name, where=where) for name in _NEEDED}
    cpu_s, wall_s, peak, cpu_m, mem = (values[name] for name in _NEEDED)
    if min(wall_s, cpu_m, mem) <= 0:
        raise CommandError(
            f"{where}: wall_seconds, cpu_millis and memory_mib are {wall_s}, {cpu_m} and {mem}. All must be "
            "above 0."
        )
    told = row.get("throttled_seconds")
    held = (
        # Without the cgroup's figure: work that fills nine tenths of its quota was held back.
        wall_s * (cpu_s / (cpu_m / 1000) >= _THROTTLED_SHARE * wall_s)
        if told in (None, "")
        else _positive(told, "throttled_seconds", where=where)
    )
    status = row.get("status")
    return Invocation(
        features=columns.features(row),
        usage=Usage(
            cpu_s=cpu_s,
            wall_s=wall_s,
            throttled_s=held,
            periods_throttled=int(held > 0),
            peak_anon_mib=peak,
            peak_kind=PeakKind.RESET,
            oom=False,
            alloc=Size(round(cpu_m), round(mem)),
        ),
        outcome=Outcome(
            status=200 if status in (None, "") else round(_positive(status, "status", where=where))
        ),
    )


def _positive(value: object, name: str, *, where: str) -> float:
    found = number(value)
    if found is None:
        raise CommandError(
            f"{where}: {name} is {value!r}. Write a finite number that is not negative."
        )
    return found
