"""Whose objects are left as they are: of who is paused, and of who is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.api.v1alpha1.names import PAUSED_ANNOTATION
from trimtab.reconcile.inferenceintent.policies import Admission, first_violation
from trimtab.reconcile.naming import model_name
from trimtab.reconcile.snapshot import parse_intent

if TYPE_CHECKING:
    from trimtab.observe.records import IntentRecord
    from trimtab.reconcile.world import World


def untouched(record: IntentRecord, world: World) -> bool:
    """Tell whether no step would be taken for an intent now: what runs for it stays as it is."""
    if record.annotations.get(PAUSED_ANNOTATION) == "true":
        return True
    try:
        intent = parse_intent(record)
    except ValueError:
        return True
    oldest = world.oldest_namesake(record.namespace, model_name(record))
    taken = "" if oldest is None or oldest.uid == record.uid else oldest.name
    asked = Admission(intent=intent, settings=world.settings, name_taken_by=taken)
    return first_violation(asked) is not None
