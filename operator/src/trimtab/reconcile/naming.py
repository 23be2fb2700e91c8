"""Under which name an intent's model is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.observe.records import IntentRecord


def model_name(record: IntentRecord) -> str:
    """Return the name that clients use within the namespace."""
    return str((record.spec.get("model") or {}).get("name") or record.name)
