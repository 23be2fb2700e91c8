"""Under which name an intent's model is asked for, and where requests for it go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from trimtab.observe.records import IntentRecord

ROUTES_KEY: Final = "routes.json"


def routed_models(text: str) -> list[dict[str, Any]]:
    """Return the entries of a routing table (contracts §8); none where it cannot be read."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return []
    models = document.get("models") if isinstance(document, dict) else None
    return [m for m in models if isinstance(m, dict)] if isinstance(models, list) else []


def model_name(record: IntentRecord) -> str:
    """Return the name that clients use within the namespace."""
    return str((record.spec.get("model") or {}).get("name") or record.name)
