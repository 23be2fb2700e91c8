"""What a failed API request means for the step that made it (operator.md, section 5)."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import aiohttp

_INTERNAL_ERROR: Final = 500
_QUOTA: Final = re.compile(r"exceeded quota: ([^,]+)")
_MANAGER: Final = re.compile(r'conflict(?:s)? with "([^"]+)"')
_FORBIDDEN: Final = re.compile(
    r'cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)"'
    r'(?: in API group "(?P<group>[^"]*)")?(?: in the namespace "(?P<namespace>[^"]+)")?'
)


class ApiError(Exception):
    """The API server answered with an error; holds its status code and Status object."""

    def __init__(
        self,
        *,
        method: str,
        path: str,
        code: int,
        status: dict[str, Any],
        retry_after_seconds: float | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.code = code
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        super().__init__(
            f"{method} {path} was answered with {code} "
            f"{status.get('reason', '')}: {status.get('message', '')}"
        )


class NotLeadingError(RuntimeError):
    """This replica's last renewal is too old to write; another may lead already."""


class FaultKind(Enum):
    """One member per thing a caller can do about a failed request."""

    CONFLICT = "Conflict"
    FIELD_CONFLICT = "FieldConflict"
    INVALID = "Invalid"
    QUOTA_EXCEEDED = "QuotaExceeded"
    MISSING_PERMISSION = "MissingPermission"
    NAMESPACE_GONE = "NamespaceGone"
    NOT_FOUND = "NotFound"
    UNAUTHENTICATED = "Unauthenticated"
    THROTTLED = "Throttled"
    UNAVAILABLE = "Unavailable"
    NOT_LEADING = "NotLeading"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A classified failure; `message` is a sentence for a condition."""

    kind: FaultKind
    message: str
    retry_after_seconds: float | None = None
    verb: str = ""
    resource: str = ""
    namespace: str = ""


_OF_ONE_OBJECT: Final = frozenset(
    {
        FaultKind.CONFLICT,
        FaultKind.FIELD_CONFLICT,
        FaultKind.INVALID,
        FaultKind.QUOTA_EXCEEDED,
        FaultKind.MISSING_PERMISSION,
        FaultKind.NAMESPACE_GONE,
        FaultKind.NOT_FOUND,
    }
)


def parse_status(body: bytes, *, code: int) -> dict[str, Any]:
    """Return the Status object of an error answer, or one made up from its text."""
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if isinstance(status, dict):
        return status
    return {"code": code, "message": body[:500].decode(errors="replace")}


def classify(error: BaseException) -> Fault | None:
    """Return what an exception of a request means, or None where it is no API failure."""
    if isinstance(error, NotLeadingError):
        return Fault(kind=FaultKind.NOT_LEADING, message=str(error))
    if isinstance(error, ApiError):
        return _of_answer(error)
    if isinstance(error, (aiohttp.ClientError, asyncio.TimeoutError, OSError)):
        return Fault(
            kind=FaultKind.UNAVAILABLE,
            message=f"The API server did not answer ({type(error).__name__}: {error}).",
        )
    return None


def refused(error: BaseException) -> Fault | None:
    """Return why one object was refused; None where every other request would fail as well."""
    fault = classify(error)
    if fault is None or fault.kind in _OF_ONE_OBJECT:
        return fault
    # A webhook that is away answers 500, and only where it selects the object or its namespace.
    answered = isinstance(error, ApiError) and error.code == _INTERNAL_ERROR
    return fault if answered and "webhook" in fault.message else None


def _of_answer(error: ApiError) -> Fault:
    message = str(error.status.get("message", "")) or str(error)
    details = error.status.get("details") or {}
    match error.code:
        case 401:
            kind = FaultKind.UNAUTHENTICATED
        case 403:
            return _forbidden(error, message)
        case 404 if details.get("kind") == "namespaces" or "namespaces " in message:
            kind = FaultKind.NAMESPACE_GONE
        case 404:
            kind = FaultKind.NOT_FOUND
        case 409 if any(c.get("reason") == "FieldManagerConflict" for c in _causes(details)):
            return _field_conflict(details, message)
        case 409:
            kind = FaultKind.CONFLICT
        case 400 | 413 | 422:
            return Fault(kind=FaultKind.INVALID, message=_invalid(details, message))
        case 429:
            kind = FaultKind.THROTTLED
        case _:
            kind = FaultKind.UNAVAILABLE
    return Fault(kind=kind, message=message, retry_after_seconds=error.retry_after_seconds)


def _causes(details: dict[str, Any]) -> list[dict[str, Any]]:
    return details.get("causes") or []


def _field_conflict(details: dict[str, Any], message: str) -> Fault:
    fields = [str(c.get("field", "?")) for c in _causes(details)]
    managers = sorted(
        {m for c in _causes(details) for m in _MANAGER.findall(str(c.get("message", "")))}
    )
    return Fault(
        kind=FaultKind.FIELD_CONFLICT,
        message=(
            f"Field {', '.join(fields)} belongs to manager {', '.join(managers) or 'unknown'}; "
            "let that manager give it up, or remove it from the other's configuration. "
            f"({message})"
        ),
    )


def _invalid(details: dict[str, Any], message: str) -> str:
    fields = [f"{c.get('field', '?')}: {c.get('message', '')}" for c in _causes(details)]
    return "; ".join(fields) or message


def _forbidden(error: ApiError, message: str) -> Fault:
    if quota := _QUOTA.search(message):
        return Fault(
            kind=FaultKind.QUOTA_EXCEEDED,
            message=f"ResourceQuota {quota.group(1)} is used up; raise it, or lower the load "
            f"that the intent declares. ({message})",
        )
    if "because it is being terminated" in message:
        return Fault(kind=FaultKind.NAMESPACE_GONE, message=message)
    if found := _FORBIDDEN.search(message):
        group = found["group"] or ""
        resource = f"{found['resource']}.{group}" if group else found["resource"]
        namespace = found["namespace"] or ""
        where = f"in namespace {namespace}" if namespace else "in the cluster"
        return Fault(
            kind=FaultKind.MISSING_PERMISSION,
            verb=found["verb"],
            resource=resource,
            namespace=namespace,
            message=f"The operator may not {found['verb']} {resource} {where}; "
            "restore the rule in its role (the chart's RBAC has it).",
        )
    # Admission (Pod Security, policies, webhooks) answers 403 as well: its sentence is the remedy.
    return Fault(kind=FaultKind.INVALID, message=f"Refused by admission: {message} ({error.path})")
