"""What workers say about themselves at `GET /-/state` (contracts §6)."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from trimtab.net import pod_connector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

ADMIN_PORT: Final = 8001
SERVING_STATES: Final = frozenset({"Resident", "Lent", "Waking"})
"""A lent model answers: a request wakes it. Waking comes only after Lent."""
VERDICTS: Final = frozenset({"DoNotRemap", "IdleOnly", "IdleAndActive"})
_NOT_WORD: Final = re.compile(r"[^A-Za-z0-9]+")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """What a worker says of its models and of its memory, as statuses show it.

    Attributes:
        models: (name, state, reason of a failure or empty) of each.
        verdict: Of the engine's last advice; empty where it gave none.
        reasons: For it.
        lend_units: (name, layers or groups of layers) that idle models give or would give.
        switch_milliseconds: Reading one lent model again.
        kv_tokens: What the KV cache holds, before and after lending; None where it is not said.
    """

    models: tuple[tuple[str, str, str], ...] = ()
    verdict: str = ""
    reasons: tuple[str, ...] = ()
    lend_units: tuple[tuple[str, int], ...] = ()
    switch_milliseconds: float | None = None
    kv_tokens: tuple[int, int] | None = None

    @property
    def usable(self) -> frozenset[tuple[str, bool, str]]:
        """Who can be asked: what a status must show at once."""
        return frozenset((name, state in SERVING_STATES, why) for name, state, why in self.models)


def parse_engine(document: Mapping[str, Any]) -> EngineView:
    """Read the models and the last advice of a state document; what is absent stays empty."""
    state = parse_state("", document)
    models = tuple((m.name, m.state, m.error[0] if m.error else "") for m in state.models)
    advice = document.get("advice")
    # What a worker was given and only repeats is the planner's word, not the engine's.
    live = isinstance(advice, dict) and advice.get("source") == "live"
    if not (live and isinstance(advice, dict)) or advice.get("verdict") not in VERDICTS:
        return EngineView(models=models)
    units = advice.get("lend_units")
    switch = advice.get("switch_s")
    return EngineView(
        models=models,
        verdict=str(advice["verdict"]),
        reasons=tuple(str(reason) for reason in advice.get("reasons") or ()),
        lend_units=tuple(
            (str(name), count)
            for name, count in sorted(units.items() if isinstance(units, dict) else ())
            if type(count) is int and count > 0
        ),
        switch_milliseconds=(
            1000.0 * switch
            if isinstance(switch, int | float) and math.isfinite(switch) and switch > 0
            else None
        ),
        kv_tokens=_kv_tokens(advice),
    )


def _kv_tokens(advice: Mapping[str, Any]) -> tuple[int, int] | None:
    before, after = advice.get("kv_tokens_before"), advice.get("kv_tokens_after")
    if type(before) is int and type(after) is int and 0 <= before <= after:
        return before, after
    return None


def word(value: Any) -> str:
    """Return a reason or state as statuses write it: `out_of_memory` is `OutOfMemory`."""
    parts = _NOT_WORD.split(str(value or ""))
    text = "".join(part[:1].upper() + part[1:] for part in parts)[:128]
    return text if text[:1].isalpha() or not text else "Unknown"


def parse_state(pod_uid: str, document: Mapping[str, Any]) -> WorkerState:
    """Read a state document; fields of another release are passed over."""
    models = []
    for entry in document.get("models") or ():
        error = entry.get("error")
        models.append(
            ModelState(
                name=str(entry.get("name") or ""),
                state=word(entry.get("state")),
                error=(word(error.get("reason")), str(error.get("message") or ""))
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
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
                return None
        return document if isinstance(document, dict) else None

    async def post(self, address: str, path: str) -> bool:
        """Send an empty POST; whether the pod took it (2xx)."""
        if self._session is None:
            raise RuntimeError("AdminClient is used outside of its context; this is a bug.")
        host = f"[{address}]" if ":" in address else address
        async with self._slots:
            try:
                async with self._session.post(f"http://{host}:{self._port}{path}") as answer:
                    return answer.status // 100 == 2
            except (aiohttp.ClientError, TimeoutError, OSError):
                return False

    async def get_all(
        self, addresses: Iterable[tuple[str, str]], path: str
    ) -> dict[str, Mapping[str, Any] | None]:
        """Ask several pods at once: (uid, address) pairs in, answers by uid out."""
        pairs = list(addresses)
        answers = await asyncio.gather(*(self.get(address, path) for _, address in pairs))
        return {uid: answer for (uid, _), answer in zip(pairs, answers, strict=True)}
