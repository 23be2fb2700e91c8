"""Typed reading of a request's JSON fields: wrong types become 400s that name the field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab_workers.web.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping


def invalid(param: str, value: object, remedy: str, *, code: str = "invalid_value") -> ApiError:
    """Return a 400 that names the field, shows its value (shortened) and says what to give."""
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ApiError(400, f"{param} is {shown}. {remedy}", code=code, param=param)


def to_float(param: str, value: float) -> float:
    """Return a JSON number, of any size there, as a float."""
    try:
        return float(value)
    except OverflowError as error:
        raise invalid(param, value, "Give a smaller number.") from error


class Fields:
    """A request body; null counts as absent, as in OpenAI's API."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def get(self, name: str) -> Any:
        """Return the raw value or None."""
        return self._body.get(name)

    def text(self, name: str) -> str:
        """Return a required, non-empty text."""
        value = self.get(name)
        if not isinstance(value, str) or not value:
            raise invalid(name, value, "Give a non-empty text.", code="missing_required_parameter")
        return value

    def integer(
        self, name: str, default: int, *, least: int | None = None, most: int | None = None
    ) -> int:
        """Return an integer within its bounds."""
        value = self.optional_integer(name, least=least, most=most)
        return default if value is None else value

    def optional_integer(
        self, name: str, *, least: int | None = None, most: int | None = None
    ) -> int | None:
        """Return an integer within its bounds, or None if absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise invalid(name, value, "Give an integer.", code="invalid_type")
        if (least is not None and value < least) or (most is not None and value > most):
            bounds = f"{least} to {most}" if most is not None else f"at least {least}"
            raise invalid(name, value, f"Give {bounds}.")
        return value

    def number(self, name: str, default: float) -> float:
        """Return a number; its range is the sampler's business."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise invalid(name, value, "Give a number.", code="invalid_type")
        return to_float(name, value)

    def boolean(self, name: str, *, default: bool = False) -> bool:
        """Return a truth value."""
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise invalid(name, value, "Give true or false.", code="invalid_type")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of integers, empty if absent."""
        value = self.get(name)
        if value is None:
            return ()
        if not is_integer_list(value):
            raise invalid(name, value, "Give a list of integers.", code="invalid_type")
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a text or a list of texts as a tuple, empty if absent."""
        value = self.get(name)
        if value is None:
            return ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            raise invalid(name, value, "Give a text or a list of texts.", code="invalid_type")
        return tuple(values)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Return an object, empty if absent."""
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise invalid(name, value, "Give an object.", code="invalid_type")
        return value


def is_integer_list(value: object) -> bool:
    """Whether the value is a list of integers, booleans excluded."""
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) for item in value
    )
