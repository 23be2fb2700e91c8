"""What the chart renders: valid for Kubernetes, restricted, and exactly what the values say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "trimtab"
KUBERNETES = "1.37"
EVERYTHING: dict[str, Any] = {
    "podDefaults": {
        "image": "all-in-one:1",
        "imagePullSecrets": [{"name": "pull"}],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraVolumes": [{"name": "usr", "hostPath": {"path": "/usr"}}],
        "extraVolumeMounts": [{"name": "usr", "mountPath": "/usr", "readOnly": True}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "priorityClassName": "high",
        "runtimeClassName": "kata",
    },
    "operator": {
        "replicas": 2,
        "nodeSelector": {"role": "system"},
        "extraEnv": [{"name": "ONLY_OPERATOR", "value": "1"}],
        "podAnnotations": {"note": "x"},
        "serviceAccount": {"annotations": {"team": "platform"}},
    },
    "gateway": {"replicas": None, "auth": "None", "service": {"type": "NodePort", "port": 8080}},
    "monitoring": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "runbookBaseURL": "https://docs.example/runbooks/"},
        "dashboards": {"annotations": {"grafana_folder": "Trimtab"}},
    },
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}],
        "apiServer": {"cidrs": ["10.96.0.1/32"]},
    },
    "test": {"model": {"source": {"persistentVolumeClaim": {"claimName": "models", "path": "tiny"}}}},
}  # fmt: skip
MINIMAL: dict[str, Any] = {
    "crds": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "monitoring": {"dashboards": {"enabled": False}},
    "finalizers": {"releaseOnUninstall": False},
    "gateway": {"replicas": 1, "drainDelaySeconds": 0},
    "rbac": {"aggregate": False},
}
VALUE_SETS = {"default": {}, "everything": EVERYTHING, "minimal": MINIMAL}
FOREIGN_KINDS = {"CustomResourceDefinition", "PodMonitor", "PrometheusRule"}


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield (name, labels and annotations, spec) of every pod or pod template."""
    for item in objects:
        if item["kind"] == "Pod":
            yield item["metadata"]["name"], item["metadata"], item["spec"]
        elif "template" in item.get("spec", {}):
            template = item["spec"]["template"]
            yield item["metadata"]["name"], template["metadata"], template["spec"]


def the(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """Return the one object of a kind and name."""
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def env_of(objects: list[dict[str, Any]], component: str) -> dict[str, Any]:
    """Return a Deployment's variables that have a plain value."""
    deployment = the(objects, "Deployment", f"trimtab-{component}")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def test_helm_lint_is_clean(helm: str) -> None:
    """`helm lint --strict` finds nothing, with default values and with everything set."""
    for values in VALUE_SETS.values():
        done = subprocess.run(
            [helm, "lint", "--strict", str(CHART), "--values", "-"],
            input=yaml.safe_dump(values), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_object_is_valid_for_kubernetes(name: str, render: Callable[..., Any]) -> None:
    """Every rendered object passes the published schema of Kubernetes, unknown fields refused."""
    for item in render(VALUE_SETS[name]):
        if item["kind"] not in FOREIGN_KINDS:
            kubernetes_validate.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_object_has_one_name_a_namespace_and_labels(
    name: str, render: Callable[..., Any]
) -> None:
    """No two objects collide, namespaced ones name the release's namespace, all carry the common labels."""
    objects = render(VALUE_SETS[name])
    keys = [(o["kind"], o["metadata"]["name"]) for o in objects]
    assert len(keys) == len(set(keys))
    cluster_scoped = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    for item in objects:
        if item["kind"] == "CustomResourceDefinition":
            continue
        assert item["metadata"].get("namespace", "") == (
            "" if item["kind"] in cluster_scoped else "trimtab-system"
        ), item["metadata"]["name"]
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "trimtab"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_pod_is_restricted_and_bounded(name: str, render: Callable[..., Any]) -> None:
    """Every pod meets the restricted standard, has requests and a memory limit, and no service links."""
    for pod, _, spec in pods(render(VALUE_SETS[name])):
        assert spec["enableServiceLinks"] is False, pod
        assert spec["securityContext"]["runAsNonRoot"] is True, pod
        assert spec["securityContext"]["runAsUser"] == 65532, pod
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, pod
            assert security["readOnlyRootFilesystem"] is True, pod
            assert security["capabilities"] == {"drop": ["ALL"]}, pod
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), pod
            assert "memory" in container["resources"]["limits"], pod
            assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], pod


@pytest.mark.parametrize("component", ["operator", "gateway"])
def test_processes_have_the_three_probes_on_named_ports(
    component: str, render: Callable[..., Any]
) -> None:
    """Startup, liveness and readiness are asked on ports that the container declares."""
    deployment = the(render(), "Deployment", f"trimtab-{component}")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"] for port in container["ports"]}
    assert "metrics" in ports
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports


