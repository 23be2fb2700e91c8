"""The values schema catches what a person mistypes, before anything reaches a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHART = Path(__file__).resolve().parents[2] / "charts" / "trimtab"

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "top-level typo": ({"operater": {}}, "operater"),
    "nested typo": ({"operator": {"replica": 2}}, "replica"),
    "podDefaults typo": ({"podDefaults": {"tolerations": [{"kye": "gpu"}]}}, "kye"),
    "price as a number": ({"prices": {"cpuHour": {"*": 0.04}}}, "string"),
    "price with a typo": ({"prices": {"gpuHours": {"NVIDIA-L4": "0.80"}}}, "gpuHours"),
    "price that is no decimal": ({"prices": {"memoryGiBHour": "half"}}, "memoryGiBHour"),
    "price in another currency": ({"prices": {"currency": "EUR"}}, "currency"),
    "undated day": ({"prices": {"dated": "November"}}, "dated"),
    "auth off by boolean": ({"gateway": {"auth": False}}, "auth"),
    "auth of another kind": ({"gateway": {"auth": "OIDC"}}, "auth"),
    "endpoint without a scheme": ({"gateway": {"endpoint": "models.example"}}, "endpoint"),
    "relative hostPath prefix": ({"sources": {"hostPath": {"allowedPrefixes": ["models"]}}}, "allowedPrefixes"),
    "climbing hostPath prefix": ({"sources": {"hostPath": {"allowedPrefixes": ["/m/../etc"]}}}, "allowedPrefixes"),
    "negative replicas": ({"gateway": {"replicas": -1}}, "replicas"),
    "log level": ({"logLevel": "verbose"}, "logLevel"),
    "peer without a selector": ({"networkPolicy": {"prometheus": [{"namespaceselector": {}}]}}, "prometheus"),
    "runbooks without a slash": ({"monitoring": {"prometheusRule": {"runbookBaseURL": "https://docs.example/x"}}}, "runbookBaseURL"),
    "digest cut short": ({"worker": {"image": {"digest": "sha256:abc"}}}, "digest"),
    "mount without a path": ({"podDefaults": {"extraVolumeMounts": [{"name": "usr"}]}}, "mountPath"),
}  # fmt: skip

OPEN_BY_DESIGN = {"/properties/global", "/$defs/volume"}
CHECKED_BY_API_SERVER = "checked by the API server"


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistyped_value_is_refused_with_its_name(case: str, render: Callable[..., Any]) -> None:
    """Helm refuses the value and its message names the field."""
    values, named = REFUSED[case]
    with pytest.raises(Exception, match=named) as refused:
        render(values)
    assert "don't meet the specifications of the schema" in str(refused.value)


def test_defaults_meet_the_schema_and_every_value_is_described(helm: str) -> None:
    """The schema knows every key of values.yaml, and values.yaml sets every key of the schema but `global`."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert helm
    assert set(_leaves(values)) <= set(_paths(schema, schema))
    missing = {path for path in _paths(schema, schema) if path[0] != "global"} - set(
        _leaves(values)
    )
    assert {path for path in missing if path[:1] not in {("prices",), ("test",)}} == set()


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    return schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node


def _paths(
    node: dict[str, Any], schema: dict[str, Any], prefix: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    properties = _resolve(node, schema).get("properties")
    if (
        not properties
        or prefix in {("prices",), ("test", "model")}
        or prefix[-1:] == ("resources",)
    ):
        yield prefix
        return
    for name, child in properties.items():
        yield from _paths(child, schema, (*prefix, name))


def _leaves(node: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    free = prefix[-1:] in {("resources",), ("labels",)}
    if not isinstance(node, dict) or not node or free:
        yield prefix
        return
    for name, child in node.items():
        yield from _leaves(child, (*prefix, name))


def test_the_schema_is_closed_everywhere() -> None:
    """Every object of the schema forbids unknown keys; Kubernetes' own large types say who checks them."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    open_objects = {
        path
        for path, node in _objects(schema)
        if "additionalProperties" not in node
        and CHECKED_BY_API_SERVER not in node.get("description", "")
    }
    assert open_objects <= OPEN_BY_DESIGN


def _objects(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for name, child in node.items():
            yield from _objects(child, f"{path}/{name}")
    elif isinstance(node, list):
        for number, child in enumerate(node):
            yield from _objects(child, f"{path}/{number}")
