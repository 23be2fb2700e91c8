"""What the engine can run: as live workers publish it, and what is assumed before there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trimtab import __version__
from trimtab.planning.snapshot import EngineCapabilities

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ASSUMED: Final = EngineCapabilities(
    engine="trimtab",
    version=__version__,
    families=("llama",),
    precisions=("bf16", "fp32"),
)
"""Of the engine of this release; operator and worker images are released together."""


def parse(document: Mapping[str, Any]) -> EngineCapabilities:
    """Read `capabilities` of `/-/state`; absent fields keep what is assumed."""
    return EngineCapabilities(
        engine=str(document.get("engine") or ASSUMED.engine),
        version=str(document.get("version") or ASSUMED.version),
        families=_words(document, "families", ASSUMED.families),
        precisions=_words(document, "precisions", ASSUMED.precisions),
        tensor_parallel_sizes=_sizes(document, "tensor_parallel_sizes"),
        pipeline_parallel_sizes=_sizes(document, "pipeline_parallel_sizes"),
        products=_words(document, "products", ASSUMED.products),
        block_tokens=int(document.get("block_tokens") or ASSUMED.block_tokens),
    )


def newest(documents: Iterable[Mapping[str, Any] | None]) -> EngineCapabilities:
    """Return the capabilities of the newest engine that answers, else what is assumed."""
    found = [parse(document) for document in documents if document]
    return max(found, key=lambda c: (c.version, c.families, c.precisions), default=ASSUMED)


def _words(document: Mapping[str, Any], name: str, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    values = document.get(name)
    return tuple(sorted(map(str, values))) if isinstance(values, list) and values else otherwise


def _sizes(document: Mapping[str, Any], name: str) -> tuple[int, ...]:
    values = document.get(name)
    return tuple(sorted(map(int, values))) if isinstance(values, list) and values else (1,)
