"""Columns of a file as features of inputs: which are numbers, which categories, and what a row lacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.rightsizing.types import Features

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one function's inputs that say something.

    Attributes:
        numbers: Those in which every cell that is not blank is a number.
        categories: The others.
    """

    numbers: tuple[str, ...]
    categories: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], *, but: Collection[str]) -> Columns:
        """Return the columns of rows, in the order of their first appearance, without those in `but`.

        A column that is blank in every row is none.
        """
        names = dict.fromkeys(name for row in rows for name in row if name not in but)
        cells = {name: [row[name] for row in rows if not blank(row.get(name))] for name in names}
        numbers = tuple(name for name in names if cells[name] and all(map(_reads, cells[name])))
        return cls(
            numbers=tuple(
                name for name in numbers if any(number(cell) is not None for cell in cells[name])
            ),
            categories=tuple(name for name in names if cells[name] and name not in numbers),
        )

    def features(self, row: Mapping[str, Any] | None) -> Features:
        """Return an input's features; without a row, or with a number that cannot be used, one is missing."""
        if row is None:
            names = (*self.numbers, *self.categories)
            return Features(numbers=(0.0,) * len(self.numbers), missing=f"{names[0]}:absent")
        values = [number(row.get(name)) for name in self.numbers]
        absent = next(
            (name for name, value in zip(self.numbers, values, strict=True) if value is None), None
        )
        return Features(
            numbers=tuple(value or 0.0 for value in values),
            categories=tuple(sorted(f"{name}={cell(row.get(name))}" for name in self.categories)),
            missing=None if absent is None else f"{absent}:absent",
        )


def cell(value: object) -> str:
    """Return the text of a cell, without the blanks around it; a cell that is not there is blank."""
    return "" if value is None else str(value).strip()


def blank(value: object) -> bool:
    """Return whether a cell says nothing."""
    return not cell(value)


def number(value: object) -> float | None:
    """Return a number that can be a feature: finite and not negative."""
    if not _reads(value):
        return None
    found = float(cell(value))
    return found if math.isfinite(found) and found >= 0 else None


def _reads(value: object) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(cell(value))
    except ValueError:
        return False
    return True
