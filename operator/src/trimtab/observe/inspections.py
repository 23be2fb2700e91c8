"""What the inspection Job says about a model (contracts §3), and where an inspection stands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from trimtab.planning.architecture import Architecture, UnsupportedArchitectureError
from trimtab.planning.snapshot import ModelView

if TYPE_CHECKING:
    from collections.abc import Mapping

INSPECTION_KEY: Final = "inspection.json"
FAILURES: Final = (
    "ModelNotFound",
    "ModelCorrupt",
    "UnsupportedModel",
    "DownloadFailed",
    "PickleRefused",
)

FailureReason = Literal[
    "ModelNotFound",
    "ModelCorrupt",
    "UnsupportedModel",
    "DownloadFailed",
    "PickleRefused",
    "InspectionFailed",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model as inspected, and on which CPU that happened."""

    model: ModelView
    family: str
    quantization: str | None
    format: str
    parameters: int
    chat_template: bool
    cpu_model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a model cannot be served; `message` names path, fault and remedy."""

    reason: FailureReason
    message: str


def parse_verdict(text: str) -> ModelFacts | Refusal:
    """Read an inspection message; what cannot be read is a refusal, never an exception."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return _unreadable("is not JSON", text)
    if not isinstance(document, dict) or document.get("v") != 1:
        return _unreadable("has another version than 1", text)
    if document.get("ok") is not True:
        reason = document.get("reason")
        return Refusal(
            reason=reason if reason in FAILURES else "InspectionFailed",
            message=str(document.get("message") or "The inspection gave no message."),
        )
    try:
        return _facts(document)
    except UnsupportedArchitectureError as error:
        return Refusal(reason="UnsupportedModel", message=str(error))
    except (KeyError, TypeError, ValueError) as error:
        return _unreadable(f"lacks or garbles a field ({error!r})", text)


def stated_refusal(text: str) -> Refusal | None:
    """Return the refusal that a failed container wrote as its message, None where it wrote none."""
    if not text.lstrip().startswith("{"):
        return None
    verdict = parse_verdict(text)
    if isinstance(verdict, ModelFacts) or verdict.reason == "InspectionFailed":
        return None
    return verdict


def _unreadable(why: str, text: str) -> Refusal:
    return Refusal(
        reason="InspectionFailed",
        message=(
            f"The inspection Job's message {why}: {text[:200]!r}. "
            "Operator and worker image may be of different releases; use the same."
        ),
    )


def _facts(document: Mapping[str, Any]) -> ModelFacts:
    return ModelFacts(
        model=ModelView(
            architecture=Architecture.from_dict(document["architecture"]),
            depth=int(document["depth"]),
            precision=str(document["precision"]),
            weight_bytes=int(document["weightBytes"]),
            context_length=int(document["contextLength"]),
            source=str(document.get("source") or ""),
        ),
        family=str(document.get("family") or ""),
        quantization=document.get("quantization"),
        format=str(document.get("format") or ""),
        parameters=int(document.get("parameters") or 0),
        chat_template=bool(document.get("chatTemplate")),
        cpu_model=str(document.get("cpuModel") or ""),
    )


State = Literal["Absent", "Running", "Failed", "Done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Where reading an intent's model stands."""

    source_digest: str
    state: State
    attempt: int = 0
    job_name: str = ""
    facts: ModelFacts | None = None
    """Of this source, as kept in the ConfigMap."""
    message: str = ""
    """A fresh verdict that is to be kept, as the Job wrote it."""
    node: str = ""
    """Where the Job ran."""
    refusal: Refusal | None = None
    obstacle: str = ""
    """Why the Job's pod does not start; empty where it does."""
    retry_due: bool = False
    retry_in_seconds: float | None = None
