"""The definitions in the chart are those of `crds/`, kept at uninstall unless the values say otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
KEEP = "helm.sh/resource-policy"
CRD = "CustomResourceDefinition"


def source() -> dict[str, dict[str, Any]]:
    documents = [
        yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))
    ]
    return {document["metadata"]["name"]: document for document in documents}


def rendered(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {o["metadata"]["name"]: o for o in objects if o["kind"] == CRD}


def test_rendered_definitions_are_those_of_the_repository(render: Callable[..., Any]) -> None:
    """Taking off Helm's keep annotation leaves exactly the generated definitions, numbers included."""
    found = rendered(render())
    for item in found.values():
        annotations = item["metadata"]["annotations"]
        assert annotations.pop(KEEP) == "keep"
        if not annotations:
            del item["metadata"]["annotations"]
    assert found
    assert found == source()
    assert repr(sorted(found.items())) == repr(sorted(source().items()))


def test_definitions_go_with_the_release_if_asked(render: Callable[..., Any]) -> None:
    """crds.keep off renders the generated files as they are."""
    assert rendered(render({"crds": {"keep": False}})) == source()


def test_definitions_can_be_left_to_somebody_else(render: Callable[..., Any]) -> None:
    """crds.enabled off renders no definition."""
    assert rendered(render({"crds": {"enabled": False}})) == {}
