"""The proxy in a thread of its own, for tests that wait for processes and kubectl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from e2e.faults.loop import LoopThread
from e2e.faults.proxy import FaultProxy
from e2e.faults.writes import Writes, writes

if TYPE_CHECKING:
    import collections
    from collections.abc import Callable

    from e2e.faults.faults import Fault
    from e2e.faults.seen import Seen


class ThreadedProxy:
    """A `FaultProxy` with blocking methods; a context manager. Takes the same arguments."""

    def __init__(self, upstream: str, **settings: Any) -> None:
        self._upstream = upstream
        self._settings = settings
        self._loop = LoopThread()
        self._proxy: FaultProxy | None = None

    def __enter__(self) -> Self:
        """Start the thread and listen."""
        self._loop.start()
        self._loop.call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything and end the thread."""
        self._loop.call(self.proxy.__aexit__())
        self._loop.stop()

    async def _open(self) -> None:
        self._proxy = FaultProxy(self._upstream, **self._settings)
        await self._proxy.__aenter__()

    @property
    def proxy(self) -> FaultProxy:
        """The proxy itself; only its plain attributes are safe to read from here."""
        if self._proxy is None:
            raise RuntimeError("ThreadedProxy is a context manager: enter it first")
        return self._proxy

    @property
    def url(self) -> str:
        """Where clients reach the proxy."""
        return self.proxy.url

    @property
    def injected(self) -> collections.Counter[str]:
        """How often each kind of fault was injected."""
        return self.proxy.injected

    def log(self) -> list[Seen]:
        """Return the requests seen so far."""

        async def copy() -> list[Seen]:
            return list(self.proxy.log)

        return list(self._loop.call(copy()))

    def now(self) -> float:
        """Return the time of the proxy's clock, for windows of the log."""
        return self.proxy.clock()

    def add(self, fault: Fault) -> Fault:
        """Put a fault into force."""
        return self.proxy.add(fault)

    def clear(self) -> None:
        """Take all faults out of force."""
        self.proxy.clear()

    def refuse(self, seconds: float) -> None:
        """Be down for a while; returns when it is over."""
        self._loop.call(self.proxy.refuse(seconds), seconds=seconds + 30)

    def cut_all(self) -> None:
        """Cut every open connection."""
        self._loop.soon(self.proxy.cut_all)

    def wait_for(
        self, wanted: Callable[[Seen], bool], *, count: int = 1, seconds: float = 30
    ) -> list[Seen]:
        """Wait until `count` logged requests are wanted ones."""
        waiting = self.proxy.wait_for(wanted, count=count, seconds=seconds)
        return list(self._loop.call(waiting, seconds=seconds + 5))

    def writes(self, *, since: float, until: float | None = None, identity: str = "") -> Writes:
        """Count what passed since a time of the proxy's clock."""
        end = self.now() if until is None else until
        return writes(self.log(), since=since, until=end, identity=identity)
