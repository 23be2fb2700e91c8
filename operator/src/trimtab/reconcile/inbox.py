"""Who has to step next, and why."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Slot:
    causes: set[str] = field(default_factory=set)
    event: asyncio.Event = field(default_factory=asyncio.Event)


class Inbox:
    """Wakes loops by key; wakes that come together count once.

    Only registered keys can be woken: a wake for an object without a loop is nobody's news, for
    the loop of an object begins with a step anyway.
    """

    def __init__(self) -> None:
        self._slots: dict[str, _Slot] = {}
        self._emptied = asyncio.Event()
        self._emptied.set()
        self.closed = False

    def register(self, key: str) -> None:
        """Open a key's slot; its loop calls this before its first step."""
        self._slots[key] = _Slot()
        self._emptied.clear()

    def unregister(self, key: str) -> None:
        """Close a key's slot."""
        self._slots.pop(key, None)
        if not self._slots:
            self._emptied.set()

    async def emptied(self) -> None:
        """Wait until no loop is left."""
        await self._emptied.wait()

    def keys(self) -> tuple[str, ...]:
        """All keys with a loop."""
        return tuple(self._slots)

    def wake(self, key: str, cause: str) -> None:
        """Let the key's loop step soon."""
        slot = self._slots.get(key)
        if slot is not None and not self.closed:
            slot.causes.add(cause)
            slot.event.set()

    def wake_all(self, cause: str) -> None:
        """Let every loop step soon."""
        for key in self.keys():
            self.wake(key, cause)

    def close(self) -> None:
        """Wake nobody any more, and let all loops end."""
        self.closed = True
        for slot in self._slots.values():
            slot.event.set()

    async def wait(self, key: str, timeout_seconds: float) -> frozenset[str]:
        """Wait for a wake; return its causes, or nothing at the time-out or when closed."""
        slot = self._slots[key]
        if not self.closed:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await slot.event.wait()
            except TimeoutError:
                return frozenset()
        if not self.closed:
            slot.event.clear()
        causes = frozenset(slot.causes)
        slot.causes.clear()
        return causes
