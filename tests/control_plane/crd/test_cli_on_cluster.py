"""`trimtab why` and `trimtab finalizers release` against a real API server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.api.manifest_cases import a_profile, an_intent, named
from tests.unit.cli.statuses import a_served_intent
from trimtab.api.v1alpha1.inferenceintent import InferenceIntent
from trimtab.api.v1alpha1.names import FINALIZER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.control_plane.crd.conftest import Api

pytestmark = pytest.mark.control_plane

APPLY = "application/apply-patch+yaml"


@pytest.fixture
def served(api: Api) -> Iterator[dict[str, Any]]:
    """The intent `default/why`, with the status that an operator would have written."""
    body = a_served_intent()
    body["metadata"] = {"name": "why", "namespace": "default"}
    path = f"{api.collection(body)}/why"
    created = api.apply({k: v for k, v in body.items() if k != "status"}, force="true")
    assert created.code == 201, created.message
    written = api.request(
        "PATCH",
        f"{path}/status",
        body,
        query={"fieldManager": "trimtab-operator", "fieldValidation": "Strict"},
        content_type=APPLY,
    )
    assert written.code == 200, written.message
    yield written.body
    api.request("DELETE", path)


def run(control_plane: Any, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trimtab.cli", *words],
        env=os.environ | {"KUBECONFIG": str(control_plane.kubeconfig), "COLUMNS": "180"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_status_that_an_operator_writes_is_kept_whole(served: dict[str, Any]) -> None:
    """Nothing of a full status is pruned, and the models read it back unchanged."""
    expected = a_served_intent()["status"]
    assert served["status"] == expected
    assert InferenceIntent.from_cluster(served).to_manifest()["status"] == expected


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("target", ["ii/why", "inferenceintent/why", "InferenceIntents/why"])
def test_why_explains_an_object_of_the_cluster(control_plane: Any, target: str) -> None:
    """Every spelling that kubectl takes finds the object, in the context's namespace by default."""
    done = run(control_plane, "why", target)
    assert done.returncode == 0, done.stderr
    assert "InferenceIntent default/why is ready: Serving" in done.stdout
    assert "2 x cpu, 1 thread, bf16" in done.stdout


@pytest.mark.usefixtures("served")
def test_why_for_programs_is_json(control_plane: Any) -> None:
    """`-o json` gives one document with conditions, plan and alternatives."""
    found = json.loads(run(control_plane, "why", "ii/why", "-o", "json").stdout)
    assert found["plan"]["predicted"]["timePerOutputTokenMilliseconds"] == "35.4"
    assert [a["reason"] for a in found["alternatives"]] == ["MissesTarget", "PriceUnknown"]


@pytest.mark.usefixtures("api")
def test_why_says_where_it_looked(control_plane: Any) -> None:
    """A missing object is named with its namespace and the flag to change it."""
    done = run(control_plane, "why", "ii/nobody", "-n", "kube-system")
    assert done.returncode == 1
    assert "InferenceIntent nobody does not exist in namespace kube-system" in done.stderr


def test_release_takes_our_finalizer_and_leaves_others(api: Api, control_plane: Any) -> None:
    """After the release deleted objects go; a foreign finalizer still holds its object."""
    intent, profile = named(an_intent(), "held"), named(a_profile(), "held")
    intent["metadata"] = intent["metadata"] | {"finalizers": [FINALIZER, "example.com/mine"]}
    profile["metadata"] = profile["metadata"] | {"finalizers": [FINALIZER]}
    paths = {}
    for manifest in (intent, profile):
        assert api.apply(manifest, force="true").code == 201
        paths[manifest["kind"]] = f"{api.collection(manifest)}/held"
        api.request("DELETE", paths[manifest["kind"]])
        assert api.request("GET", paths[manifest["kind"]]).code == 200
    try:
        done = run(control_plane, "finalizers", "release", "-o", "json")
        assert done.returncode == 0, done.stderr
        released = {(r["kind"], r["name"]) for r in json.loads(done.stdout)["released"]}
        assert {("InferenceIntent", "held"), ("GPUProfile", "held")} <= released
        assert api.request("GET", paths["GPUProfile"]).code == 404
        kept = api.request("GET", paths["InferenceIntent"])
        assert kept.body["metadata"]["finalizers"] == ["example.com/mine"]
    finally:
        api.request(
            "PATCH",
            paths["InferenceIntent"],
            {"metadata": {"finalizers": None}},
            content_type="application/merge-patch+json",
        )
    again = run(control_plane, "finalizers", "release", "-o", "json")
    assert "held" not in again.stdout


def test_an_interrupted_benchmark_leaves_nothing(
    api: Api, control_plane: Any, tmp_path: Any
) -> None:
    """`bench planner-cpu` that is told to end while it waits for a roll-out deletes what it created."""
    words = ["bench", "planner-cpu", "--short", "--namespace", "bench-gone"]
    words += ["--source", "{hostPath: {path: /models}}", "--results", str(tmp_path / "r.jsonl")]
    space = "/api/v1/namespaces/bench-gone"
    intent = "/apis/trimtab.dev/v1alpha1/namespaces/bench-gone/inferenceintents/bench-bf16"
    with subprocess.Popen(
        [sys.executable, "-m", "trimtab.bench.planner_cpu", *words[1:]],
        env=os.environ | {"KUBECONFIG": str(control_plane.kubeconfig)},
        stderr=subprocess.PIPE,
        text=True,
    ) as bench:
        assert bench.stderr is not None
        # The first look at the intent comes after it was created.
        said = next((line for line in bench.stderr if line.startswith("bench-bf16:")), "")
        created = api.request("GET", intent)
        bench.terminate()
        rest = bench.stderr.read()
        code = bench.wait(60)
    assert said, rest
    assert created.code == 200
    assert created.body["spec"]["constraints"]["precisions"] == ["bf16"]
    assert code == 130, rest
    assert api.request("GET", intent).code == 404
    left = api.request("GET", space)
    assert left.code == 404 or left.body["metadata"].get("deletionTimestamp")
