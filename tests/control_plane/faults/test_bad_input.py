"""Bad input of every kind (planner.md §9): it is told, and it moves nothing that serves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.faults import bench as benches
from e2e.faults.bench import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from e2e.cluster.api import Cluster
    from e2e.faults.bench import Bench

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(600)]

LOAD = {"requestsPerSecond": "0.5", "promptTokens": 64, "outputTokens": 32}
FINGERPRINTS = "app.kubernetes.io/component=fingerprint"
# Objects that cannot be planned: what is asked for, the condition and reason, and what is named.
REFUSED: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "strange": ({}, "Fingerprinted", "UnsupportedModel", "num_key_value_heads"),
    "long": (
        {"load": LOAD | {"promptTokens": 4000}},
        "Planned",
        "ConstraintsExcludeAll",
        "the model's context is 2048",
    ),
    "split": (
        {"constraints": {"tensorParallelSizes": [2]}},
        "Planned",
        "ConstraintsExcludeAll",
        "ensor parallel size 2",
    ),
    "coarse": (
        {"constraints": {"precisions": ["fp8"]}},
        "Planned",
        "ConstraintsExcludeAll",
        "spec.constraints.precisions allows fp8",
    ),
}


@pytest.fixture
def quick(
    control_plane: Cluster,
    installation: benches.Installation,
    node: None,
    models: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    """An operator whose rests are over in seconds, so that what would move soon moves."""
    times = {"TRIMTAB_POLICY_TIME_DIVISOR": "200"}
    folder = tmp_path_factory.mktemp("quick")
    with benches.bench(control_plane, installation, folder, models=models, **times) as found:
        yield found


def _deployment(bench: Bench, name: str = "chat") -> dict[str, Any]:
    return next(d for d in bench.list("deployments") if d["metadata"]["name"].startswith(name))


def _serving(bench: Bench) -> dict[str, Any]:
    """Return what must not change: pods, template and replicas of `chat`."""
    found = _deployment(bench)
    spec = found["spec"]
    return {
        "uid": found["metadata"]["uid"],
        "template": spec["template"],
        "replicas": spec["replicas"],
        "pods": bench.worker_pods(),
    }


def _served(bench: Bench, **spec: Any) -> dict[str, Any]:
    """Have `chat` serve a plan that rests on measurements, and return what must not change."""
    bench.apply(bench.intent(**spec))
    bench.wait("chat measured", lambda: _has(bench, "chat", "Fingerprinted", "Measured"))
    bench.wait_settled()
    bench.wait("what the measurement replaced to go", lambda: _still(bench))
    return _serving(bench)


def _still(bench: Bench) -> bool:
    """Tell whether no roll is under way: as many pods as are asked for, all of the newest template."""
    found = _deployment(bench)
    wanted, status = found["spec"]["replicas"], found["status"]
    up = (status.get("updatedReplicas"), status.get("readyReplicas"), len(bench.list("pods")))
    return (
        status.get("observedGeneration") == found["metadata"]["generation"] and up == (wanted,) * 3
    )


def _has(bench: Bench, name: str, kind: str, reason: str) -> dict[str, Any] | None:
    found = st.condition(bench.get(name) or {}, kind)
    return found if found.get("reason") == reason else None


def _planned(bench: Bench) -> dict[str, Any] | None:
    """Return `chat` once it is planned at its newest generation: what pods then do is not waited for."""
    intent = bench.get() or {}
    found = st.condition(intent, "Planned")
    newest = found.get("observedGeneration") == intent.get("metadata", {}).get("generation")
    return intent if newest and found.get("status") == "True" else None


def test_bad_intents_are_told_why_and_touch_nobody(bench: Bench) -> None:
    """Each condition names object, field and remedy; the one that serves keeps its pods and its plan."""
    before = _served(bench)
    strange = bench.intent("strange")
    folder = bench.models / "strange"
    (folder / "refusal").write_text(
        "UnsupportedModel\nconfig.json lacks num_key_value_heads. Add the key."
    )
    bench.apply(strange)
    for name, (spec, *_) in REFUSED.items():
        if name != "strange":
            bench.apply(bench.intent(name, **spec))
    for name, (_, kind, reason, named) in REFUSED.items():
        told = bench.wait(
            f"{name}: {reason}", lambda n=name, k=kind, r=reason: _has(bench, n, k, r)
        )
        assert named in told["message"], told
        assert f"{bench.namespace}/{name}" in told["message"]
        assert st.condition(bench.get(name) or {}, "Ready")["status"] == "False"
    assert {d["metadata"]["name"].split("-")[0] for d in bench.list("deployments")} == {"chat"}
    assert _serving(bench) == before


def test_odd_loads_are_planned_by_their_own_rules(bench: Bench) -> None:
    """Rate 0 is no load, one output token has no TPOT, and a precision nobody runs is an alternative."""
    zero = bench.intent(
        load=LOAD | {"requestsPerSecond": "0"}, constraints={"precisions": ["bf16", "fp8"]}
    )
    bench.apply(zero)
    status = bench.wait("a plan without load", lambda: _planned(bench))["status"]
    assert status["plan"]["load"]["source"] == "Assumed"
    assert status["plan"]["replicas"] == 1
    assert "LoadAssumed" in status["plan"]["message"]
    lost = {a["reason"]: a["message"] for a in status["alternatives"]}
    assert "cannot run fp8" in lost["PrecisionUnsupported"]
    one = bench.intent(
        load=LOAD | {"outputTokens": 1},
        objective="TargetLatency",
        targets={"timePerOutputTokenMilliseconds": 1, "timeToFirstTokenMilliseconds": 5000},
        infeasible="Refuse",
    )
    bench.apply(one)
    bench.wait("a plan for one token", lambda: _planned(bench))
    assert _has(bench, "chat", "Planned", "Chosen")


def test_spoilt_documents_and_foreign_edits_move_nothing(quick: Bench) -> None:
    """A wrong fingerprint, price book or note on a Deployment is told; what serves goes on, also after a restart."""
    bench = quick
    before = _served(bench, objective="MinLatency")
    prices = bench.cluster.get("configmap", "trimtab-prices", "-n", SYSTEM)["data"]["prices.yaml"]
    notes = _deployment(bench)["metadata"]["annotations"]
    try:
        _spoil(bench, prices, notes["trimtab.dev/rollout"])
        _told(bench)
        assert _serving(bench) == before
        bench.operator.kill()
        bench.wait("the operator to lead again", bench.operator.ready)
        bench.wait("fingerprints measured anew", lambda: not _spoilt(bench))
        bench.wait_settled()
        assert _serving(bench) == before
    finally:
        _patch(bench, "trimtab-prices", {"data": {"prices.yaml": prices}})


def _fingerprints(bench: Bench) -> list[dict[str, Any]]:
    return list(bench.cluster.get("configmaps", "-n", SYSTEM, "-l", FINGERPRINTS)["items"])


def _spoilt(bench: Bench) -> list[str]:
    return [
        f["metadata"]["name"] for f in _fingerprints(bench) if '"gpuSeconds":7' in str(f["data"])
    ]


def _patch(bench: Bench, name: str, patch: dict[str, Any]) -> None:
    bench.cluster.kubectl(
        "patch", "configmap", name, "-n", SYSTEM, "--type", "merge", "-p", json.dumps(patch)
    )


def _spoil(bench: Bench, prices: str, note: str) -> None:
    """Make every other configuration look a hundred times faster, and garble the rest."""
    _patch(bench, "trimtab-prices", {"data": {"prices.yaml": prices.replace("cpuHour", "cpuHuor")}})
    for found in _fingerprints(bench):
        document = json.loads(found["data"]["fingerprint.json"])
        other = document["key"]["threads"] != json.loads(note)["config"]["threads"]
        times = slice(2, 6)
        for row in (*document["decode"], *document["prefill"]) if other else ():
            row[times] = [max(1, t // 100) for t in row[times]]
        text = json.dumps(document | {"gpuSeconds": 7}, separators=(",", ":"))
        _patch(bench, found["metadata"]["name"], {"data": {"fingerprint.json": text}})
    edited = json.loads(note)
    edited["config"]["threads"] = 3 - edited["config"]["threads"]
    bench.cluster.kubectl(
        "annotate", "deployment", _deployment(bench)["metadata"]["name"], "-n", bench.namespace,
        "--overwrite", f"trimtab.dev/rollout={json.dumps(edited)}",
    )  # fmt: skip

    def put_back() -> bool:
        return bool(_deployment(bench)["metadata"]["annotations"]["trimtab.dev/rollout"] == note)

    bench.wait("the note to be put back", put_back)


def _told(bench: Bench) -> None:
    """Wait for an event per spoilt document that names its key."""

    def events() -> dict[str, str] | None:
        found = bench.cluster.get("events.events.k8s.io", "-n", SYSTEM)["items"]
        notes = {e["reason"]: e["note"] for e in found if e["regarding"]["kind"] == "ConfigMap"}
        return notes if {"FingerprintInvalid", "PriceBookInvalid"} <= notes.keys() else None

    notes = bench.wait("both events", events)
    assert "key fingerprint.json" in notes["FingerprintInvalid"]
    assert "cpuHuor" in notes["PriceBookInvalid"]
