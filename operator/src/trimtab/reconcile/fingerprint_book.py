"""The fingerprints in force: where a document is spoilt, the last valid one goes on (planner.md §9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from trimtab.api.v1alpha1.names import COMPONENT_LABEL, GROUP
from trimtab.observe.digests import digest
from trimtab.planning.fingerprint import FingerprintInvalidError, parse
from trimtab.planning.step_model import fit

if TYPE_CHECKING:
    from trimtab.observe.caches import Caches
    from trimtab.observe.records import ConfigMapRecord
    from trimtab.planning.fingerprint import Fingerprint
    from trimtab.settings import Settings

_log = structlog.get_logger(__name__)

FINGERPRINT_KEY: Final = "fingerprint.json"
SEAL_ANNOTATION: Final = f"{GROUP}/seal"
"""Digest of a document that Trimtab measured: an edit by anybody else shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoilt:
    """A document that is not in force, and why; the message names object, key, field and remedy."""

    record: ConfigMapRecord
    message: str


@dataclass(frozen=True, slots=True)
class _Known:
    read: tuple[str, str]
    """Text and seal that were looked at last."""
    uid: str
    valid: Fingerprint | None
    problem: str


class FingerprintBook:
    """Remembers what each fingerprint's ConfigMap said when it last made sense."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._news: list[Spoilt] = []

    def read(self, caches: Caches, *, settings: Settings) -> tuple[Fingerprint, ...]:
        """Return every fingerprint in force, sorted by the names of their ConfigMaps."""
        known = {}
        for record in sorted(caches.configmaps, key=lambda r: r.name):
            measured = record.labels.get(COMPONENT_LABEL) == "fingerprint"
            if record.namespace == settings.system_namespace and measured:
                known[record.name] = self._look(record)
        self._known = known
        return tuple(one.valid for one in known.values() if one.valid is not None)

    def in_force(self, name: str) -> bool:
        """Tell whether a ConfigMap's document is used, or the last valid one in its place."""
        known = self._known.get(name)
        return known is None or known.valid is not None

    def spoilt(self) -> int:
        """Return how many documents are not used as they are now."""
        return sum(bool(known.problem) for known in self._known.values())

    def news(self) -> tuple[Spoilt, ...]:
        """Return what was found spoilt since this was asked last."""
        news, self._news = tuple(self._news), []
        return news

    def _look(self, record: ConfigMapRecord) -> _Known:
        before = self._known.get(record.name)
        if before is not None and before.uid != record.uid:
            # Somebody deleted it, so that it is measured anew: what it said is gone for good.
            before = None
        text = record.data.get(FINGERPRINT_KEY, "")
        read = text, record.annotations.get(SEAL_ANNOTATION, "")
        if before is not None and before.read == read:
            return before
        try:
            _check_seal(*read)
            valid = parse(text)
            # What no step model fits cannot be planned with.
            fit(valid, depth=1)
        except FingerprintInvalidError as error:
            kept = before.valid if before is not None else None
            message = _message(record, str(error), kept=kept is not None)
            _log.warning("fingerprint_invalid", name=record.name, problem=message)
            self._news.append(Spoilt(record=record, message=message))
            return _Known(read, record.uid, kept, message)
        return _Known(read, record.uid, valid, "")


def _check_seal(text: str, sealed: str) -> None:
    if sealed and sealed != digest(text):
        raise FingerprintInvalidError(
            "It was changed by somebody else than the measurement that wrote it. Delete the "
            "ConfigMap to measure again; to use the change, remove the annotation "
            f"{SEAL_ANNOTATION}."
        )


def _message(record: ConfigMapRecord, problem: str, *, kept: bool) -> str:
    rest = (
        "The last valid document stays in force."
        if kept
        else "No valid one is known; it is measured again where a plan needs it."
    )
    return f"ConfigMap {record.namespace}/{record.name}, key {FINGERPRINT_KEY}: {problem} {rest}"
