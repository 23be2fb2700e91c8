"""The price book: what a GPU hour, a vCPU hour and a GiB of memory cost. Money is micro-USD."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Final

_AMOUNT: Final = re.compile(r"\d{1,9}(\.\d{1,6})?")
_KEYS: Final = frozenset({"currency", "dated", "gpuHour", "cpuHour", "memoryGiBHour", "pools"})


class PriceBookInvalidError(ValueError):
    """The price book cannot be used; the message names the key and the remedy. Keep the last valid one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A price for whatever a glob matches; micro-USD per hour."""

    glob: str
    micro_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBook:
    """Prices by product or CPU model; the most specific glob wins.

    Attributes:
        dated: Day the prices were true, ``YYYY-MM-DD`` or empty.
        gpu_hour: One GPU, by product.
        cpu_hour: One vCPU, by CPU model.
        memory_gib_hour_micro_usd: One GiB of memory; None while unknown.
    """

    dated: str = ""
    gpu_hour: tuple[Price, ...] = ()
    cpu_hour: tuple[Price, ...] = ()
    memory_gib_hour_micro_usd: int | None = None


def parse_price_book(data: object) -> PriceBook:
    """Read the parsed YAML of key ``prices.yaml`` of ConfigMap ``trimtab-prices``.

    Raises:
        PriceBookInvalidError: An unknown key, a currency other than USD, or an amount that is not
            a decimal string.
    """
    if data is None:
        return PriceBook()
    if not isinstance(data, Mapping):
        raise PriceBookInvalidError(
            f"Price book is {data!r:.80}, but it must be a mapping. Write keys such as cpuHour."
        )
    for key in data:
        if key not in _KEYS:
            raise PriceBookInvalidError(
                f"Price book key {key!r} is unknown; known keys are {', '.join(sorted(_KEYS))}. "
                "Correct or remove it."
            )
    if data.get("currency", "USD") != "USD":
        raise PriceBookInvalidError(
            f"Price book key currency is {data['currency']!r}, but only USD is supported. "
            "Convert the prices to USD."
        )
    memory = data.get("memoryGiBHour")
    return PriceBook(
        dated=str(data.get("dated") or ""),
        gpu_hour=_prices("gpuHour", data.get("gpuHour")),
        cpu_hour=_prices("cpuHour", data.get("cpuHour")),
        memory_gib_hour_micro_usd=None if memory is None else _amount("memoryGiBHour", memory),
    )


@lru_cache(maxsize=1024)
def price_for(prices: tuple[Price, ...], name: str) -> int | None:
    """Return the micro-USD per hour of the most specific glob that matches; None if none does.

    Most specific: the most characters that are no wildcard, then the first in sorted order.
    """
    matching = [price for price in prices if fnmatchcase(name, price.glob)]
    if not matching:
        return None
    return min(matching, key=lambda p: (-_literal_characters(p.glob), p.glob)).micro_usd


def _literal_characters(glob: str) -> int:
    return len(re.sub(r"\[[^]]*\]|[*?]", "", glob))


def _prices(key: str, value: Any) -> tuple[Price, ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise PriceBookInvalidError(
            f"Price book key {key} is {value!r:.80}, but it must map globs to amounts, "
            f'for example {key}: {{"*": "0.04"}}.'
        )
    found = [
        Price(glob=str(glob), micro_usd=_amount(f"{key}.{glob}", amount))
        for glob, amount in value.items()
    ]
    return tuple(sorted(found, key=lambda p: p.glob))


def _amount(key: str, value: object) -> int:
    """Convert a decimal string of USD into micro-USD, exactly."""
    if not isinstance(value, str) or not _AMOUNT.fullmatch(value):
        raise PriceBookInvalidError(
            f"Price book key {key} is {value!r}, but it must be a quoted decimal amount of USD "
            'with at most 6 decimals, for example "0.04".'
        )
    whole, _, fraction = value.partition(".")
    return int(whole) * 1_000_000 + int(fraction.ljust(6, "0"))
