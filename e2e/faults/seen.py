"""What a request to a Kubernetes API server asks for, read from its method, path and headers."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
_QUESTIONS = frozenset(
    {"tokenreviews", "subjectaccessreviews", "selfsubjectaccessreviews", "selfsubjectreviews",
     "selfsubjectrulesreviews", "localsubjectaccessreviews"}
)  # fmt: skip
_REVIEW_GROUPS = frozenset({"authentication.k8s.io", "authorization.k8s.io"})


@dataclasses.dataclass(slots=True, kw_only=True)
class Seen:
    """One request as it passed the proxy; `status` and `fault` are filled in as it goes on."""

    at: float
    """Seconds of the proxy's monotonic clock."""
    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    identity: str = ""
    """The subject in a ServiceAccount token, else a digest of the credentials; never the token."""
    user_agent: str = ""
    manager: str = ""
    dry_run: bool = False
    status: int = 0
    """HTTP status that the server gave, 0 before that or where it was not asked."""
    fault: str = ""
    """Which fault was injected into the request, by name."""
    path: str = ""

    @property
    def mutating(self) -> bool:
        """Whether it can change what the server stores: no dry runs, no reviews, no tokens."""
        question = self.group in _REVIEW_GROUPS and self.resource in _QUESTIONS
        token = self.subresource == "token"
        return self.verb in WRITES and not (self.dry_run or question or token)

    @property
    def lease(self) -> bool:
        """Whether it is about a Lease."""
        return self.resource == "leases"

    def as_json(self) -> dict[str, Any]:
        """Return the fields, and whether it is mutating."""
        return {**dataclasses.asdict(self), "mutating": self.mutating}


def identity(headers: Mapping[str, str]) -> str:
    """Return who sends a request, as far as its bearer token tells; the token is not checked."""
    kind, _, token = headers.get("Authorization", "").partition(" ")
    if kind != "Bearer" or not token:
        return ""
    parts = token.split(".")
    if len(parts) == 3:
        try:
            padded = parts[1] + "=" * (-len(parts[1]) % 4)
            return str(json.loads(base64.urlsafe_b64decode(padded))["sub"])
        except (ValueError, KeyError, TypeError):
            pass
    return "token:" + hashlib.sha256(token.encode()).hexdigest()[:8]


def describe(
    method: str, path: str, *, query: Mapping[str, str], headers: Mapping[str, str], at: float
) -> Seen:
    """Return what a request asks for; a path that is no resource has neither group nor resource."""
    parts = [part for part in path.split("/") if part]
    group = ""
    if parts[:1] == ["api"]:
        rest = parts[2:]
    elif parts[:1] == ["apis"]:
        group, rest = (parts[1] if len(parts) > 1 else ""), parts[3:]
    else:
        rest = []
    namespace = ""
    if len(rest) > 1 and rest[0] == "namespaces":
        namespace = rest[1]
        rest = rest[2:] if len(rest) > 2 and rest[2] not in {"status", "finalize"} else rest
    resource, name, subresource = (*rest, "", "", "")[:3]
    watching = query.get("watch", "").lower() in {"1", "true"}
    verb = _VERBS.get(method, "")
    if method in {"GET", "HEAD"}:
        verb = "watch" if watching else ("get" if name or not resource else "list")
    elif method == "DELETE":
        verb = "delete" if name else "deletecollection"
    return Seen(
        at=at, verb=verb or method.lower(), group=group, resource=resource, subresource=subresource,
        namespace=namespace, name=name, identity=identity(headers), path=path,
        user_agent=headers.get("User-Agent", ""), manager=query.get("fieldManager", ""),
        dry_run=bool(query.get("dryRun")),
    )  # fmt: skip
