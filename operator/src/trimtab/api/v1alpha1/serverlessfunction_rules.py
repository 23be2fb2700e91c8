"""Rules across the fields of a `ServerlessFunction`, and quantities as numbers."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final, Literal

from trimtab.api.v1alpha1.base import Rule

if TYPE_CHECKING:
    from trimtab.api.v1alpha1.serverlessfunction import CPULadder, MemoryLadder


_SUFFIXES: Final = {
    "m": Decimal("0.001"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
}


def amount(quantity: int | str) -> Decimal:
    """Return a quantity as a number: cores or bytes.

    Raises:
        decimal.InvalidOperation: The text is no quantity.
    """
    text = str(quantity)
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        if text.endswith(suffix):
            return Decimal(text.removesuffix(suffix)) * _SUFFIXES[suffix]
    return Decimal(text)


def _ladder_in_order(ladder: CPULadder | MemoryLadder) -> bool:
    return 0 < amount(ladder.min) <= amount(ladder.max)


def _default_inside(ladder: CPULadder | MemoryLadder) -> bool:
    return ladder.default is None or (
        amount(ladder.min) <= amount(ladder.default) <= amount(ladder.max)
    )


def _rungs(ladder: CPULadder | MemoryLadder, *, least_step: str) -> bool:
    step = amount(ladder.step if ladder.step is not None else least_step)
    if step < amount(least_step):
        return False
    return amount(ladder.max) - amount(ladder.min) <= step * 31


def _order_rule(resource: Literal["cpu", "memory"]) -> Rule:
    at = f"self.resources.{resource}"
    return Rule(
        expression=(
            f"quantity(string({at}.min)).isGreaterThan(quantity('0')) && "
            f"quantity(string({at}.min)).compareTo(quantity(string({at}.max))) <= 0"
        ),
        message=f"spec.resources.{resource}.min must be above 0 and must not exceed its max",
        reason="FieldValueInvalid",
        field_path=f".resources.{resource}.min",
        holds=lambda spec: _ladder_in_order(getattr(spec.resources, resource)),
    )


def _default_rule(resource: Literal["cpu", "memory"]) -> Rule:
    at = f"self.resources.{resource}"
    return Rule(
        expression=(
            f"!has({at}.default) || "
            f"(quantity(string({at}.min)).compareTo(quantity(string({at}.default))) <= 0 && "
            f"quantity(string({at}.default)).compareTo(quantity(string({at}.max))) <= 0)"
        ),
        message=f"spec.resources.{resource}.default must lie between its min and its max",
        reason="FieldValueInvalid",
        field_path=f".resources.{resource}.default",
        holds=lambda spec: _default_inside(getattr(spec.resources, resource)),
    )


def _rungs_rule(resource: Literal["cpu", "memory"], *, least_step: str) -> Rule:
    at = f"self.resources.{resource}"
    step = f"(has({at}.step) ? quantity(string({at}.step)) : quantity('{least_step}'))"
    span = f"quantity(string({at}.max)).sub(quantity(string({at}.min)))"
    return Rule(
        expression=(
            f"{step}.compareTo(quantity('{least_step}')) >= 0 && "
            f"{span}.asApproximateFloat() <= 31.0 * {step}.asApproximateFloat()"
        ),
        message=(
            f"spec.resources.{resource}.step must be at least {least_step} and must give at most 32 "
            "sizes from min to max: raise it, or bring min and max closer"
        ),
        reason="FieldValueInvalid",
        field_path=f".resources.{resource}.step",
        holds=lambda spec: _rungs(getattr(spec.resources, resource), least_step=least_step),
    )


_KEYED: Final = frozenset({"Header", "Query", "JSONPointer"})

FUNCTION_RULES: Final = (
    Rule(
        expression="has(self.image) != has(self.source)",
        message="spec needs exactly one of image and source",
        reason="FieldValueInvalid",
        field_path=".image",
        holds=lambda spec: (spec.image is None) != (spec.source is None),
    ),
    Rule(
        expression="!has(self.signature) || has(self.source)",
        message="spec.signature is only allowed with spec.source: an image serves HTTP by itself",
        reason="FieldValueForbidden",
        field_path=".signature",
        holds=lambda spec: spec.signature is None or spec.source is not None,
    ),
    Rule(
        expression=(
            "self.deadlineMilliseconds <= "
            "(has(self.timeoutMilliseconds) ? self.timeoutMilliseconds : 300000)"
        ),
        message=(
            "spec.deadlineMilliseconds must not exceed spec.timeoutMilliseconds (300000 if not given)"
        ),
        reason="FieldValueInvalid",
        field_path=".deadlineMilliseconds",
        holds=lambda spec: (
            spec.deadline_milliseconds
            <= (300_000 if spec.timeout_milliseconds is None else spec.timeout_milliseconds)
        ),
    ),
    _order_rule("cpu"),
    _order_rule("memory"),
    _default_rule("cpu"),
    _default_rule("memory"),
    _rungs_rule("cpu", least_step="100m"),
    _rungs_rule("memory", least_step="128Mi"),
    Rule(
        expression=(
            "!has(self.features) || self.features.all(f, "
            "has(f.key) == (f.from in ['Header', 'Query', 'JSONPointer']))"
        ),
        message=(
            "an entry of spec.features needs a key where from is Header, Query or JSONPointer, and "
            "must have none where it is Size or ContentType"
        ),
        reason="FieldValueInvalid",
        field_path=".features",
        holds=lambda spec: all(
            (feature.key is not None) == (feature.from_ in _KEYED) for feature in spec.features
        ),
    ),
)
