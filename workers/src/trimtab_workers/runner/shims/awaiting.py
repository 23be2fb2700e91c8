"""Functions that are coroutines: one event loop for all calls, so that what they keep stays usable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

_runners: list[asyncio.Runner] = []


def finished(value: Any) -> Any:
    """Return a value, or what a coroutine returns once it has ended."""
    if not hasattr(value, "__await__"):
        return value
    if not _runners:
        import asyncio  # noqa: PLC0415 - most functions are no coroutines

        _runners.append(asyncio.Runner())

    async def outcome() -> Any:
        return await value

    return _runners[0].run(outcome())
