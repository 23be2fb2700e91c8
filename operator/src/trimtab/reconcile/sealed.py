"""Texts that the operator writes on objects and reads back: an edit by anybody else is noticed.

A seal guards against accidents, not against malice: who may edit a Deployment may do anything to it.
But an edited note must not make plans believe that something else runs, and so roll what serves.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from trimtab.api.v1alpha1.names import GROUP
from trimtab.kube import names as object_names
from trimtab.observe.digests import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trimtab.observe.records import ConfigMapRecord, DeploymentRecord

ROLLOUT_ANNOTATION: Final = f"{GROUP}/rollout"
"""On a worker's Deployment, and once more on the model set that its pods read."""
_FIELD: Final = "seal"


def seal(document: Mapping[str, Any]) -> str:
    """Return a document as canonical JSON with its seal."""
    whole = {**document, _FIELD: digest(document)}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"))


def unseal(text: str) -> dict[str, Any] | None:
    """Return a document as it was written; None where it is none, or was edited since.

    One without a seal is of an older release and is believed.
    """
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            return None
        found = document.pop(_FIELD, None)
        return document if found in (None, digest(document)) else None
    except (ValueError, RecursionError):
        return None


def rollout_text(deployment: DeploymentRecord, model_sets: Iterable[ConfigMapRecord]) -> str:
    """Return what a Deployment's pods were rolled out with, as text; empty where nobody knows.

    Args:
        deployment: Whose annotation counts, unless somebody edited it.
        model_sets: Among which the copy is that then counts.
    """
    text = deployment.annotations.get(ROLLOUT_ANNOTATION, "")
    if unseal(text) is not None:
        return text
    name = object_names.model_set(deployment.name, deployment.plan_digest)
    here = (m for m in model_sets if (m.namespace, m.name) == (deployment.namespace, name))
    return next((m.annotations.get(ROLLOUT_ANNOTATION, "") for m in here), "")
