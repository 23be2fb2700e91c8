"""Manifests that must be accepted and refused, for the file reader and for a real API server alike."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

API_VERSION = "trimtab.dev/v1alpha1"
CLAIM = {"persistentVolumeClaim": {"claimName": "models", "path": "smollm2-135m"}}


def an_intent(**spec: Any) -> dict[str, Any]:
    """A valid InferenceIntent; keyword arguments are merged into its spec, None removes."""
    base = {"model": {"source": CLAIM}, "objective": "MinCost"}
    return _object("InferenceIntent", base, spec)


def a_function(**spec: Any) -> dict[str, Any]:
    """A valid ServerlessFunction; keyword arguments are merged into its spec, None removes."""
    base = {
        "image": "acme/thumbnail:1",
        "deadlineMilliseconds": 800,
        "resources": {
            "cpu": {"min": "100m", "max": 2, "step": "100m"},
            "memory": {"min": "128Mi", "max": "2Gi"},
        },
    }
    return _object("ServerlessFunction", base, spec)


def a_profile(**spec: Any) -> dict[str, Any]:
    """A valid GPUProfile; keyword arguments are merged into its spec, None removes."""
    base = {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}
    return _object("GPUProfile", base, spec)


def named(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the manifest under another name."""
    return manifest | {"metadata": manifest["metadata"] | {"name": name}}


def merged(base: Any, patch: Any) -> Any:
    """Return `base` after a JSON merge patch."""
    if not isinstance(patch, dict) or not isinstance(base, dict):
        return copy.deepcopy(patch)
    out = copy.deepcopy(base)
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key, {}), value)
    return out


def _object(kind: str, base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "subject"}
    if kind != "GPUProfile":
        metadata["namespace"] = "default"
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "spec": merged(base, patch),
    }


@dataclass(frozen=True, kw_only=True)
class RuleCase:
    """One rule across fields, by a part of its message, with what it accepts and refuses."""

    kind: str
    message: str
    accepted: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    reason: str = "FieldValueInvalid"


LATENCY = {"timeToFirstTokenMilliseconds": 500}
UPWARDS = ["../x", "a/../b", "a/.."]
DOTTED = ["a..b", "..a/b..", "a/...", ".hidden/x"]


def _source(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"source": {"persistentVolumeClaim": None, kind: value}}


def _cpu(**ladder: Any) -> dict[str, Any]:
    return {"cpu": ladder}


