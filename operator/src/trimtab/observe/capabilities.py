"""What the engine can run: as live workers publish it, and what this release's engine can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trimtab.planning.snapshot import EngineCapabilities
from trimtab_workers.engine.capabilities import CAPABILITIES, ENGINE_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ASSUMED: Final = EngineCapabilities(
    engine="trimtab",
    version=ENGINE_VERSION,
    families=CAPABILITIES.families,
    precisions=CAPABILITIES.precisions,
    tensor_parallel_sizes=CAPABILITIES.tensor_parallel_sizes,
    pipeline_parallel_sizes=CAPABILITIES.pipeline_parallel_sizes,
    products=CAPABILITIES.devices,
)
"""Of the engine of this release: operator and worker images are released together."""

SHARED_PRESSURE: Final = "remap-idle" if "remap-idle" in CAPABILITIES.pressures else "recompute"
"""What a worker with several models does when blocks run short: lend idle weights, if it can."""


def parse(state: Mapping[str, Any]) -> EngineCapabilities:
    """Read the capabilities of a `/-/state`; absent fields keep what is assumed."""
    document: Mapping[str, Any] = state.get("capabilities") or {}
    return EngineCapabilities(
        engine=ASSUMED.engine,
        version=str(state.get("engine_version") or ASSUMED.version),
        families=_words(document, "families", ASSUMED.families),
        precisions=_words(document, "precisions", ASSUMED.precisions),
        tensor_parallel_sizes=_sizes(
            document, "tensor_parallel_sizes", ASSUMED.tensor_parallel_sizes
        ),
        pipeline_parallel_sizes=_sizes(
            document, "pipeline_parallel_sizes", ASSUMED.pipeline_parallel_sizes
        ),
        products=_words(document, "devices", ASSUMED.products),
        block_tokens=ASSUMED.block_tokens,
    )


def newest(states: Iterable[Mapping[str, Any] | None]) -> EngineCapabilities:
    """Return the capabilities of the newest engine that answers, else what is assumed."""
    found = [parse(s) for s in states if s and isinstance(s.get("capabilities"), dict)]
    return max(found, key=lambda c: (c.version, c.families, c.precisions), default=ASSUMED)


def _words(document: Mapping[str, Any], name: str, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    values = document.get(name)
    return tuple(map(str, values)) if isinstance(values, list) and values else otherwise


def _sizes(document: Mapping[str, Any], name: str, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    values = document.get(name)
    good = isinstance(values, list) and values and all(type(v) is int for v in values)
    return tuple(values) if good and isinstance(values, list) else otherwise
