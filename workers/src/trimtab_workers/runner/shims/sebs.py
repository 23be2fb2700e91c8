"""SeBS: `handler(event)` → dict; `storage` is injected (see sebs_storage.py)."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from typing import TYPE_CHECKING, Any

from trimtab_workers.runner.exchange import Answer, Request, answer
from trimtab_workers.runner.shims.awaiting import finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from trimtab_workers.runner.exchange import Shim


def make(handler: Callable[[dict[str, Any]], Any], *, parameters: int) -> Shim:
    """Return the shim."""
    del parameters

    def call(request: Request) -> Answer:
        try:
            event = json.loads(request.body) if request.body else dict(request.parameters())
        except ValueError as error:
            return answer(f"The body is no JSON: {error}.\n", status=400)
        if isinstance(event, dict):
            event.setdefault(
                "request-id", request.header("trimtab-invocation") or str(uuid.uuid4())
            )
            event.setdefault("income-timestamp", dt.datetime.now(dt.UTC).timestamp())
        return answer(finished(handler(event)))

    return call