RULE_CASES = [
    RuleCase(
        kind="InferenceIntent",
        message="metadata.name must be at most 63",
        accepted=[
            named(an_intent(), "a"),
            named(an_intent(), "chat-7b"),
            named(an_intent(), "a" * 63),
        ],
        refused=[
            named(an_intent(), "7b-chat"),
            named(an_intent(), "a.b"),
            named(an_intent(), "a" * 64),
        ],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="metadata.name must be at most 63",
        accepted=[named(a_function(), "a1")],
        refused=[named(a_function(), "1a"), named(a_function(), "b" * 64)],
    ),
    RuleCase(
        kind="GPUProfile",
        message="metadata.name must be at most 63",
        accepted=[named(a_profile(), "pool-1")],
        refused=[named(a_profile(), "h100.pool")],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="spec.targets is required by objectives",
        reason="FieldValueRequired",
        accepted=[
            an_intent(objective="TargetLatency", targets=LATENCY),
            an_intent(objective="TargetCost", targets={"costPerHour": "0.10"}),
            an_intent(objective="MinLatency"),
        ],
        refused=[an_intent(objective="TargetLatency"), an_intent(objective="TargetCost")],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="spec.targets is only allowed with objectives",
        reason="FieldValueForbidden",
        accepted=[an_intent(objective="MinCost")],
        refused=[
            an_intent(objective="MinCost", targets=LATENCY),
            an_intent(objective="MinLatency", targets={}),
        ],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="objective TargetLatency needs",
        reason="FieldValueRequired",
        accepted=[
            an_intent(objective="TargetLatency", targets={"timePerOutputTokenMilliseconds": 1}),
            an_intent(objective="TargetLatency", targets={**LATENCY, "percentile": 99}),
        ],
        refused=[
            an_intent(objective="TargetLatency", targets={}),
            an_intent(objective="TargetLatency", targets={"percentile": 95}),
        ],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="spec.targets of objective TargetLatency must not hold cost targets",
        reason="FieldValueForbidden",
        accepted=[an_intent(objective="TargetLatency", targets=LATENCY)],
        refused=[
            an_intent(objective="TargetLatency", targets={**LATENCY, "costPerHour": "1"}),
            an_intent(
                objective="TargetLatency", targets={**LATENCY, "costPerMillionOutputTokens": "1"}
            ),
        ],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="objective TargetCost needs exactly one of",
        accepted=[
            an_intent(objective="TargetCost", targets={"costPerMillionOutputTokens": "0.40"})
        ],
        refused=[
            an_intent(objective="TargetCost", targets={}),
            an_intent(
                objective="TargetCost",
                targets={"costPerHour": "1", "costPerMillionOutputTokens": "1"},
            ),
        ],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="spec.targets of objective TargetCost must not hold latency targets",
        reason="FieldValueForbidden",
        accepted=[an_intent(objective="TargetCost", targets={"costPerHour": "4.50"})],
        refused=[
            an_intent(objective="TargetCost", targets={"costPerHour": "1", **LATENCY}),
            an_intent(objective="TargetCost", targets={"costPerHour": "1", "percentile": 95}),
            an_intent(
                objective="TargetCost",
                targets={"costPerHour": "1", "timePerOutputTokenMilliseconds": 9},
            ),
        ],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="a cost target in spec.targets must be greater than 0",
        accepted=[an_intent(objective="TargetCost", targets={"costPerHour": "0.000001"})],
        refused=[
            an_intent(objective="TargetCost", targets={"costPerHour": "0"}),
            an_intent(objective="TargetCost", targets={"costPerMillionOutputTokens": "0.000"}),
        ],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="spec.model.source needs exactly one of",
        accepted=[
            an_intent(),
            an_intent(model=_source("hostPath", {"path": "/models"})),
            an_intent(model=_source("image", {"reference": "models/tiny:1"})),
            an_intent(model=_source("huggingFace", {"repository": "a/b", "revision": "0" * 40})),
        ],
        refused=[
            an_intent(model={"source": {"persistentVolumeClaim": None}}),
            an_intent(model={"source": {"hostPath": {"path": "/models"}}}),
        ],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="spec.model.source.hostPath.path must not contain '..'",
        accepted=[an_intent(model=_source("hostPath", {"path": f"/{path}"})) for path in DOTTED],
        refused=[an_intent(model=_source("hostPath", {"path": f"/{path}"})) for path in UPWARDS],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="spec.model.source.persistentVolumeClaim.path must not contain '..'",
        accepted=[
            an_intent(model={"source": {"persistentVolumeClaim": {"path": path}}})
            for path in DOTTED
        ],
        refused=[
            an_intent(model={"source": {"persistentVolumeClaim": {"path": path}}})
            for path in UPWARDS
        ],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="spec.model.source.image.path must not contain '..'",
        accepted=[
            an_intent(model=_source("image", {"reference": "m:1", "path": path})) for path in DOTTED
        ],
        refused=[
            an_intent(model=_source("image", {"reference": "m:1", "path": path}))
            for path in UPWARDS
        ],
    ),
    RuleCase(
        kind="InferenceIntent",
        message="spec.constraints.minReplicas must not exceed",
        accepted=[
            an_intent(constraints={"minReplicas": 2, "maxReplicas": 2}),
            an_intent(constraints={"minReplicas": 2}),
            an_intent(constraints={"maxReplicas": 1}),
        ],
        refused=[an_intent(constraints={"minReplicas": 3, "maxReplicas": 2})],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="spec needs exactly one of image and source",
        accepted=[
            a_function(),
            a_function(image=None, source={"configMapRef": {"name": "code"}}),
        ],
        refused=[
            a_function(image=None),
            a_function(source={"configMapRef": {"name": "code"}}),
        ],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="spec.signature is only allowed with spec.source",
        reason="FieldValueForbidden",
        accepted=[
            a_function(image=None, source={"configMapRef": {"name": "c"}}, signature="Lambda")
        ],
        refused=[a_function(signature="Lambda")],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="spec.deadlineMilliseconds must not exceed spec.timeoutMilliseconds",
        accepted=[
            a_function(deadlineMilliseconds=300_000),
            a_function(deadlineMilliseconds=900, timeoutMilliseconds=900),
        ],
        refused=[
            a_function(deadlineMilliseconds=300_001),
            a_function(deadlineMilliseconds=901, timeoutMilliseconds=900),
        ],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="spec.resources.cpu.min must be above 0",
        accepted=[
            a_function(resources=_cpu(min=1, max="1000m")),
            a_function(resources=_cpu(min="0.5", max=1)),
        ],
        refused=[
            a_function(resources=_cpu(min=0)),
            a_function(resources=_cpu(min=3, max="2000m")),
        ],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="spec.resources.memory.min must be above 0",
        accepted=[a_function(resources={"memory": {"min": "1Gi", "max": "1024Mi"}})],
        refused=[
            a_function(resources={"memory": {"min": "0Mi"}}),
            a_function(resources={"memory": {"min": "1Gi", "max": "1G"}}),
        ],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="spec.resources.cpu.default must lie between",
        accepted=[
            a_function(resources=_cpu(default=1)),
            a_function(resources=_cpu(default="100m")),
        ],
        refused=[
            a_function(resources=_cpu(default="99m")),
            a_function(resources=_cpu(default=3)),
        ],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="spec.resources.memory.default must lie between",
        accepted=[a_function(resources={"memory": {"default": "2Gi"}})],
        refused=[
            a_function(resources={"memory": {"default": "2049Mi"}}),
            a_function(resources={"memory": {"default": 1}}),
        ],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="spec.resources.cpu.step must be at least 100m",
        accepted=[
            a_function(resources=_cpu(min="100m", max="3200m", step="100m")),
            a_function(resources=_cpu(min="100m", max="3.2", step=None)),
            a_function(resources=_cpu(min=1, max=32, step=1)),
        ],
        refused=[
            a_function(resources=_cpu(step="50m")),
            a_function(resources=_cpu(min="100m", max="3300m", step="100m")),
            a_function(resources=_cpu(min="100m", max="4", step=None)),
        ],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="spec.resources.memory.step must be at least 128Mi",
        accepted=[
            a_function(resources={"memory": {"min": "128Mi", "max": "4Gi"}}),
            a_function(resources={"memory": {"min": "1Gi", "max": "32Gi", "step": "1Gi"}}),
        ],
        refused=[
            a_function(resources={"memory": {"step": "64Mi"}}),
            a_function(resources={"memory": {"min": "128Mi", "max": "4225Mi"}}),
        ],
    ),
    RuleCase(
        kind="ServerlessFunction",
        message="an entry of spec.features needs a key",
        accepted=[
            a_function(features=[]),
            a_function(
                features=[
                    {"name": "pixels", "from": "ContentType"},
                    {"name": "size", "from": "Header", "key": "X-Size"},
                    {"name": "n", "from": "JSONPointer", "key": "/n"},
                ]
            ),
        ],
        refused=[
            a_function(features=[{"name": "size", "from": "Header"}]),
            a_function(features=[{"name": "q", "from": "Query"}]),
            a_function(features=[{"name": "size", "from": "Size", "key": "x"}]),
        ],
    ),
    RuleCase(
        kind="GPUProfile",
        message="every key of spec.nodeSelector must be a label's name",
        accepted=[a_profile(nodeSelector={"pool": ""}), a_profile(nodeSelector={"a/b_c.d": "X"})],
        refused=[
            a_profile(nodeSelector={"a b": "x"}),
            a_profile(nodeSelector={"/a": "x"}),
            a_profile(nodeSelector={"a" * 64: "x"}),
        ],
    ),
]


