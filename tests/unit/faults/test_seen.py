"""What the proxy reads from a request, and how writes are counted."""

from __future__ import annotations

import base64
import json

import pytest

from e2e.faults.seen import Seen, describe, identity
from e2e.faults.writes import writes

ROWS = [
    ("GET", "/api/v1/pods", {}, ("list", "", "pods", "", "", "")),
    ("GET", "/api/v1/pods", {"watch": "true"}, ("watch", "", "pods", "", "", "")),
    ("GET", "/api/v1/namespaces/a/pods/p/log", {}, ("get", "", "pods", "log", "a", "p")),
    ("GET", "/api/v1/namespaces/a", {}, ("get", "", "namespaces", "", "a", "a")),
    ("PATCH", "/api/v1/namespaces/a/status", {}, ("patch", "", "namespaces", "status", "a", "a")),
    ("POST", "/api/v1/namespaces", {}, ("create", "", "namespaces", "", "", "")),
    ("DELETE", "/apis/apps/v1/namespaces/a/deployments", {}, ("deletecollection", "apps", "deployments", "", "a", "")),
    ("DELETE", "/apis/apps/v1/namespaces/a/deployments/d", {}, ("delete", "apps", "deployments", "", "a", "d")),
    ("PUT", "/apis/trimtab.dev/v1alpha1/gpuprofiles/g/status", {}, ("update", "trimtab.dev", "gpuprofiles", "status", "", "g")),
    ("GET", "/readyz", {}, ("get", "", "", "", "", "")),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "query", "expected"), ROWS)
def test_request_is_read_as_the_server_reads_it(method, path, query, expected):
    """Verb, group, resource, subresource, namespace and name follow from method and path."""
    seen = describe(method, path, query=query, headers={}, at=0)
    found = (seen.verb, seen.group, seen.resource, seen.subresource, seen.namespace, seen.name)
    assert found == expected


def test_identity_is_the_subject_of_an_account_token():
    """A ServiceAccount token shows its subject; any other token only a digest."""
    claims = base64.urlsafe_b64encode(json.dumps({"sub": "system:serviceaccount:a:b"}).encode())
    token = f"h.{claims.decode().rstrip('=')}.s"
    assert identity({"Authorization": f"Bearer {token}"}) == "system:serviceaccount:a:b"
    assert identity({"Authorization": "Bearer opaque"}).startswith("token:")
    assert identity({}) == ""


@pytest.mark.parametrize(
    ("path", "query", "mutating"),
    [
        ("/api/v1/namespaces/a/configmaps", {}, True),
        ("/api/v1/namespaces/a/configmaps", {"dryRun": "All"}, False),
        ("/apis/authentication.k8s.io/v1/tokenreviews", {}, False),
        ("/apis/authorization.k8s.io/v1/subjectaccessreviews", {}, False),
        ("/api/v1/namespaces/a/serviceaccounts/b/token", {}, False),
    ],
)
def test_questions_and_dry_runs_are_no_writes(path, query, mutating):
    """A POST that stores nothing does not count as a write."""
    assert describe("POST", path, query=query, headers={}, at=0).mutating is mutating


def test_writes_are_counted_per_minute_with_leases_apart():
    """A window counts writes, Lease renewals and reads of one identity, and leaves out the rest."""
    log = [
        Seen(at=1, verb="patch", resource="configmaps", identity="op"),
        Seen(at=2, verb="patch", resource="leases", identity="op"),
        Seen(at=3, verb="list", resource="pods", identity="op"),
        Seen(at=4, verb="create", resource="pods", identity="scheduler"),
        Seen(at=31, verb="patch", resource="configmaps", identity="op"),
    ]
    found = writes(log, since=0, until=30, identity="op")
    assert (found.writes, found.leases, found.reads, found.per_minute) == (1, 1, 1, 2.0)
    assert str(found).startswith("1 mutating requests in 30 s (patch configmaps 1)")
