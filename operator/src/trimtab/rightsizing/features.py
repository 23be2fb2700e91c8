"""What is known about an input before it runs (rightsizer.md §6.1), within a budget of time.

Whatever cannot be had leads to the default size, never to an error.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trimtab.rightsizing import headers as media
from trimtab.rightsizing.sizer import Layout
from trimtab.rightsizing.types import Features

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_SIZE: Final = "Size"
_MEDIA: Final = "ContentType"
_HEADER: Final = "Header"
_QUERY: Final = "Query"
_POINTER: Final = "JSONPointer"
ORIGINS: Final = (_SIZE, _MEDIA, _HEADER, _QUERY, _POINTER)
_WHOLE_BYTES: Final = 2**20
_LONGEST_TEXT: Final = 64
_LENGTH: Final = "length"
_MEDIUM: Final = "medium"

Value = float | str


class FeatureError(ValueError):
    """A declared feature cannot be compiled; the message names feature, field and remedy."""


class _MissingError(Exception):
    """The value cannot be had; the argument says why in one word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """One declared feature.

    Attributes:
        name: As explanations call it.
        origin: Size, ContentType (pixels, seconds or lines by the medium), Header, Query, JSONPointer.
        key: The header's or parameter's name, or the pointer.
    """

    name: str
    origin: str
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the gateway has in hand when it decides.

    Attributes:
        headers: Names in lower case.
        query: Decoded parameters.
        prefix: The first bytes of the body, or all of them.
        length: Content-Length, or the bytes read so far: a claim.
    """

    headers: Mapping[str, str]
    query: Mapping[str, str]
    prefix: bytes
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which features are read, in the order of the model's numbers.

    Attributes:
        declared: Of the spec.
        layout: What the model expects.
    """

    declared: tuple[FeatureSpec, ...]
    layout: Layout

    @classmethod
    def compile(cls, declared: Sequence[FeatureSpec], *, deadlines: bool = False) -> Plan:
        """Return the plan for declared features; length, medium and content type are always read.

        Declared numbers come first, because the first two make the bucket; a medium's size never makes
        one without the length beside it: headers lie.

        Raises:
            FeatureError: An origin is unknown, a key is missing, or a name stands twice.
        """
        names: list[str] = []
        for spec in declared:
            _check(spec, names)
            names.append(spec.name)
        length = next((spec.name for spec in declared if spec.origin == _SIZE), _LENGTH)
        every = names if length in names else [*names, length]
        pixels = next((spec.name for spec in declared if spec.origin == _MEDIA), _MEDIUM)
        every = every if pixels in every else [*every, pixels]
        if pixels in every[:2] and length not in every[:2]:
            every = [pixels, length, *(name for name in every if name not in {pixels, length})]
        return cls(
            declared=tuple(declared),
            layout=Layout(numbers=tuple(every), categories=True, deadlines=deadlines),
        )

    def vector(self, request: Request, *, budget_us: int, clock: Callable[[], int]) -> Features:
        """Return the features of a request; `missing` names the first that could not be had.

        Args:
            request: What is in hand.
            budget_us: Microseconds that this may take; 2,000 on the request path.
            clock: A steady clock in microseconds.
        """
        end = clock() + budget_us
        found: dict[str, float] = {_LENGTH: float(max(0, request.length)), _MEDIUM: 0.0}
        kind = _content_type(request)
        categories = [f"type={kind}"]
        missing = None
        medium = _medium(request, kind) if clock() < end else None
        if medium is not None:
            found[_MEDIUM] = medium
        for spec in self.declared:
            try:
                if clock() >= end:
                    raise _MissingError("budget")  # noqa: TRY301 - one way out for every reason
                value = _value(spec, request, medium)
            except _MissingError as error:
                missing = missing or f"{spec.name}:{error}"
                continue
            if isinstance(value, str):
                categories.append(f"{spec.name}={value}")
            else:
                found[spec.name] = value
        return Features(
            numbers=tuple(found.get(name, 0.0) for name in self.layout.numbers),
            categories=tuple(sorted(categories)),
            missing=missing,
            length=max(0, request.length),
        )


