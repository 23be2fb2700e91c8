"""Reading a stream while it passes: usage, errors, times. Pure, the clock is an argument.

The gateway always asks workers for usage; a client that did not ask never sees it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from trimtab_workers.gateway.observed import Outcome

_END: Final = b"\n\n"
_DONE: Final = b"data: [DONE]"
_NULL_USAGE: Final = b',"usage":null}'
LARGEST_EVENT_BYTES: Final = 8 * 2**20


class StreamTap:
    """Takes a worker's bytes in, gives the client's bytes out, event by event.

    Attributes:
        done: `[DONE]` has passed.
        failed: The worker sent an error event.
        usage: The last usage object, or None.
        first_at, last_at: When the first and the last event with output passed, in the seconds
            of whatever clock `feed` is given.
    """

    def __init__(self, *, pass_usage: bool) -> None:
        self._pass_usage = pass_usage
        self._rest = b""
        self.done = False
        self.failed = False
        self.usage: dict[str, Any] | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None

    def feed(self, data: bytes, *, now: float) -> bytes:
        """Return what of `data`, and of what was held back, the client shall see.

        Raises:
            ValueError: The worker sends an event without end.
        """
        whole = self._rest + data
        *events, self._rest = whole.split(_END)
        if len(self._rest) > LARGEST_EVENT_BYTES:
            raise ValueError(f"The worker sent an event of more than {LARGEST_EVENT_BYTES} bytes.")
        seen = (event for event in events if self._passes(event, now))
        return b"".join(self._shown(event) + _END for event in seen)

    def _shown(self, event: bytes) -> bytes:
        """Take the null usage out of a chunk, which only asking for usage puts there."""
        if self._pass_usage or not event.endswith(_NULL_USAGE):
            return event
        return event.removesuffix(_NULL_USAGE) + b"}"

    def _passes(self, event: bytes, now: float) -> bool:
        if event.startswith(_DONE):
            self.done = True
            return True
        marked = event.removesuffix(_NULL_USAGE)
        document = _parse(event) if b'"usage"' in marked or b'"error"' in marked else None
        if document is not None and document.get("error"):
            self.failed = True
            return True
        if document is not None and isinstance(document.get("usage"), dict):
            self.usage = document["usage"]
            if not document.get("choices"):
                return self._pass_usage
        self.first_at = now if self.first_at is None else self.first_at
        self.last_at = now
        return True

    def outcome(
        self,
        *,
        arrived_at: float,
        one_choice: bool,
        failed: bool,
        overhead_ms: float | None,
        pod_uid: str | None,
    ) -> Outcome:
        """Return what the stream tells about its request.

        TPOT needs two tokens or more, all of one choice: choices decode side by side.
        """
        ttft_ms = None if self.first_at is None else (self.first_at - arrived_at) * 1e3
        tokens = tokens_of(self.usage, "completion_tokens")
        tpot_ms = None
        if one_choice and tokens is not None and tokens > 1 and self.first_at is not None:
            tpot_ms = ((self.last_at or self.first_at) - self.first_at) * 1e3 / (tokens - 1)
        return Outcome(
            failed=failed,
            prompt_tokens=tokens_of(self.usage, "prompt_tokens"),
            output_tokens=tokens,
            ttft_ms=ttft_ms,
            tpot_ms=tpot_ms,
            overhead_ms=overhead_ms,
            pod_uid=pod_uid,
        )


def timing_of(header: str | None, name: str) -> float | None:
    """Return an entry's milliseconds of a `Server-Timing` header, or None if it has none."""
    for entry in (header or "").split(","):
        key, *fields = (part.strip() for part in entry.split(";"))
        for field in fields:
            label, _, value = field.partition("=")
            if (key, label) == (name, "dur"):
                try:
                    return max(0.0, float(value))
                except ValueError:
                    return None
    return None


def tokens_of(usage: object, name: str) -> int | None:
    """Return a count of a usage object, or None if it has none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _parse(event: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(event.removeprefix(b"data:"))
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
