"""What must hold before an intent is worked on; the first violation is the condition."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.api.v1alpha1.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trimtab.api.v1alpha1.inferenceintent import InferenceIntent
    from trimtab.api.v1alpha1.inferenceintent_spec import ModelSource
    from trimtab.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Why an intent cannot be worked on."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the policies read."""

    intent: InferenceIntent
    settings: Settings
    name_taken_by: str = ""
    """An older intent of the namespace that serves the same model name."""


def source_allowed(source: ModelSource, *, settings: Settings) -> bool:
    """Whether this installation mounts a source, wherever it is named: anybody may edit an annotation."""
    sources = settings.sources
    if source.host_path is not None:
        path, given = source.host_path.path, sources.hostPath
        return given.enabled and not _climbs(path) and _below(path, given.allowedPrefixes)
    if source.hugging_face is not None:
        return sources.huggingFace.enabled
    return source.image is None or sources.image.enabled


def _climbs(path: str) -> bool:
    return ".." in path.split("/")


def _below(path: str, prefixes: Iterable[str]) -> bool:
    clean = posixpath.normpath(path)
    return any(
        clean == prefix.rstrip("/") or clean.startswith(prefix.rstrip("/") + "/")
        for prefix in prefixes
    )


def host_path_enabled(given: Admission) -> Violation | None:
    """A hostPath source must be opted in."""
    source = given.intent.spec.model.source.host_path
    if source is None or given.settings.sources.hostPath.enabled:
        return None
    return Violation(
        reason=Reason.SOURCE_DISABLED,
        message=(
            f"spec.model.source.hostPath.path is {source.path}, but this installation does not "
            "mount folders of nodes. Use a persistentVolumeClaim, or ask the administrator to set "
            "the chart's sources.hostPath.enabled and sources.hostPath.allowedPrefixes."
        ),
    )


def host_path_allowed(given: Admission) -> Violation | None:
    """A hostPath source must lie below an allowed prefix, without `..`."""
    source = given.intent.spec.model.source.host_path
    if source is None:
        return None
    prefixes = given.settings.sources.hostPath.allowedPrefixes
    climbs = _climbs(source.path)
    if _below(source.path, prefixes) and not climbs:
        return None
    return Violation(
        reason=Reason.SOURCE_PATH_NOT_ALLOWED,
        message=(
            f"spec.model.source.hostPath.path is {source.path}, which "
            + ("contains '..'" if climbs else "lies outside the allowed prefixes")
            + f" (the chart's sources.hostPath.allowedPrefixes: {', '.join(prefixes) or 'none'}). "
            "Move the model below one of them, or ask the administrator to add its folder."
        ),
    )


def path_below_its_volume(given: Admission) -> Violation | None:
    """A path in a claim or image must not leave it: a shared worker has others' volumes beside."""
    source = given.intent.spec.model.source
    for field, one in (
        ("persistentVolumeClaim", source.persistent_volume_claim),
        ("image", source.image),
    ):
        path = (one.path if one is not None else None) or "."
        if posixpath.normpath(path).split("/")[0] == "..":
            return Violation(
                reason=Reason.SOURCE_PATH_NOT_ALLOWED,
                message=(
                    f"spec.model.source.{field}.path is {path}, which leaves the volume. Give a "
                    "path below its root, without '..'."
                ),
            )
    return None


def hub_enabled(given: Admission) -> Violation | None:
    """A huggingFace source must be opted in."""
    source = given.intent.spec.model.source.hugging_face
    if source is None or given.settings.sources.huggingFace.enabled:
        return None
    return Violation(
        reason=Reason.SOURCE_DISABLED,
        message=(
            f"spec.model.source.huggingFace.repository is {source.repository}, but this "
            "installation downloads nothing. Use a persistentVolumeClaim, or ask the administrator "
            "to set the chart's sources.huggingFace.enabled."
        ),
    )


def image_enabled(given: Admission) -> Violation | None:
    """An image source must be opted in."""
    source = given.intent.spec.model.source.image
    if source is None or given.settings.sources.image.enabled:
        return None
    return Violation(
        reason=Reason.SOURCE_DISABLED,
        message=(
            f"spec.model.source.image.reference is {source.reference}, but this installation "
            "mounts no images. Use a persistentVolumeClaim, or ask the administrator to set the "
            "chart's sources.image.enabled."
        ),
    )


def name_free(given: Admission) -> Violation | None:
    """Two intents of a namespace cannot serve the same model name."""
    if not given.name_taken_by:
        return None
    return Violation(
        reason=Reason.MODEL_NAME_TAKEN,
        message=(
            f"The model name {given.intent.public_name} is served by the older InferenceIntent "
            f"{given.name_taken_by}. Give spec.model.name another value."
        ),
    )


CHAIN: Final[tuple[Callable[[Admission], Violation | None], ...]] = (
    host_path_enabled,
    host_path_allowed,
    path_below_its_volume,
    hub_enabled,
    image_enabled,
    name_free,
)


def first_violation(given: Admission) -> Violation | None:
    """Return the first violation of the chain, None where all hold."""
    for policy in CHAIN:
        violation = policy(given)
        if violation is not None:
            return violation
    return None