def _check(spec: FeatureSpec, names: Sequence[str]) -> None:
    if spec.origin not in ORIGINS:
        raise FeatureError(
            f"Feature {spec.name} is from {spec.origin}, which is none of {', '.join(ORIGINS)}. Choose "
            "one of them."
        )
    if spec.origin in {_HEADER, _QUERY, _POINTER} and not spec.key:
        raise FeatureError(
            f"Feature {spec.name} is from {spec.origin} without a key. Write the name of the header or "
            "parameter, or the JSON pointer."
        )
    if spec.origin == _POINTER and not spec.key.startswith("/"):
        raise FeatureError(
            f"Feature {spec.name} has key {spec.key!r}, which is no JSON pointer. Begin it with /."
        )
    if spec.name in names or spec.name in {_LENGTH, _MEDIUM}:
        raise FeatureError(
            f"Feature {spec.name} is there twice, or named as one that is always read ({_LENGTH}, "
            f"{_MEDIUM}). Give it another name."
        )


def _content_type(request: Request) -> str:
    text = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return text[:_LONGEST_TEXT] or "none"


def _medium(request: Request, kind: str) -> float | None:
    """Return pixels, seconds of sound, or lines of text; None where the body is none of these."""
    prefix = request.prefix
    image = media.image(prefix)
    if image is not None:
        return float(image.width) * image.height
    sound = media.wav(prefix)
    if sound is not None:
        return sound.seconds
    if (
        prefix
        and (kind.startswith("text/") or kind.endswith("json"))
        and (len(prefix) <= _WHOLE_BYTES)
    ):
        # Beyond the prefix lines are taken to be as long as in it.
        return prefix.count(b"\n") * max(1.0, request.length / len(prefix))
    return None


def _value(spec: FeatureSpec, request: Request, medium: float | None) -> Value:
    if spec.origin == _SIZE:
        return float(max(0, request.length))
    if spec.origin == _MEDIA:
        if medium is None:
            raise _MissingError("medium")
        return medium
    if spec.origin == _POINTER:
        return _scalar(_pointed(request, spec.key))
    found = (
        request.headers.get(spec.key.lower())
        if spec.origin == _HEADER
        else (request.query.get(spec.key))
    )
    if found is None:
        raise _MissingError("absent")
    return _scalar(found)


def _scalar(value: Any) -> Value:  # any: JSON
    """Return a number, or a short text as a category.

    Raises:
        _MissingError: It is null, a list or an object, or a number that is negative or not finite.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text: str = value[:_LONGEST_TEXT]
        try:
            value = float(value)
        except ValueError:
            return text
    if not isinstance(value, int | float):
        raise _MissingError("type")
    try:
        number = float(value)
    except OverflowError as error:
        raise _MissingError("infinite") from error
    if not math.isfinite(number):
        raise _MissingError("infinite")
    if number < 0:
        raise _MissingError("negative")
    return number


def _pointed(request: Request, pointer: str) -> Any:  # any: JSON
    """Return what an RFC 6901 pointer names in the body.

    Raises:
        _MissingError: The body is not all there, too long, no JSON, or has nothing there.
    """
    body = request.prefix
    if len(body) < request.length or len(body) > _WHOLE_BYTES:
        raise _MissingError("long")
    try:
        at = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _MissingError("json") from error
    for part in pointer.split("/")[1:]:
        step = part.replace("~1", "/").replace("~0", "~")
        if isinstance(at, dict) and step in at:
            at = at[step]
        elif isinstance(at, list) and step.isdecimal() and int(step[:9]) < len(at):
            at = at[int(step[:9])]
        else:
            raise _MissingError("absent")
    return at