def test_pod_templates_do_not_change_with_the_chart_version(
    helm: str, render: Callable[..., Any], tmp_path: Path
) -> None:
    """A new chart version alone restarts nothing: the templates of pods stay byte for byte the same."""
    images = {part: {"image": {"tag": "pinned"}} for part in ("operator", "gateway", "worker")}
    copy = tmp_path / "trimtab"
    subprocess.run(["cp", "-r", str(CHART), str(copy)], check=True)
    chart = yaml.safe_load((copy / "Chart.yaml").read_text()) | {
        "version": "9.9.9",
        "appVersion": "9.9.9",
    }
    (copy / "Chart.yaml").write_text(yaml.safe_dump(chart))
    done = subprocess.run(
        [helm, "template", "trimtab", str(copy), "--namespace", "trimtab-system", "--values", "-"],
        input=yaml.safe_dump(images), capture_output=True, text=True, check=True,
    )  # fmt: skip
    newer = [item for item in yaml.safe_load_all(done.stdout) if item]
    assert list(pods(newer)) == list(pods(render(images)))


def test_pod_defaults_reach_the_operator_and_every_own_pod(render: Callable[..., Any]) -> None:
    """Values of podDefaults travel as JSON in TRIMTAB_POD_DEFAULTS and hold for every pod of the chart itself."""
    objects = render(EVERYTHING)
    defaults = EVERYTHING["podDefaults"]
    sent = json.loads(env_of(objects, "operator")["TRIMTAB_POD_DEFAULTS"])
    assert sent == defaults | {"imagePullPolicy": "IfNotPresent"}
    names = set()
    for name, _, spec in pods(objects):
        names.add(name)
        container = spec["containers"][0]
        assert container["image"] == defaults["image"], name
        assert spec["imagePullSecrets"] == defaults["imagePullSecrets"], name
        assert spec["runtimeClassName"] == "kata", name
        assert spec["priorityClassName"] == "high", name
        assert spec["nodeSelector"]["kubernetes.io/os"] == "linux", name
        assert defaults["tolerations"][0] in spec["tolerations"], name
        assert defaults["extraVolumes"][0] in spec["volumes"], name
        assert defaults["extraVolumeMounts"][0] in container["volumeMounts"], name
        assert defaults["extraEnv"][0] in container["env"], name
    assert names == {
        "trimtab-operator",
        "trimtab-gateway",
        "trimtab-test",
        "trimtab-release-finalizers",
    }
    assert env_of(objects, "operator")["ONLY_OPERATOR"] == "1"
    assert "ONLY_OPERATOR" not in env_of(objects, "gateway")


def test_a_component_can_stay_out_of_pod_defaults(render: Callable[..., Any]) -> None:
    """Turning inheritPodDefaults off leaves the component's own image and mounts; workers still get the defaults."""
    objects = render({**EVERYTHING, "gateway": {"inheritPodDefaults": False}})
    spec = the(objects, "Deployment", "trimtab-gateway")["spec"]["template"]["spec"]
    assert spec["containers"][0]["image"].startswith("trimtab-gateway:")
    assert [volume["name"] for volume in spec["volumes"]] == ["state", "tmp"]
    assert "nodeSelector" not in spec
    assert "kata" in env_of(objects, "operator")["TRIMTAB_POD_DEFAULTS"]


def test_environment_of_the_processes_is_the_agreed_one(render: Callable[..., Any]) -> None:
    """Operator and gateway get the variables of the wire formats, sources and endpoint included."""
    objects = render({"sources": {"hostPath": {"enabled": True, "allowedPrefixes": ["/models"]}}})
    operator, gateway = env_of(objects, "operator"), env_of(objects, "gateway")
    common = {
        "TRIMTAB_SYSTEM_NAMESPACE",
        "TRIMTAB_POD_NAME",
        "TRIMTAB_POD_UID",
        "TRIMTAB_LOG_LEVEL",
    }
    assert common <= set(operator)
    assert common <= set(gateway)
    assert json.loads(operator["TRIMTAB_SOURCES"]) == {
        "hostPath": {"enabled": True, "allowedPrefixes": ["/models"]},
        "huggingFace": {"enabled": False, "endpoint": "https://huggingface.co"},
        "image": {"enabled": False},
    }
    assert operator["TRIMTAB_GATEWAY_SERVICE"] == "trimtab-gateway"
    assert operator["TRIMTAB_GATEWAY_ENDPOINT"] == "http://trimtab-gateway.trimtab-system/v1"
    assert operator["TRIMTAB_WORKER_IMAGE"].startswith("trimtab-worker:")
    assert gateway["TRIMTAB_AUDIENCE"] == "trimtab"
    assert operator["TRIMTAB_GATEWAY_AUTH"] == gateway["TRIMTAB_GATEWAY_AUTH"] == "Kubernetes"


