"""What a precision loses: perplexity of the full model on a fixed text, against the checkpoint's own.

Compression costs accuracy, and how much depends on the model, so it is measured and not looked up.
Standard library only: the measuring Job writes the document where pydantic is absent.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from trimtab.planning.fingerprint import MAX_BYTES

TEXT_DIGEST: Final = "904ca49d0015c241"
"""First 16 hex digits of the SHA-256 of the text that losses are measured on."""

_NOISE_ERRORS: Final = 2
# A guess among a million tokens costs 14 nats; e^20 in percent still has its decimals, e^50 has not.
_MOST_MICRONATS: Final = 20_000_000
_SHOWN_DECIMALS: Final = Decimal("0.001")


class AccuracyInvalidError(ValueError):
    """A document about accuracy is unusable; the message names the field and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyKey:
    """What a measured loss is valid for: change one field and it must be measured again.

    Attributes:
        model: Digest of the checkpoint's files, as an inspection names them.
        own: The checkpoint's own precision, which is compared with.
        engine: Name of the engine.
        engine_version: Its version: another release may quantise otherwise.
        text: First 16 hex digits of the SHA-256 of the text.
    """

    model: str
    own: str
    engine: str
    engine_version: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyLoss:
    """How much worse a model foretells a text at a precision than at its own.

    Attributes:
        key: What it is valid for.
        precision: Of the weights.
        tokens: How many were foretold.
        own_micronats: Mean -ln p of a token at the checkpoint's own precision, millionths.
        difference_micronats: Mean of what -ln p is more at this precision, token by token.
        error_micronats: Standard error of that mean; tokens near each other are not independent.
        agreement_permille: Tokens where both hold the same continuation likeliest.
        seconds: What measuring took, the checkpoint's own precision aside.
        taken: RFC 3339 time.
    """

    key: AccuracyKey
    precision: str
    tokens: int
    own_micronats: int
    difference_micronats: int
    error_micronats: int
    agreement_permille: int
    seconds: int = 0
    taken: str = ""

    @property
    def own_perplexity(self) -> float:
        """Perplexity at the checkpoint's own precision."""
        return math.exp(self.own_micronats / 1e6)

    @property
    def perplexity(self) -> float:
        """Perplexity at this precision."""
        return math.exp((self.own_micronats + self.difference_micronats) / 1e6)

    @property
    def percent(self) -> Decimal:
        """By how much the perplexity is higher, percent with three decimals; negative if lower."""
        return _percent(100 * math.expm1(self.difference_micronats / 1e6))

    @property
    def error_percent(self) -> Decimal:
        """Standard error of ``percent``."""
        slope = math.exp(self.difference_micronats / 1e6)
        return _percent(100 * slope * self.error_micronats / 1e6)

    @property
    def within_noise(self) -> bool:
        """Whether the text is too short to tell this loss from none: two standard errors."""
        return abs(self.difference_micronats) <= _NOISE_ERRORS * self.error_micronats

    def exceeds(self, limit_percent: str) -> bool:
        """Whether the measured loss is more than a limit; a noisy one is taken as measured."""
        return self.percent > Decimal(limit_percent)

    def described(self) -> str:
        """Return the figures as part of a sentence."""
        noise = ", within the noise of this text" if self.within_noise else ""
        return (
            f"loses {self.percent.normalize():f} % of accuracy (standard error "
            f"{self.error_percent.normalize():f} %{noise}; perplexity {self.perplexity:.4g} against "
            f"{self.own_perplexity:.4g} in {self.key.own}, {self.tokens} tokens)"
        )


def dump(losses: Sequence[AccuracyLoss]) -> str:
    """Return what one Job measured as compact JSON with sorted keys.

    Args:
        losses: Of one key, at least one; a row each.

    Raises:
        AccuracyInvalidError: The document is longer than a termination message may be.
    """
    first = losses[0]
    document = {
        "v": 1,
        "key": {
            "model": first.key.model,
            "own": first.key.own,
            "engine": first.key.engine,
            "engineVersion": first.key.engine_version,
            "text": first.key.text,
        },
        "tokens": first.tokens,
        "ownMicroNats": first.own_micronats,
        "rows": [
            {
                "precision": one.precision,
                "differenceMicroNats": one.difference_micronats,
                "errorMicroNats": one.error_micronats,
                "agreementPermille": one.agreement_permille,
                "seconds": one.seconds,
            }
            for one in losses
        ],
        "taken": first.taken,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    if len(text.encode()) > MAX_BYTES:
        raise AccuracyInvalidError(
            f"Accuracy document of {len(text.encode())} bytes exceeds {MAX_BYTES} bytes. "
            "Measure fewer precisions at once."
        )
    return text


def parse(text: str) -> tuple[AccuracyLoss, ...]:
    """Read a document; unknown fields are ignored.

    Raises:
        AccuracyInvalidError: Not JSON, another version, or a field that cannot be right.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid("document", text[:80], f"is not JSON ({error})") from error
    if not isinstance(data, Mapping) or data.get("v") != 1:
        version = data.get("v") if isinstance(data, Mapping) else data
        raise _invalid("v", version, "must be 1")
    rows = data.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(r, Mapping) for r in rows):
        raise _invalid("rows", rows, "must be a list of at least one object")
    key = _key(data.get("key"))
    losses = tuple(_loss(data, row, key) for row in rows)
    if len({loss.precision for loss in losses}) < len(losses):
        raise _invalid("rows", [loss.precision for loss in losses], "names a precision twice")
    return losses


def _loss(data: Mapping[str, Any], row: Mapping[str, Any], key: AccuracyKey) -> AccuracyLoss:
    own = _integer(data, "ownMicroNats", least=0)
    difference = _integer(row, "differenceMicroNats", least=-own)
    return AccuracyLoss(
        key=key,
        precision=_text(row, "precision"),
        tokens=_integer(data, "tokens", least=1),
        own_micronats=own,
        difference_micronats=difference,
        error_micronats=_integer(row, "errorMicroNats", least=0),
        agreement_permille=_integer(row, "agreementPermille", least=0, most=1000),
        seconds=_integer(row, "seconds", least=0),
        taken=str(data.get("taken") or ""),
    )


def _key(data: object) -> AccuracyKey:
    if not isinstance(data, Mapping):
        raise _invalid("key", data, "must be an object")
    return AccuracyKey(
        model=_text(data, "model"),
        own=_text(data, "own"),
        engine=_text(data, "engine"),
        engine_version=_text(data, "engineVersion"),
        text=_text(data, "text"),
    )


def _percent(value: float) -> Decimal:
    return Decimal(repr(value)).quantize(_SHOWN_DECIMALS)


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value:
        raise _invalid(name, value, "must be a text that is not empty")
    return value


def _integer(data: Mapping[str, Any], name: str, *, least: int, most: int = _MOST_MICRONATS) -> int:
    value = data.get(name)
    if type(value) is not int or not least <= value <= most:
        raise _invalid(name, value, f"must be an integer of {least} to {most}")
    return value


def _invalid(field: str, value: object, why: str) -> AccuracyInvalidError:
    shown = repr(value)[:120]
    return AccuracyInvalidError(
        f"Accuracy field {field} is {shown}; it {why}. Measure the accuracy again."
    )