@dataclass(frozen=True, kw_only=True)
class SchemaCase:
    """A manifest that the schema refuses: what the API server says, and what the file reader says."""

    id: str
    manifest: dict[str, Any]
    server: str
    file: str
    paths: list[str] = field(default_factory=list)


SCHEMA_CASES = [
    SchemaCase(
        id="no objective",
        manifest=an_intent(objective=None),
        server="spec.objective: Required value",
        file="spec.objective is missing: give it.",
    ),
    SchemaCase(
        id="unknown objective",
        manifest=an_intent(objective="Fast"),
        server='spec.objective: Unsupported value: "Fast": supported values: "MinLatency"',
        file="spec.objective is 'Fast': input should be 'MinLatency', 'MinCost'",
    ),
    SchemaCase(
        id="no model",
        manifest=an_intent(model=None),
        server="spec.model: Required value",
        file="spec.model is missing",
    ),
    SchemaCase(
        id="relative host path",
        manifest=an_intent(model=_source("hostPath", {"path": "models"})),
        server="spec.model.source.hostPath.path in body should match '^/",
        file="spec.model.source.hostPath.path is 'models': string should match",
    ),
    SchemaCase(
        id="absolute path on a claim",
        manifest=an_intent(model={"source": {"persistentVolumeClaim": {"path": "/abs"}}}),
        server="spec.model.source.persistentVolumeClaim.path in body should match",
        file="spec.model.source.persistentVolumeClaim.path is '/abs'",
    ),
    SchemaCase(
        id="branch instead of a commit",
        manifest=an_intent(model=_source("huggingFace", {"repository": "a/b", "revision": "main"})),
        server="spec.model.source.huggingFace.revision in body should match '^[0-9a-f]{40}$'",
        file="spec.model.source.huggingFace.revision is 'main'",
    ),
    SchemaCase(
        id="repository with a URL",
        manifest=an_intent(
            model=_source("huggingFace", {"repository": "https://h/a/b", "revision": "0" * 40})
        ),
        server="spec.model.source.huggingFace.repository in body should match",
        file="spec.model.source.huggingFace.repository is 'https://h/a/b'",
    ),
    SchemaCase(
        id="money as a number",
        manifest=an_intent(objective="TargetCost", targets={"costPerHour": 4.5}),
        server='spec.targets.costPerHour: Invalid value: "number": spec.targets.costPerHour in '
        'body must be of type string: "number"',
        file="spec.targets.costPerHour is 4.5: input should be a valid string.",
    ),
    SchemaCase(
        id="money with a currency",
        manifest=an_intent(objective="TargetCost", targets={"costPerHour": "$4.50"}),
        server="spec.targets.costPerHour in body should match",
        file="spec.targets.costPerHour is '$4.50'",
    ),
    SchemaCase(
        id="negative rate",
        manifest=an_intent(load={"requestsPerSecond": "-1"}),
        server="spec.load.requestsPerSecond in body should match",
        file="spec.load.requestsPerSecond is '-1'",
    ),
    SchemaCase(
        id="percentile out of range",
        manifest=an_intent(objective="TargetLatency", targets={**LATENCY, "percentile": 100}),
        server="spec.targets.percentile in body should be less than or equal to 99",
        file="spec.targets.percentile is 100: input should be less than or equal to 99.",
    ),
    SchemaCase(
        id="replicas below one",
        manifest=an_intent(constraints={"minReplicas": 0}),
        server="spec.constraints.minReplicas in body should be greater than or equal to 1",
        file="spec.constraints.minReplicas is 0: input should be greater than or equal to 1.",
    ),
    SchemaCase(
        id="an accuracy loss of more than everything",
        manifest=an_intent(constraints={"maxAccuracyLossPercent": "100.1"}),
        server="spec.constraints.maxAccuracyLossPercent in body should match",
        file="spec.constraints.maxAccuracyLossPercent is '100.1'",
    ),
    SchemaCase(
        id="an accuracy loss below nothing",
        manifest=an_intent(constraints={"maxAccuracyLossPercent": "-1"}),
        server="spec.constraints.maxAccuracyLossPercent in body should match",
        file="spec.constraints.maxAccuracyLossPercent is '-1'",
    ),
    SchemaCase(
        id="unknown precision",
        manifest=an_intent(constraints={"precisions": ["bf17"]}),
        server='spec.constraints.precisions[0]: Unsupported value: "bf17"',
        file="spec.constraints.precisions[0] is 'bf17'",
    ),
    SchemaCase(
        id="empty allow-list",
        manifest=an_intent(constraints={"gpuProducts": []}),
        server="spec.constraints.gpuProducts in body should have at least 1 items",
        file="spec.constraints.gpuProducts is []: tuple should have at least 1 item",
    ),
    SchemaCase(
        id="priority as text",
        manifest=an_intent(priority="high"),
        server='spec.priority in body must be of type integer: "string"',
        file="spec.priority is 'high': input should be a valid integer.",
    ),
    SchemaCase(
        id="model name with a slash",
        manifest=an_intent(model={"name": "team/chat"}),
        server="spec.model.name in body should match",
        file="spec.model.name is 'team/chat'",
    ),
    SchemaCase(
        id="function without a deadline",
        manifest=a_function(deadlineMilliseconds=None),
        server="spec.deadlineMilliseconds: Required value",
        file="spec.deadlineMilliseconds is missing",
    ),
    SchemaCase(
        id="quantity with a typo",
        manifest=a_function(resources=_cpu(max="2x")),
        server="spec.resources.cpu.max in body should match",
        file="spec.resources.cpu.max is '2x'",
    ),
    SchemaCase(
        id="quantity as a float",
        manifest=a_function(resources=_cpu(max=1.5)),
        server='spec.resources.cpu.max: Invalid value: "number"',
        file="spec.resources.cpu.max is 1.5",
    ),
    SchemaCase(
        id="unknown feature origin",
        manifest=a_function(features=[{"name": "a", "from": "Cookie"}]),
        server='spec.features[0].from: Unsupported value: "Cookie"',
        file="spec.features[0].from is 'Cookie'",
    ),
    SchemaCase(
        id="profile without a selector",
        manifest=a_profile(nodeSelector=None),
        server="spec.nodeSelector: Required value",
        file="spec.nodeSelector is missing",
    ),
    SchemaCase(
        id="profile that selects everything",
        manifest=a_profile(nodeSelector={"nvidia.com/gpu.product": None}),
        server="spec.nodeSelector in body should have at least 1 properties",
        file="spec.nodeSelector is {}: dictionary should have at least 1 item",
    ),
    SchemaCase(
        id="override without an action",
        manifest=a_profile(overrides=[{"uuid": "GPU-1"}]),
        server="spec.overrides[0].action: Required value",
        file="spec.overrides[0].action is missing",
    ),
]

SERVER_ONLY_CASES = [
    SchemaCase(
        id="the same product twice",
        manifest=an_intent(constraints={"gpuProducts": ["cpu", "cpu"]}),
        server='spec.constraints.gpuProducts[1]: Duplicate value: "cpu"',
        file="",
    ),
    SchemaCase(
        id="the same feature twice",
        manifest=a_function(
            features=[{"name": "a", "from": "Size"}, {"name": "a", "from": "ContentType"}]
        ),
        server='spec.features[1]: Duplicate value: {"name":"a"}',
        file="",
    ),
]
