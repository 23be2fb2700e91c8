"""Kubernetes quantities, as far as `resourceFieldRef` needs them."""

from __future__ import annotations

import decimal
from decimal import Decimal

_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10) ** 3, "M": Decimal(10) ** 6, "G": Decimal(10) ** 9, "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15, "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10, "Mi": Decimal(2) ** 20, "Gi": Decimal(2) ** 30, "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50, "Ei": Decimal(2) ** 60,
}  # fmt: skip


class QuantityError(ValueError):
    """A text is not a Kubernetes quantity."""


def parse(text: str) -> Decimal:
    """Return the value of a quantity such as `500m`, `1.5Gi` or `2e3`.

    Raises:
        QuantityError: The text is none; names it.
    """
    number = text.rstrip("numkKMGTPEi") if not text.endswith(tuple("0123456789")) else text
    suffix = text[len(number) :]
    try:
        return Decimal(number) * _SUFFIXES[suffix]
    except (decimal.InvalidOperation, KeyError) as error:
        raise QuantityError(f"{text!r} is not a quantity; write for example 500m or 1Gi") from error


def in_units(text: str, *, divisor: str) -> str:
    """Return how many times `divisor` fits into the quantity, rounded up, as the downward API does."""
    unit = parse(divisor) or Decimal(1)
    count = parse(text) / unit
    return str(int(count.to_integral_value(rounding=decimal.ROUND_CEILING)))
