"""What workers say about themselves at `GET /-/state` (contracts §6)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from trimtab.net import pod_connector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

ADMIN_PORT: Final = 8001
SERVING_STATES: Final = frozenset({"Resident", "Lent", "Waking"})
_TIMEOUT = aiohttp.ClientTimeout(total=5, connect=2)
_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One model of a worker; `error` is (reason, message) where it failed."""

    name: str
    state: str
    error: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """A worker pod's answer, without the figures that change all the time."""

    pod_uid: str
    revision: int
    models: tuple[ModelState, ...]
    errors: tuple[str, ...]


def parse_state(pod_uid: str, document: Mapping[str, Any]) -> WorkerState:
    """Read a state document; fields of another release are passed over."""
    models = []
    for entry in document.get("models") or ():
        error = entry.get("error")
        models.append(
            ModelState(
                name=str(entry.get("name") or ""),
                state=str(entry.get("state") or ""),
                error=(str(error.get("reason") or ""), str(error.get("message") or ""))
                if isinstance(error, dict)
                else None,
            )
        )
    errors = [
        str(error.get("message") if isinstance(error, dict) else error)
        for error in document.get("errors") or ()
    ]
    return WorkerState(
        pod_uid=pod_uid,
        revision=int(document.get("revision") or 0),
        models=tuple(models),
        errors=tuple(errors),
    )


class AdminClient:
    """Asks pods on their admin port."""

    def __init__(self, *, port: int = ADMIN_PORT) -> None:
        self._port = port
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=pod_connector(limit=_AT_ONCE), timeout=_TIMEOUT
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, address: str, path: str) -> Mapping[str, Any] | None:
        """Return the JSON object at a pod's path, None where it does not answer."""
        if self._session is None:
            raise RuntimeError("AdminClient is used outside of its context; this is a bug.")
        host = f"[{address}]" if ":" in address else address
        async with self._slots:
            try:
                async with self._session.get(f"http://{host}:{self._port}{path}") as answer:
                    if answer.status != 200:
                        return None
                    document = await answer.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                return None
        return document if isinstance(document, dict) else None

    async def get_all(
        self, addresses: Iterable[tuple[str, str]], path: str
    ) -> dict[str, Mapping[str, Any] | None]:
        """Ask several pods at once: (uid, address) pairs in, answers by uid out."""
        pairs = list(addresses)
        answers = await asyncio.gather(*(self.get(address, path) for _, address in pairs))
        return {uid: answer for (uid, _), answer in zip(pairs, answers, strict=True)}
