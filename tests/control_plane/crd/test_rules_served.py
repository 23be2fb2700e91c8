"""What a real API server accepts, what it refuses, and the message a user sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.unit.api.manifest_cases import (
    RULE_CASES,
    SCHEMA_CASES,
    SERVER_ONLY_CASES,
    RuleCase,
    SchemaCase,
    a_function,
    a_profile,
    an_intent,
    merged,
    named,
)

if TYPE_CHECKING:
    from tests.control_plane.crd.conftest import Api

pytestmark = pytest.mark.control_plane

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("case", RULE_CASES, ids=lambda case: f"{case.kind}: {case.message}")
def test_rule_accepts_and_refuses_as_the_table_says(api: Api, case: RuleCase) -> None:
    """Each accepted manifest is created; each refused one shows the rule's message and reason."""
    for manifest in case.accepted:
        answer = api.try_create(manifest)
        assert answer.code == 201, answer.message
    for manifest in case.refused:
        answer = api.try_create(manifest)
        assert answer.code == 422, manifest
        causes = [cause for cause in answer.causes if case.message in cause["message"]]
        assert causes, answer.message
        assert causes[0]["reason"] == case.reason


@pytest.mark.parametrize("case", [*SCHEMA_CASES, *SERVER_ONLY_CASES], ids=lambda case: case.id)
def test_user_sees_field_value_and_what_is_expected(api: Api, case: SchemaCase) -> None:
    """The message of a refused manifest names kind, object, field and value."""
    answer = api.try_create(case.manifest)
    assert answer.code == 422
    kind = case.manifest["kind"]
    assert answer.message.startswith(f'{kind}.trimtab.dev "subject" is invalid: ')
    assert case.server in answer.message


@pytest.mark.parametrize(
    "change", [{"nodeSelector": {"pool": "b"}}, {"nodeSelector": {"pool": None, "q": "a"}}]
)
def test_node_selector_of_a_profile_cannot_be_changed(api: Api, change: dict) -> None:
    """Scores belong to the GPUs that were selected, so another pool is another profile."""
    profile = named(a_profile(nodeSelector={"pool": "a"}), "immutable")
    profile["spec"]["nodeSelector"] = {"pool": "a"}
    path = f"{api.collection(profile)}/immutable"
    assert api.apply(profile, force="true").code in {200, 201}
    try:
        kept = api.apply(merged(profile, {"spec": {"intervalHours": 1}}), force="true")
        assert kept.code == 200, kept.message
        answer = api.apply(merged(profile, {"spec": change}), force="true")
        assert answer.code == 422
        assert "spec.nodeSelector cannot be changed" in answer.message
        assert answer.causes[0]["field"] == "spec.nodeSelector"
    finally:
        api.request("DELETE", path)


@pytest.mark.parametrize(
    "manifest",
    [
        an_intent(objektive="MinCost"),
        an_intent(constraints={"gpuProduct": ["cpu"]}),
        a_function(warm={"max": 1}),
        a_profile(interval="1h"),
    ],
    ids=lambda manifest: manifest["kind"],
)
def test_unknown_field_is_refused_by_strict_validation(api: Api, manifest: dict) -> None:
    """A client validates strictly, as kubectl does: a misspelt field is named, not pruned."""
    answer = api.try_create(manifest)
    assert answer.code == 400
    assert "unknown field" in answer.message


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_applied_strictly(api: Api, path: Path) -> None:
    """Every example passes a strict server-side apply, unchanged."""
    documents = [d for d in yaml.safe_load_all(path.read_text()) if "trimtab" in d["apiVersion"]]
    assert documents
    for document in documents:
        if document["kind"] != "GPUProfile":
            document["metadata"]["namespace"] = "default"
        answer = api.apply(document, dryRun="All", force="true")
        assert answer.code in {200, 201}, answer.message
        assert merged(answer.body["spec"], document["spec"]) == answer.body["spec"]


def test_defaults_that_must_be_visible_are_stored_and_no_others(api: Api) -> None:
    """A minimal manifest gains exactly the defaults that the API reference promises."""
    gained = {}
    for manifest in (an_intent(), a_function(), a_profile()):
        spec = api.try_create(manifest).body["spec"]
        gained[manifest["kind"]] = {k: v for k, v in spec.items() if k not in manifest["spec"]}
    assert gained == {
        "InferenceIntent": {"sharing": "Exclusive", "infeasible": "ServeNearest"},
        "ServerlessFunction": {"mode": "Enforce"},
        "GPUProfile": {"outliers": "Avoid"},
    }


def test_two_managers_own_different_conditions_of_one_status(api: Api) -> None:
    """Conditions are a map by type: another manager's condition survives our apply."""
    intent = named(an_intent(), "shared-status")
    path = f"{api.collection(intent)}/shared-status"
    assert api.apply(intent, force="true").code in {200, 201}
    try:
        for manager, kind in (("trimtab-operator", "Ready"), ("somebody", "Approved")):
            body = {
                "apiVersion": intent["apiVersion"],
                "kind": intent["kind"],
                "metadata": intent["metadata"],
                "status": {
                    "conditions": [
                        {
                            "type": kind,
                            "status": "True",
                            "reason": "Serving",
                            "message": "",
                            "lastTransitionTime": "2026-11-01T00:00:00Z",
                        }
                    ]
                },
            }
            answer = api.request(
                "PATCH",
                f"{path}/status",
                body,
                query={"fieldManager": manager, "force": "true"},
                content_type="application/apply-patch+yaml",
            )
            assert answer.code == 200, answer.message
        conditions = api.request("GET", path).body["status"]["conditions"]
        assert {c["type"] for c in conditions} == {"Ready", "Approved"}
    finally:
        api.request("DELETE", path)


def test_columns_short_names_and_category_are_served(api: Api) -> None:
    """A user of `kubectl get ii` sees the columns of the design, and `kubectl get trimtab` finds the kinds."""
    resources = api.request("GET", "/apis/trimtab.dev/v1alpha1").body["resources"]
    found = {r["kind"]: (r["shortNames"], r["categories"]) for r in resources if "shortNames" in r}
    assert found == {
        "InferenceIntent": (["ii"], ["trimtab"]),
        "ServerlessFunction": (["sfn"], ["trimtab"]),
        "GPUProfile": (["gpup"], ["trimtab"]),
    }
    columns = {}
    for name in ("inferenceintents", "serverlessfunctions", "gpuprofiles"):
        version = api.definition(f"{name}.trimtab.dev").body["spec"]["versions"][0]
        columns[name] = [
            c["name"] for c in version["additionalPrinterColumns"] if not c.get("priority")
        ]
    assert columns == {
        "inferenceintents": ["Ready", "Reason", "Model", "Product", "Replicas", "Cost/h", "Age"],
        "serverlessfunctions": ["Ready", "Reason", "Mode", "Pods", "Violations", "Age"],
        "gpuprofiles": ["Ready", "Reason", "GPUs", "Scored", "Outliers", "Age"],
    }
