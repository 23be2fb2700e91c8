"""Events of transitions, as `kubectl describe` shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trimtab.kube.names import short_hash
from trimtab.kube.resources import EVENT

if TYPE_CHECKING:
    from datetime import datetime

    from trimtab.kube.resources import Manifest

_MAX_NOTE: Final = 1024


def event(
    *,
    regarding: Manifest,
    reason: str,
    note: str,
    warning: bool,
    action: str,
    occasion: str,
    controller: str,
    instance: str,
    at: datetime,
) -> Manifest:
    """Build an `events.k8s.io/v1` Event.

    Args:
        regarding: apiVersion, kind, namespace, name and uid of the object.
        reason: One of the closed list of reasons.
        note: A sentence; cut at 1,024 bytes, the API's limit.
        warning: Whether somebody should look.
        action: What was done, PascalCase.
        occasion: Tells this transition from others; equal occasions give one Event.
        controller: The manager's name.
        instance: Which replica.
        at: Now, in UTC.
    """
    name = regarding["name"][:200]
    tail = short_hash(regarding["uid"], reason, note, occasion, length=16)
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": f"{name}.{tail}", "namespace": regarding["namespace"]},
        "eventTime": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": controller,
        "reportingInstance": instance[:128],
        "action": action,
        "reason": reason,
        "regarding": regarding,
        "note": note.encode()[:_MAX_NOTE].decode(errors="ignore"),
        "type": "Warning" if warning else "Normal",
    }
