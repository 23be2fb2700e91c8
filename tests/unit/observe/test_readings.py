"""Documents of Jobs, workers and gateways, and objects of the API server."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from trimtab.observe.capabilities import ASSUMED, newest
from trimtab.observe.inspections import ModelFacts, Refusal, parse_verdict, stated_refusal
from trimtab.observe.quantities import QuantityError, byte_count, millicores, quantity
from trimtab.observe.records import config_map, deployment, node, pod
from trimtab.observe.traffic import merge, two_digits
from trimtab.observe.workers import parse_state


@pytest.mark.parametrize(
    ("text", "value"),
    [("1000m", "1"), ("1", "1"), ("1.5Gi", str(3 * 2**29)), ("1e3", "1000"), ("2k", "2000")],
)
def test_quantities_are_compared_as_numbers(text: str, value: str) -> None:
    """`1000m` and `1` are one quantity."""
    assert quantity(text) == Decimal(value)


def test_no_quantity_is_an_error() -> None:
    """A text that is no quantity is named."""
    with pytest.raises(QuantityError, match="'many'"):
        quantity("many")
    assert millicores("0.0001") == 1
    assert byte_count("1Ki") == 1024


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "InspectionFailed"),
        ("{}", "InspectionFailed"),
        ('{"v":2}', "InspectionFailed"),
        ('{"v":1,"ok":true,"depth":1}', "InspectionFailed"),
        ('{"v":1,"ok":false,"reason":"ModelCorrupt","message":"cut"}', "ModelCorrupt"),
        ('{"v":1,"ok":false,"reason":"Surprise","message":"?"}', "InspectionFailed"),
    ],
)
def test_garbled_verdicts_are_refusals(message: str, reason: str) -> None:
    """Whatever a Job writes ends in a reason, never in an exception."""
    verdict = parse_verdict(message)
    assert isinstance(verdict, Refusal)
    assert verdict.reason == reason


def test_an_unknown_architecture_field_is_unsupported() -> None:
    """A field that may shape the work is not passed over."""
    document = {"v": 1, "ok": True, "architecture": {"warp": 9}, "depth": 1}
    verdict = parse_verdict(json.dumps(document))
    assert isinstance(verdict, Refusal)
    assert verdict.reason == "UnsupportedModel"


def test_a_failed_container_can_state_its_refusal() -> None:
    """A download's refusal is told from a traceback."""
    text = '{"v":1,"ok":false,"reason":"PickleRefused","message":"no"}'
    assert stated_refusal(text) == Refusal(reason="PickleRefused", message="no")
    assert stated_refusal("Traceback (most recent call last): …") is None
    assert not isinstance(stated_refusal("{"), ModelFacts)


def a_document(now: float = 1000.0, **entry: Any) -> dict[str, Any]:
    fields = {
        "counts": [[now - 700, 9, 0, 0, 0], [now - 50, 6, 0, 0, 1], [now - 10, 4, 0, 0, 0]],
        "prompt": {"n": 10, "mean": 100.0, "m2": 0},
        "output": {"n": 10, "mean": 50.0, "m2": 0},
        "ttft_ms": [10.0, 30.0],
        "tpot_ms": [5.0],
        "overhead_ms_p50": 2.0,
    }
    return {"v": 1, "now": now, "intents": {"team/chat": fields | entry}}


def test_gateways_are_merged_over_five_minutes() -> None:
    """Counts add up within the window of each replica's clock, samples are put together."""
    traffic = merge([a_document(1000.0), a_document(9000.0, ttft_ms=[20.0])])["team/chat"]
    assert traffic.requests == 20
    assert traffic.errors == 2
    assert traffic.requests_hour == 38
    assert traffic.requests_per_second == pytest.approx(20 / 50)
    assert traffic.ttft_ms == (10.0, 20.0, 30.0)
    assert traffic.percentile(traffic.ttft_ms, 95) == 30.0
    assert traffic.percentile(traffic.ttft_ms, 50) == 20.0
    assert traffic.percentile((), 95) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (1.26, "1.3"), (12.6, "13"), (1267.0, "1300"), (99.7, "100")],
)
def test_observed_figures_have_two_digits(value: float, text: str) -> None:
    """A status shows as much as it knows, as a plain decimal string."""
    assert two_digits(value) == text


def test_worker_states_of_another_release_are_read() -> None:
    """Unknown fields are passed over, absent ones are empty."""
    state = parse_state(
        "u", {"models": [{"name": "a/b", "state": "Failed", "error": {"reason": "X"}}]}
    )
    assert state.models[0].error == ("X", "")
    assert parse_state("u", {}).models == ()


def test_capabilities_come_from_the_newest_engine() -> None:
    """Without a worker this release's engine is assumed; an answer replaces that."""
    assert newest([None]) == ASSUMED
    old = {"engine_version": "0.1.9", "capabilities": {"families": ["llama"]}}
    new = {"engine_version": "0.2.0", "capabilities": {"precisions": ["bf16"]}}
    found = newest([new, old, {"capabilities": {}}])
    assert (found.version, found.precisions) == ("0.2.0", ("bf16",))


def test_an_unready_init_container_speaks_for_the_pod() -> None:
    """What keeps a pod from starting is found where it happens."""
    body = {
        "metadata": {"name": "p"},
        "status": {
            "phase": "Pending",
            "initContainerStatuses": [
                {"state": {"terminated": {"exitCode": 1, "message": "no token"}}}
            ],
            "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}],
        },
    }
    record = pod(body)
    assert record.ended is not None
    assert record.ended.message == "no token"


