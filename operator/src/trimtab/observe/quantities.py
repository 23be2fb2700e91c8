"""Kubernetes quantities as integers, so that `1000m` and `1` are equal."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Final

_PATTERN: Final = re.compile(r"^([+-]?[0-9.]+)(e[+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$")
_FACTORS: Final = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
} | {f"{letter}i": Decimal(1024 ** (n + 1)) for n, letter in enumerate("KMGTPE")}


class QuantityError(ValueError):
    """A text is no Kubernetes quantity."""


def quantity(text: str | float) -> Decimal:
    """Return the value of a quantity such as `100m`, `1.5`, `2Gi` or `1e3`.

    Raises:
        QuantityError: Names the text.
    """
    found = _PATTERN.match(str(text))
    if found is None:
        raise QuantityError(f"{text!r} is no Kubernetes quantity; write 100m, 1.5 or 2Gi.")
    number, suffix = found.group(1), found.group(2) or ""
    if suffix.startswith("e"):
        return Decimal(number + suffix)
    return Decimal(number) * _FACTORS[suffix]


def millicores(text: str | float) -> int:
    """Return CPU in thousandths of a core, rounded up."""
    return int((quantity(text) * 1000).to_integral_value(ROUND_CEILING))


def byte_count(text: str | float) -> int:
    """Return memory in bytes, rounded up."""
    return int(quantity(text).to_integral_value(ROUND_CEILING))
