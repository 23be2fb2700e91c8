"""Kubernetes' API conventions, checked mechanically over the definitions that are checked in."""

from __future__ import annotations

import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from trimtab.api.v1alpha1.conditions import CONDITIONS
from trimtab.api.v1alpha1.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "crds").glob("*.yaml"))
DEFINITIONS = [yaml.safe_load(path.read_text()) for path in FILES]
OTHERS_NAMES = {"fp32", "fp16", "bf16", "fp8", "int8", "int4"}
KUBERNETES_BOOLEANS = {"retryOnOutOfMemory"}


def _schema(definition: dict[str, Any]) -> dict[str, Any]:
    return definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def _nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, field name (empty for items and values) and schema of every node below spec and status."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", name, child
        yield from _nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield f"{path}[]", "", node[key]
            yield from _nodes(node[key], f"{path}[]")


def _all_nodes() -> list[tuple[str, str, dict[str, Any]]]:
    found = []
    for definition in DEFINITIONS:
        kind = definition["spec"]["names"]["kind"]
        for part in ("spec", "status"):
            found += list(_nodes(_schema(definition)["properties"][part], f"{kind}.{part}"))
    return found


NODES = _all_nodes()


def _wrong(check: Any) -> list[str]:
    return [path for path, name, node in NODES if not check(name, node)]


def test_there_is_something_to_check() -> None:
    """Three kinds with over a hundred fields: an empty folder would pass every check below."""
    assert len(DEFINITIONS) == 3
    assert len(NODES) > 150


def test_field_names_are_camel_case() -> None:
    """Fields are camelCase."""
    assert _wrong(lambda name, _: re.fullmatch(r"([a-z][A-Za-z0-9]*)?", name)) == []


def test_enum_values_are_pascal_case() -> None:
    """Enum values are PascalCase; the names of precisions are the field's own."""
    assert (
        _wrong(
            lambda _, node: all(
                re.fullmatch(r"[A-Z][A-Za-z0-9]*", str(value)) or value in OTHERS_NAMES
                for value in node.get("enum", ())
            )
        )
        == []
    )


def test_there_are_no_floats_nullables_phases_durations_or_timestamps() -> None:
    """Numbers are integers with a unit or decimal strings; times end in Time."""
    assert _wrong(lambda _, node: node.get("type") != "number") == []
    assert _wrong(lambda _, node: "nullable" not in node) == []
    assert _wrong(lambda name, _: name not in {"phase", "duration", "timeout"}) == []
    assert (
        _wrong(
            lambda name, _: (
                not name.lower().endswith(("timestamp", "reference")) or name == "reference"
            )
        )
        == []
    )
    assert (
        _wrong(lambda name, node: node.get("format") != "date-time" or name.endswith("Time")) == []
    )


def test_booleans_are_avoided() -> None:
    """A boolean cannot grow a third value; the one exception is the design's."""
    found = {name for _, name, node in NODES if node.get("type") == "boolean"}
    assert found == KUBERNETES_BOOLEANS


def test_lengths_and_counts_have_limits() -> None:
    """Every string, list, map and integer has a limit: CEL's cost is estimated from them."""
    limits = {
        "string": ("maxLength", "enum", "format"),
        "array": ("maxItems",),
        "integer": ("maximum",),
    }
    assert (
        _wrong(
            lambda _, node: (
                node.get("type") not in limits
                or any(limit in node for limit in limits[node["type"]])
            )
        )
        == []
    )
    assert (
        _wrong(lambda _, node: "additionalProperties" not in node or "maxProperties" in node) == []
    )


def test_integers_have_a_width() -> None:
    """Integers say int32 or int64, as Go's types do."""
    assert (
        _wrong(
            lambda _, node: (
                node.get("type") != "integer" or node.get("format") in {"int32", "int64"}
            )
        )
        == []
    )


def test_lists_are_atomic_sets_or_maps_by_required_keys() -> None:
    """Server-side apply merges lists only where it knows how; a map's keys are required scalars."""

    def right(_: str, node: dict[str, Any]) -> bool:
        if node.get("type") != "array":
            return True
        kind = node.get("x-kubernetes-list-type")
        if kind == "map":
            items = node["items"]
            return all(
                key in items["required"] and items["properties"][key]["type"] == "string"
                for key in node["x-kubernetes-list-map-keys"]
            )
        return kind == "atomic" or (
            kind == "set" and node["items"]["type"] in {"string", "integer"}
        )

    assert _wrong(right) == []


def test_maps_hold_no_structs() -> None:
    """A map of structs is a list that is a map by a key."""
    assert (
        _wrong(lambda _, node: node.get("additionalProperties", {}).get("type") in {None, "string"})
        == []
    )


def test_descriptions_start_with_the_name_of_the_field() -> None:
    """Every field is described, and the description reads on from its name."""
    assert (
        _wrong(
            lambda name, node: (
                not name or re.match(rf"{re.escape(name)}\b", node.get("description", ""))
            )
        )
        == []
    )


