"""The rendered NetworkPolicies are the list of flows that the design allows, written out here."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATOR, GATEWAY, WORKER = "operator", "gateway", "worker"
EVERYBODY, PROMETHEUS, API_SERVER = "everybody", "prometheus", "API server"
API_PORTS = (443, 6443)
FLOWS_OUT = {
    (OPERATOR, API_SERVER, API_PORTS),
    (OPERATOR, WORKER, (8001,)),
    (OPERATOR, GATEWAY, (8001,)),
    (GATEWAY, API_SERVER, API_PORTS),
    (GATEWAY, WORKER, (8000,)),
}
FLOWS_IN = {
    (EVERYBODY, GATEWAY, (8080,)),
    (OPERATOR, GATEWAY, (8001,)),
    (PROMETHEUS, OPERATOR, (8002,)),
    (PROMETHEUS, GATEWAY, (8002,)),
}
FLOWS_OF_WORKERS = {
    (GATEWAY, WORKER, (8000,)),
    (OPERATOR, WORKER, (8001,)),
    (PROMETHEUS, WORKER, (8002,)),
}
METRICS_PEER = {
    "namespaceSelector": {},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
}
IN_SYSTEM = {"matchLabels": {"kubernetes.io/metadata.name": "trimtab-system"}}
PART_OF = {"app.kubernetes.io/part-of": "trimtab"}


def who(peer: dict[str, Any]) -> str:
    """Name the peer of a rule; a peer that no flow knows is named as it is."""
    if peer == METRICS_PEER:
        return PROMETHEUS
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    component = labels.get("app.kubernetes.io/component")
    if (
        component == WORKER
        and peer.get("namespaceSelector") == {}
        and PART_OF.items() <= labels.items()
    ):
        return WORKER
    if component in {OPERATOR, GATEWAY} and set(peer) == {"podSelector"}:
        assert labels["app.kubernetes.io/instance"] == "trimtab"
        return str(component)
    if component in {OPERATOR, GATEWAY} and peer.get("namespaceSelector") == IN_SYSTEM:
        return str(component)
    return repr(peer)


def ports(rule: dict[str, Any]) -> tuple[int, ...]:
    """Return the ports of a rule, all of them TCP."""
    assert {port["protocol"] for port in rule["ports"]} == {"TCP"}
    return tuple(port["port"] for port in rule["ports"])


def flows(objects: list[dict[str, Any]], direction: str) -> set[tuple[str, str, tuple[int, ...]]]:
    """Return (from, to, ports) of every rule of a direction."""
    found = set()
    key, peers = ("egress", "to") if direction == "out" else ("ingress", "from")
    for policy in objects:
        if policy["kind"] != "NetworkPolicy":
            continue
        assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]
        me = policy["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component", "all")
        for rule in policy["spec"].get(key, []):
            anybody = API_SERVER if direction == "out" else EVERYBODY
            others = [who(peer) for peer in rule[peers]] if peers in rule else [anybody]
            for other in others:
                found.add(
                    (me, other, ports(rule)) if direction == "out" else (other, me, ports(rule))
                )
    return found


def test_policies_allow_the_designed_flows_and_no_others(render: Callable[..., Any]) -> None:
    """Rendered with default values, each direction is exactly the list of flows."""
    objects = render()
    assert flows(objects, "out") == FLOWS_OUT
    assert flows(objects, "in") == FLOWS_IN


def test_everything_else_is_denied(render: Callable[..., Any]) -> None:
    """One policy without rules selects every pod of Trimtab in the namespace, Jobs included."""
    (deny,) = [o for o in render() if o["metadata"]["name"] == "trimtab-default-deny"]
    assert deny["spec"] == {
        "podSelector": {"matchLabels": PART_OF},
        "policyTypes": ["Ingress", "Egress"],
    }


def test_policies_select_the_pods_of_the_chart(render: Callable[..., Any]) -> None:
    """Each policy's selector matches the pod template of its component; the test pod is an ordinary caller."""
    objects = render()
    policies = [o for o in objects if o["kind"] == "NetworkPolicy"]
    for component in (OPERATOR, GATEWAY):
        (deployment,) = [
            o
            for o in objects
            if o["kind"] == "Deployment" and o["metadata"]["name"].endswith(component)
        ]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        selecting = {
            p["metadata"]["name"]
            for p in policies
            if p["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        }
        assert selecting == {"trimtab-default-deny", f"trimtab-{component}"}
    (test,) = [o for o in objects if o["kind"] == "Pod"]
    assert not PART_OF.items() <= test["metadata"]["labels"].items()


def test_flows_can_be_narrowed(render: Callable[..., Any]) -> None:
    """Named clients and API server addresses replace `everybody`; without Prometheus nobody reads metrics."""
    client = {"namespaceSelector": {"matchLabels": {"team": "a"}}}
    objects = render(
        {
            "networkPolicy": {
                "clients": [client],
                "prometheus": [],
                "apiServer": {"cidrs": ["10.96.0.1/32"], "ports": [443]},
            }
        }
    )
    assert flows(objects, "in") == {(repr(client), GATEWAY, (8080,)), (OPERATOR, GATEWAY, (8001,))}
    server = repr({"ipBlock": {"cidr": "10.96.0.1/32"}})
    assert (OPERATOR, server, (443,)) in flows(objects, "out")
    assert (GATEWAY, server, (443,)) in flows(objects, "out")


def test_policies_can_be_left_out(render: Callable[..., Any]) -> None:
    """networkPolicy.enabled off renders none."""
    assert not [
        o for o in render({"networkPolicy": {"enabled": False}}) if o["kind"] == "NetworkPolicy"
    ]


def of_worker(render: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the policy that the operator, started by the chart with these values, puts before a worker."""
    from trimtab.reconcile.inferenceintent import children
    from trimtab.reconcile.inferenceintent.sources import Mounted
    from trimtab.reconcile.labels import group_labels, group_selector
    from trimtab.settings import Settings

    (deployment,) = [
        o
        for o in render(values)
        if o["kind"] == "Deployment" and o["metadata"]["name"] == "trimtab-operator"
    ]
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    peers = next(e["value"] for e in env if e["name"] == "TRIMTAB_METRICS_PEERS")
    worker = SimpleNamespace(
        home=children.Home(
            namespace="team-a",
            name="team-a-1a2b3c4d-group",
            labels=group_labels("team-a-1a2b3c4d"),
            selector=group_selector("team-a-1a2b3c4d"),
            owners=(),
        ),
        mounted=Mounted(path="m", volumes=(), mounts=()),
        settings=Settings(metrics_peers=json.loads(peers)),
    )
    policy: dict[str, Any] = children._network_policy(worker)
    return policy


def test_workers_are_reached_by_the_designed_flows_and_no_others(
    render: Callable[..., Any],
) -> None:
    """The operator's policy for a worker admits gateway, operator and Prometheus, each on its port, and lets nothing out."""
    policy = of_worker(render, {})
    assert flows([policy], "in") == FLOWS_OF_WORKERS
    assert flows([policy], "out") == set()
    assert policy["metadata"]["namespace"] == "team-a"
    selected = policy["spec"]["podSelector"]["matchLabels"]
    assert selected["app.kubernetes.io/component"] == WORKER
    assert selected["trimtab.dev/group"] == "team-a-1a2b3c4d"


def test_workers_metrics_follow_the_charts_peers(render: Callable[..., Any]) -> None:
    """Without Prometheus peers nobody, rather than everybody, reads a worker's metrics."""
    policy = of_worker(render, {"networkPolicy": {"prometheus": []}})
    assert flows([policy], "in") == FLOWS_OF_WORKERS - {(PROMETHEUS, WORKER, (8002,))}