def test_endpoint_follows_the_service_port(render: Callable[..., Any]) -> None:
    """The address that users see has the Service's port where it is not 80."""
    assert env_of(render(EVERYTHING), "operator")["TRIMTAB_GATEWAY_ENDPOINT"].endswith(":8080/v1")


def test_replicas_are_left_to_an_autoscaler_on_request(render: Callable[..., Any]) -> None:
    """`gateway.replicas: null` renders no replicas, and a PodDisruptionBudget all the same."""
    objects = render(EVERYTHING)
    assert "replicas" not in the(objects, "Deployment", "trimtab-gateway")["spec"]
    assert the(objects, "PodDisruptionBudget", "trimtab-gateway")
    assert the(objects, "PodDisruptionBudget", "trimtab-operator")
    single = [o["kind"] for o in render(MINIMAL)]
    assert "PodDisruptionBudget" not in single


def test_prices_are_the_planners(render: Callable[..., Any]) -> None:
    """The price book arrives as the planner parses it; without prices it is an empty book."""
    from trimtab.planning.prices import PriceBook, parse_price_book

    prices = {
        "currency": "USD",
        "dated": "2026-11-01",
        "gpuHour": {"NVIDIA-H100-*": "4.50"},
        "cpuHour": {"*": "0.0400"},
        "memoryGiBHour": "0.0050",
        "pools": [{"nodeSelector": {"pool": "spot"}, "spotGpuHour": "1.20"}],
    }
    text = the(render({"prices": prices}), "ConfigMap", "trimtab-prices")["data"]["prices.yaml"]
    assert yaml.safe_load(text) == prices
    book = parse_price_book(yaml.safe_load(text))
    assert book.dated == "2026-11-01"
    assert [price.micro_usd for price in book.cpu_hour] == [40_000]
    empty = the(render(), "ConfigMap", "trimtab-prices")["data"]["prices.yaml"]
    assert parse_price_book(yaml.safe_load(empty)) == PriceBook()


def test_rules_reach_the_cluster_with_their_runbooks_published(render: Callable[..., Any]) -> None:
    """The PrometheusRule holds the file of alerts, each runbook_url below the given address."""
    rule = the(render(EVERYTHING), "PrometheusRule", "trimtab")
    source = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    urls = [r["annotations"]["runbook_url"] for g in rule["spec"]["groups"] for r in g["rules"]]
    assert urls
    assert all(url.startswith("https://docs.example/runbooks/") for url in urls)
    for group in source["groups"]:
        for alert in group["rules"]:
            alert["annotations"]["runbook_url"] = alert["annotations"]["runbook_url"].replace(
                "docs/runbooks/", "https://docs.example/runbooks/"
            )
    assert rule["spec"] == source


def test_dashboards_are_shipped_unchanged_for_the_sidecar(render: Callable[..., Any]) -> None:
    """Every dashboard of the chart is a ConfigMap with the sidecar's label and the same JSON."""
    objects = render(EVERYTHING)
    files = sorted((CHART / "dashboards").glob("*.json"))
    assert files
    for path in files:
        item = the(objects, "ConfigMap", f"trimtab-dashboard-{path.stem}")
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert item["metadata"]["annotations"] == {"grafana_folder": "Trimtab"}
        assert item["data"] == {path.name: path.read_text()}


def test_notes_give_the_next_command(helm: str) -> None:
    """NOTES.txt says what to type next, that no prices are set, and warns of shortened policy times."""
    done = subprocess.run(
        [helm, "install", "trimtab", str(CHART), "--dry-run=client", "--namespace", "demo",
         "--set", "operator.policyTimeDivisor=60"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "helm test trimtab --namespace demo" in notes
    assert "kubectl apply -f -" in notes
    assert "PriceUnknown" in notes
    assert "WARNING: operator.policyTimeDivisor is 60" in notes


def test_readme_table_is_generated_from_the_values() -> None:
    """The table of values in the chart's README is the one that values.yaml's comments give."""
    from tools import chart_readme

    assert chart_readme.outdated() == []


@pytest.mark.parametrize("sharing", [None, {"headroomModels": None}, {}])
def test_values_of_a_release_without_sharing_still_render(
    sharing: Any, render: Callable[..., Any]
) -> None:
    """`helm upgrade --reuse-values` brings values that lack what is new; the default holds then."""
    operator = env_of(render({"sharing": sharing}), "operator")
    assert operator["TRIMTAB_SHARING_HEADROOM_MODELS"] == "1"


def test_no_room_for_joiners_is_no_absent_value(render: Callable[..., Any]) -> None:
    """0 is a choice, not a gap that the default fills."""
    operator = env_of(render({"sharing": {"headroomModels": 0}}), "operator")
    assert operator["TRIMTAB_SHARING_HEADROOM_MODELS"] == "0"