def test_there_is_no_optional_required_field_and_no_hidden_default() -> None:
    """A defaulted field is optional, and only four defaults are stored."""
    defaulted = {path for path, _, node in NODES if "default" in node}
    assert defaulted == {
        "InferenceIntent.spec.sharing",
        "InferenceIntent.spec.infeasible",
        "ServerlessFunction.spec.mode",
        "GPUProfile.spec.outliers",
    }
    for definition in DEFINITIONS:
        spec = _schema(definition)["properties"]["spec"]
        assert not {n for n, c in spec["properties"].items() if "default" in c} & set(
            spec["required"]
        )


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d["spec"]["names"]["kind"])
def test_conditions_come_first_in_every_status(definition: dict[str, Any]) -> None:
    """A status begins with conditions, a list that is a map by type, then observedGeneration."""
    status = _schema(definition)["properties"]["status"]["properties"]
    assert list(status)[:2] == ["conditions", "observedGeneration"]
    conditions = status["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert "observedGeneration" in conditions["items"]["properties"]


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d["spec"]["names"]["kind"])
def test_rules_have_message_reason_and_a_field_of_the_schema(definition: dict[str, Any]) -> None:
    """Every rule has a sentence; the field it blames exists, below the node the rule stands at."""
    root = _schema(definition)
    for node in (root, root["properties"]["spec"]):
        for rule in node.get("x-kubernetes-validations", ()):
            assert len(rule["message"]) > 30
            assert not rule["message"].endswith(".")
            assert rule["reason"].startswith("FieldValue")
            place = node
            for step in [s for s in rule.get("fieldPath", "").split(".") if s]:
                place = place["properties"][step]
    spec = root["properties"]["spec"]
    assert spec["x-kubernetes-validations"], "a kind without any rule needs a reason"


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: d["spec"]["names"]["kind"])
def test_columns_begin_with_ready_and_end_with_age(definition: dict[str, Any]) -> None:
    """The columns begin with Ready and Reason, end with Age, and read fields that exist."""
    version = definition["spec"]["versions"][0]
    columns = version["additionalPrinterColumns"]
    assert [c["name"] for c in columns][:2] == ["Ready", "Reason"]
    assert columns[-1]["name"] == "Age"
    for column in columns[2:-1]:
        place = _schema(definition)
        for step in column["jsonPath"].split(".")[1:]:
            place = place["properties"][step]
        assert place["type"] == column["type"], column


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_definition_stays_small(path: Path) -> None:
    """A definition stays below 200 KiB, far from what client-side apply can hold twice."""
    assert path.stat().st_size < 200 * 1024


def test_patterns_need_no_look_around() -> None:
    """RE2 has neither look-around nor back-references."""
    assert (
        _wrong(lambda _, node: not re.search(r"\(\?[=!<]|\\[1-9]", node.get("pattern", ""))) == []
    )


def test_reasons_are_pascal_case_documented_and_unique() -> None:
    """A reason is one PascalCase word with a one-line meaning."""
    assert len(Reason) > 60
    for reason in Reason:
        assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", reason)
        assert reason.name.replace("_", "") == reason.upper()
        assert reason.doc.endswith(".")
        assert "\n" not in reason.doc
        assert len(reason.doc) <= 110
    assert len({reason.doc for reason in Reason}) == len(Reason)


def test_every_condition_is_described_and_every_kind_has_a_gate() -> None:
    """Each kind declares Ready first and at least one gating condition, of positive polarity."""
    kinds = {definition["spec"]["names"]["kind"] for definition in DEFINITIONS}
    assert set(CONDITIONS) == kinds
    for declared in CONDITIONS.values():
        assert declared[0].type == "Ready"
        assert [d for d in declared if d.gating]
        for condition in declared:
            assert condition.doc.startswith(f"{condition.type} ")
            assert condition.positive or not condition.gating


def test_api_reference_is_up_to_date() -> None:
    """docs/reference/api.md is what the models say."""
    done = subprocess.run(
        [sys.executable, "-m", "docs.reference.generate", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_api_reference_names_every_field_and_reason() -> None:
    """No field, condition or reason is missing from the reference."""
    text = (ROOT / "docs/reference/api.md").read_text()
    for path, name, _ in NODES:
        assert not name or f"`{path.split('.', 1)[1]}`" in text, path
    for reason in Reason:
        assert f"| `{reason}` | {reason.doc} |" in text


def test_planner_uses_reasons_of_the_closed_list() -> None:
    """Whatever word the planner gives becomes a condition's or an alternative's reason."""
    from trimtab.planning import plan

    words = {*typing.get_args(plan.Reason), *typing.get_args(plan.Lost)}
    assert words
    assert words - {str(reason) for reason in Reason} == set()