def test_another_manager_of_replicas_is_named() -> None:
    """ManagedFields tell who scaled a Deployment."""
    fields = {"f:spec": {"f:replicas": {}}}
    body = {
        "metadata": {
            "managedFields": [
                {"manager": "trimtab-operator", "fieldsV1": fields},
                {"manager": "hpa", "subresource": "scale", "fieldsV1": fields},
            ]
        }
    }
    assert deployment(body).foreign_replicas_manager == "hpa"


def test_keys_that_somebody_else_wrote_are_named() -> None:
    """What the operator wrote, under either of its names, is nobody else's."""
    managers = {"trimtab-operator": "fingerprint.json", "trimtab-anchors": "anchors", "gitops": "x"}
    body = {
        "metadata": {
            "managedFields": [
                {"manager": name, "fieldsV1": {"f:data": {f"f:{key}": {}}}}
                for name, key in managers.items()
            ]
        }
    }
    assert config_map(body).foreign_keys == {"x"}


def test_keys_of_an_adopted_document_and_of_one_without_managers_are_somebody_elses() -> None:
    """`kubectl apply` of what is there already owns only its annotation; no managers tell nothing."""
    written = {"manager": "trimtab-operator", "fieldsV1": {"f:data": {"f:k": {}}}}
    annotations = {"f:kubectl.kubernetes.io/last-applied-configuration": {}}
    adopted = {
        "manager": "kubectl-client-side-apply",
        "fieldsV1": {"f:metadata": {"f:annotations": annotations}},
    }

    def foreign(*managers: dict[str, Any]) -> frozenset[str]:
        body = {"metadata": {"managedFields": list(managers)}, "data": {"k": "v"}}
        return config_map(body).foreign_keys

    assert foreign(written) == frozenset()
    assert foreign(written, adopted) == {"k"}
    assert foreign() == {"k"}


def test_a_node_changes_with_its_capacity_not_with_its_heart_beat() -> None:
    """Nothing is planned anew because a node is alive."""

    def a_node(version: int, cpu: str, beat: str) -> dict[str, Any]:
        return {
            "metadata": {"name": "n", "resourceVersion": str(version)},
            "status": {
                "allocatable": {"cpu": cpu, "memory": "1Gi"},
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": beat}],
            },
        }

    assert node(a_node(1, "2", "x")).fingerprint == node(a_node(2, "2000m", "y")).fingerprint
    assert node(a_node(1, "2", "x")).fingerprint != node(a_node(2, "3", "x")).fingerprint


def counted(requests: int, *, gap_cv: object) -> dict[str, Any]:
    """Return what a replica says that got so many requests."""
    return a_document(counts=[[990, requests, 0, 0, 0]], gap_cv=gap_cv)


def test_gap_variation_of_a_shared_stream_is_that_of_its_parts_together() -> None:
    """Half of a stream of CV 4 looks like one of CV 2.9 to each of two gateways."""
    half = (1 + 0.5 * (4.0**2 - 1)) ** 0.5
    documents = [counted(300, gap_cv=half), counted(310, gap_cv=half)]
    seen = merge(documents)["team/chat"].variation
    assert seen.gap is not None
    assert seen.gap.cv == pytest.approx(4.0)
    assert seen.gap.count == 300


def test_a_quiet_replica_says_nothing_of_gaps() -> None:
    """One that has three requests is no more than chance; what the busy one says holds."""
    documents = [counted(1000, gap_cv=1.0), counted(3, gap_cv=100.0)]
    seen = merge(documents)["team/chat"].variation
    assert seen.gap is not None
    assert seen.gap.cv == pytest.approx(1.0)
    assert seen.gap.count == 1000
    assert merge([counted(99, gap_cv=3.0)] * 5)["team/chat"].variation.gap is None


def test_a_replica_that_is_left_out_is_made_up_for() -> None:
    """Nine tenths of a stream of CV 4 tell of all of it, if the last tenth cannot be read."""
    most = (1 + 0.9 * (4.0**2 - 1)) ** 0.5
    for left_out in (counted(100, gap_cv=None), counted(100, gap_cv="many")):
        seen = merge([counted(900, gap_cv=most), left_out])["team/chat"].variation
        assert seen.gap is not None
        assert seen.gap.cv == pytest.approx(4.0)


@pytest.mark.parametrize("gap_cv", [None, "many", True])
def test_gaps_that_nobody_can_read_are_unknown(gap_cv: object) -> None:
    """Too few requests, or nonsense: nothing is planned from it."""
    seen = merge([counted(1000, gap_cv=gap_cv)])["team/chat"].variation
    assert seen.gap is None
    assert seen.prompt is not None
    assert seen.prompt.cv == 0


def test_lengths_vary_over_all_replicas_together() -> None:
    """Two gateways that see two lengths see one load that varies."""
    short = {"n": 50, "mean": 100.0, "m2": 0}
    long = {"n": 50, "mean": 300.0, "m2": 0}
    seen = merge([a_document(output=short), a_document(output=long)])["team/chat"].variation
    assert seen.output is not None
    assert seen.output.count == 100
    assert seen.output.cv == pytest.approx(0.5, abs=0.01)
    alone = merge([a_document(output={"n": 1, "mean": 9.0, "m2": 0})])["team/chat"].variation
    assert alone.output is None
