"""The faults that the proxy can inject, and which requests they befall."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.faults.seen import Seen


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which requests a fault befalls: all that agree with every given field.

    `user_agent` and `identity` match by substring, the others as a whole.
    """

    verbs: frozenset[str] = frozenset()
    resource: str = ""
    subresource: str | None = None
    namespace: str = ""
    name: str = ""
    user_agent: str = ""
    identity: str = ""
    manager: str = ""
    mutating: bool | None = None
    lease: bool | None = None

    def __call__(self, seen: Seen) -> bool:
        """Return whether the fault may befall a request."""
        return all(
            (
                not self.verbs or seen.verb in self.verbs,
                not self.resource or seen.resource == self.resource,
                self.subresource is None or seen.subresource == self.subresource,
                not self.namespace or seen.namespace == self.namespace,
                not self.name or seen.name == self.name,
                self.user_agent in seen.user_agent,
                self.identity in seen.identity,
                not self.manager or seen.manager == self.manager,
                self.mutating is None or seen.mutating == self.mutating,
                self.lease is None or seen.lease == self.lease,
            )
        )


class FirstOfEachKind:
    """Matches the first request of every (verb, resource, subresource) that another match lets pass."""

    def __init__(self, match: Match) -> None:
        self._match = match
        self.kinds: list[tuple[str, str, str]] = []

    def __call__(self, seen: Seen) -> bool:
        """Return whether this is the first of its kind, and remember it."""
        kind = (seen.verb, seen.resource, seen.subresource)
        if not self._match(seen) or kind in self.kinds:
            return False
        self.kinds.append(kind)
        return True


EVERYTHING = Match()
WATCHES = Match(verbs=frozenset({"watch"}))
OWN_WRITES = Match(mutating=True, lease=False)


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Fault:
    """One fault: befalls matching requests after the first `skip`, `times` times, then is spent."""

    name: ClassVar[str] = ""

    match: Callable[[Seen], bool] = EVERYTHING
    skip: int = 0
    times: int | None = None
    injected: int = 0
    """How often it has befallen a request (or an event)."""
    passed: int = dataclasses.field(default=0, repr=False)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    def take(self, seen: Seen) -> bool:
        """Return whether the fault befalls this request, and count it if so."""
        with self._lock:
            if not self.match(seen) or (self.times is not None and self.injected >= self.times):
                return False
            if self.passed < self.skip:
                self.passed += 1
                return False
            self.injected += 1
            return True


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Status(Fault):
    """The server is not asked; the answer is an error Status with this code."""

    name: ClassVar[str] = "status"

    code: int = 500
    reason: str = "InternalError"
    message: str = "injected by the fault proxy"
    retry_after_seconds: int | None = None


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Delay(Fault):
    """The request waits before it is sent on; in a watch every event comes that much later."""

    name: ClassVar[str] = "delay"

    seconds: float = 1.0


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Drop(Fault):
    """The connection is closed without an answer, before the server is asked or after it has acted."""

    name: ClassVar[str] = "drop"

    after_server: bool = False


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Cut(Fault):
    """The connection is closed in the middle of the answer's body."""

    name: ClassVar[str] = "cut"

    after_bytes: int = 1


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Freeze(Fault):
    """No byte comes any more though the connection stays open, until `seconds` are over.

    In a watch the events of that time are lost with the connection, as when a NAT entry dies.
    """

    name: ClassVar[str] = "freeze"

    seconds: float = 3600.0
    after_bytes: int = 0


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class Swallow(Fault):
    """Watch events are left out: `skip` and `times` count events, not requests."""

    name: ClassVar[str] = "swallow"

    match: Callable[[Seen], bool] = WATCHES
    types: frozenset[str] = frozenset({"ADDED", "MODIFIED", "DELETED"})
    object_name: str = ""
    """Only events of the object of this name, if given."""


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class KillAfterWrite(Fault):
    """The server has done the write, then `kill` is called; the client never gets the answer."""

    name: ClassVar[str] = "kill-after-write"

    match: Callable[[Seen], bool] = OWN_WRITES
    times: int | None = 1
    kill: Callable[[], None] = lambda: None
