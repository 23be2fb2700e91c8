"""Reading and writing the three kinds."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import pytest
from pydantic import BaseModel, ValidationError

from tests.unit.api.manifest_cases import a_function, a_profile, an_intent, merged
from trimtab.api.v1alpha1.crd import SchemaError, custom_resource_definition, structural_schema
from trimtab.api.v1alpha1.gpuprofile import GPUProfile
from trimtab.api.v1alpha1.inferenceintent import InferenceIntent, Objective
from trimtab.api.v1alpha1.manifests import KINDS
from trimtab.api.v1alpha1.serverlessfunction import ServerlessFunction
from trimtab.api.v1alpha1.serverlessfunction_rules import amount


@pytest.mark.parametrize(
    ("kind", "manifest"),
    [
        (InferenceIntent, an_intent()),
        (ServerlessFunction, a_function()),
        (GPUProfile, a_profile()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_manifest_survives_a_round_trip(kind: type, manifest: dict) -> None:
    """What was given comes back, without any default added."""
    assert kind.from_file(manifest).to_manifest() == manifest
    assert kind.from_cluster(manifest).to_manifest() == manifest


def test_unknown_fields_are_ignored_from_the_cluster_and_refused_in_files() -> None:
    """An old operator meets a new field; a person meets a typo."""
    newer = merged(an_intent(), {"spec": {"newField": 1, "model": {"other": {}}}})
    assert InferenceIntent.from_cluster(newer).spec.objective is Objective.MIN_COST
    with pytest.raises(ValidationError, match="newField"):
        InferenceIntent.from_file(newer)


def test_stored_object_that_breaks_a_rule_can_still_be_read() -> None:
    """Rules tighten over time; ratcheting keeps old objects, so the operator must read them."""
    intent = InferenceIntent.from_cluster(an_intent(objective="TargetLatency"))
    assert intent.spec.targets is None


def test_numbers_in_files_are_read_exactly() -> None:
    """The text "5" is no priority: the API server would refuse it, so the file reader does."""
    with pytest.raises(ValidationError, match="priority"):
        InferenceIntent.from_file(an_intent(priority="5"))


def test_public_name_holds_the_namespace() -> None:
    """Clients use the model's name, or the object's, below the namespace."""
    assert InferenceIntent.from_cluster(an_intent()).public_name == "default/subject"
    named = InferenceIntent.from_cluster(an_intent(model={"name": "smollm2"}))
    assert named.public_name == "default/smollm2"


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        (2, "2"),
        ("100m", "0.1"),
        ("1.5", "1.5"),
        ("2Gi", "2147483648"),
        ("1G", "1000000000"),
        ("128Mi", "134217728"),
        ("3k", "3000"),
    ],
)
def test_quantities_are_numbers(quantity: int | str, value: str) -> None:
    """A quantity is read as Kubernetes reads it."""
    assert amount(quantity) == Decimal(value)


def test_names_of_the_kinds_can_be_imported_without_pydantic() -> None:
    """Names, reasons and conditions are read by processes that have no pydantic."""
    code = (
        "import sys; sys.modules['pydantic'] = None\n"
        "import trimtab.api.v1alpha1.names, trimtab.api.v1alpha1.reasons\n"
        "import trimtab.api.v1alpha1.conditions"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Open(BaseModel):
    anything: dict


class Recursive(BaseModel):
    child: Recursive | None = None


class Value(BaseModel):
    word: str


class MapOfStructs(BaseModel):
    values: dict[str, Value]


class Unbounded(BaseModel):
    word: str


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (Open, "is an open object: declare its fields"),
        (Recursive, "break the cycle"),
        (MapOfStructs, "use a list that is a map by a key"),
        (Unbounded, "Unbounded.word is an unbounded string: give it maxLength"),
    ],
)
def test_generator_refuses_what_has_no_structural_form(model: type[BaseModel], remedy: str) -> None:
    """The message names the field and what to use instead."""
    with pytest.raises(SchemaError, match=remedy):
        structural_schema(model)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_definitions_are_equal_for_equal_models(kind: type) -> None:
    """Generating twice gives equal definitions: the check in CI compares bytes."""
    assert custom_resource_definition(kind) == custom_resource_definition(kind)
