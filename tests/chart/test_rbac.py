"""Rights: no wildcards, no Secrets, and for each process exactly the documented rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

LEASE = "trimtab-operator"
GATEWAY = {
    ("", "discovery.k8s.io", "endpointslices", (), ("list", "watch")),
    ("", "authentication.k8s.io", "tokenreviews", (), ("create",)),
    ("", "authorization.k8s.io", "subjectaccessreviews", (), ("create",)),
    ("trimtab-system", "", "configmaps", (), ("list", "watch")),
}
Row = tuple[str, str, str, tuple[str, ...], tuple[str, ...]]


def rows(role: dict[str, Any], namespace: str) -> set[Row]:
    """Return one (namespace, group, resource, names, verbs) per group and resource of a role."""
    return {
        (
            namespace,
            group,
            resource,
            tuple(rule.get("resourceNames", ())),
            tuple(sorted(rule["verbs"])),
        )
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def granted(objects: list[dict[str, Any]], account: str) -> set[Row]:
    """Return what a ServiceAccount of the release may do, through every binding that names it."""
    found: set[Row] = set()
    for binding in objects:
        if not binding["kind"].endswith("RoleBinding"):
            continue
        if account not in [subject["name"] for subject in binding["subjects"]]:
            continue
        assert [s["namespace"] for s in binding["subjects"]] == ["trimtab-system"]
        reference = binding["roleRef"]
        (role,) = [
            o
            for o in objects
            if o["kind"] == reference["kind"] and o["metadata"]["name"] == reference["name"]
        ]
        found |= rows(role, binding["metadata"].get("namespace", ""))
    return found


def documented(subject: str) -> set[Row]:
    """Return the rows that the operator's own table gives to a subject."""
    from trimtab.kube import rbac

    return {
        (
            "trimtab-system" if rule.scope == "system" else "",
            rule.api_group,
            rule.resource,
            tuple(n.replace(rbac.LEASE_NAME_PLACEHOLDER, LEASE) for n in rule.resource_names),
            tuple(sorted(rule.verbs)),
        )
        for rule in rbac.RULES
        if rule.subject == subject
    }


def test_nothing_grants_wildcards_or_secrets(render: Callable[..., Any]) -> None:
    """No role of the chart, hooks and tests included, has a wildcard, a right on Secrets or a way to gain more."""
    model = {"source": {"persistentVolumeClaim": {"claimName": "models", "path": "tiny"}}}
    roles = [o for o in render({"test": {"model": model}}) if o["kind"].endswith("Role")]
    assert len(roles) >= 8
    for role in roles:
        for rule in role["rules"]:
            values = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert "*" not in values, role["metadata"]["name"]
            assert "secrets" not in rule["resources"], role["metadata"]["name"]
            assert not values & {"escalate", "impersonate", "bind"}, role["metadata"]["name"]


@pytest.mark.parametrize(
    ("subject", "account"),
    [("operator", "trimtab-operator"), ("release", "trimtab-release-finalizers")],
)
def test_rights_equal_the_table_that_gives_their_reasons(
    subject: str, account: str, render: Callable[..., Any]
) -> None:
    """The chart grants the operator and its clean-up hook what `trimtab.kube.rbac` lists, no more, no less."""
    assert granted(render(), account) == documented(subject)


def test_the_gateway_reads_routes_and_asks_for_reviews(render: Callable[..., Any]) -> None:
    """The gateway may watch EndpointSlices and its own namespace's ConfigMaps and create reviews, nothing else."""
    assert granted(render(), "trimtab-gateway") == GATEWAY


def test_without_authentication_the_gateway_asks_for_no_reviews(render: Callable[..., Any]) -> None:
    """`gateway.auth: None` takes the two review rights away."""
    found = granted(render({"gateway": {"auth": "None"}}), "trimtab-gateway")
    assert found == {row for row in GATEWAY if not row[2].endswith("reviews")}


def test_people_get_their_rights_through_the_clusters_own_roles(render: Callable[..., Any]) -> None:
    """Role view reads all kinds, edit writes the namespaced ones and invokes, admin also writes profiles."""
    roles = {o["metadata"]["name"]: o for o in render() if o["kind"] == "ClusterRole"}
    verbs: dict[tuple[str, str], set[str]] = {}
    for role in roles.values():
        for target in ("view", "edit", "admin"):
            label = f"rbac.authorization.k8s.io/aggregate-to-{target}"
            if role["metadata"]["labels"].get(label) == "true":
                for _, _, resource, _, granted_verbs in rows(role, ""):
                    verbs.setdefault((target, resource), set()).update(granted_verbs)
    read = {"get", "list", "watch"}
    write = {"create", "update", "patch", "delete", "deletecollection"}
    for kind in ("inferenceintents", "serverlessfunctions"):
        assert verbs["view", kind] == read
        assert verbs["edit", kind] == verbs["admin", kind] == read | write | {"invoke"}
    assert verbs["view", "gpuprofiles"] == verbs["edit", "gpuprofiles"] == read
    assert verbs["admin", "gpuprofiles"] == read | write
    off = [o for o in render({"rbac": {"aggregate": False}}) if o["kind"] == "ClusterRole"]
    assert not [k for role in off for k in role["metadata"]["labels"] if "aggregate-to" in k]


def test_invoke_alone_is_a_role_to_bind(render: Callable[..., Any]) -> None:
    """The invoke role gives the right to call and nothing else."""
    (role,) = [o for o in render() if o["metadata"]["name"] == "trimtab-invoke"]
    assert {(row[2], row[4]) for row in rows(role, "")} == {
        ("inferenceintents", ("invoke",)),
        ("serverlessfunctions", ("invoke",)),
    }
