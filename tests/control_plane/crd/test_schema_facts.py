"""Each difference between pydantic's JSON Schema and a structural schema, as a real server states it.

A row builds a model, sends pydantic's own schema and notes what the API server says; then it sends
the generator's schema of the same model, which must be accepted, or sees the generator refuse it.
A Kubernetes upgrade that moves a fact is seen here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from trimtab.api.v1alpha1.base import ATOMIC, VISIBLE, Quantity
from trimtab.api.v1alpha1.crd import SchemaError, structural_schema

if TYPE_CHECKING:
    from tests.control_plane.crd.conftest import Api

pytestmark = pytest.mark.control_plane

Short = Annotated[str, Field(max_length=8)]


class Inner(BaseModel):
    word: Short


class WithReference(BaseModel):
    inner: Inner


class WithOptional(BaseModel):
    word: Short | None = None


class WithForbiddenExtras(BaseModel):
    model_config = ConfigDict(extra="forbid")
    word: Short


class WithExclusiveBounds(BaseModel):
    number: Annotated[int, Field(gt=0, lt=10)]


class WithTuple(BaseModel):
    pair: tuple[int, Short]


class WithIntOrString(BaseModel):
    size: int | Short


class WithQuantity(BaseModel):
    size: Quantity


class WithSet(BaseModel):
    words: Annotated[set[Short], Field(max_length=4)]


class WithLookAhead(BaseModel):
    model_config = ConfigDict(regex_engine="python-re")
    word: Annotated[str, Field(pattern="^(?!no)", max_length=8)]


class WithConst(BaseModel):
    kind: Literal["Only"]


class WithTitle(BaseModel):
    word: Short


class WithWrongDefault(BaseModel):
    word: Annotated[Short, Field(json_schema_extra=VISIBLE)] = "too long a default"


class WithFloat(BaseModel):
    number: float


@dataclass(frozen=True)
class Row:
    """One row of the table: what the server says to pydantic's schema, what the generator does."""

    model: type[BaseModel]
    server: str
    generator: str | None = None


REFUSED = [
    Row(WithReference, "$ref: Forbidden"),
    Row(WithOptional, "must be empty to be structural"),
    Row(WithForbiddenExtras, "additionalProperties and properties are mutual exclusive"),
    Row(WithExclusiveBounds, "json: cannot unmarshal number into Go struct field"),
    Row(WithTuple, "items: Required value", "is a tuple"),
    Row(WithIntOrString, "type: Required value", "has 2 types"),
    Row(WithQuantity, "must be empty to be structural"),
    Row(WithSet, "uniqueItems: Forbidden"),
    Row(WithLookAhead, "pattern: Invalid value", "no look-around"),
]


def definition(spec: dict[str, Any]) -> dict[str, Any]:
    """A CustomResourceDefinition with the given schema of `spec`."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "facts.facts.trimtab.dev"},
        "spec": {
            "group": "facts.trimtab.dev",
            "names": {"kind": "Fact", "plural": "facts"},
            "scope": "Cluster",
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}},
                }
            ],
        },
    }


def define(api: Api, spec: dict[str, Any]) -> Any:
    return api.request(
        "POST",
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        definition(spec),
        query={"dryRun": "All"},
    )


def stored(answer: Any) -> dict[str, Any]:
    version = answer.body["spec"]["versions"][0]
    return version["schema"]["openAPIV3Schema"]["properties"]["spec"]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.model.__name__)
def test_server_refuses_what_pydantic_emits(bare_api: Api, row: Row) -> None:
    """The server's own words about pydantic's schema; without them the generator has no reason."""
    raw = row.model.model_json_schema()
    raw.pop("$defs", None)
    answer = define(bare_api, raw)
    assert answer.code in {400, 422}
    assert row.server in answer.message


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.model.__name__)
def test_generator_makes_it_acceptable_or_refuses_it(bare_api: Api, row: Row) -> None:
    """What can be expressed is accepted by the server; what cannot never leaves the generator."""
    if row.generator:
        with pytest.raises(SchemaError, match=row.generator):
            structural_schema(row.model)
        return
    answer = define(bare_api, structural_schema(row.model))
    assert answer.code == 201, answer.message


def test_default_that_violates_its_own_schema_is_refused(bare_api: Api) -> None:
    """A wrong default is a mistake in a model, which installing the definition shows."""
    answer = define(bare_api, structural_schema(WithWrongDefault))
    assert answer.code == 422
    assert "properties[word].default: Too long: may not be more than 8" in answer.message


def test_const_is_accepted_and_silently_dropped(bare_api: Api) -> None:
    """A `const` would validate nothing, so the generator writes an enum of one."""
    raw = WithConst.model_json_schema()
    raw["properties"]["kind"].pop("enum", None)
    assert raw["properties"]["kind"]["const"] == "Only"
    answer = define(bare_api, raw)
    assert answer.code == 201
    assert "const" not in stored(answer)["properties"]["kind"]
    converted = define(bare_api, structural_schema(WithConst))
    assert stored(converted)["properties"]["kind"]["enum"] == ["Only"]


def test_title_is_accepted_noise(bare_api: Api) -> None:
    """The server keeps titles, so the generator strips them."""
    answer = define(bare_api, WithTitle.model_json_schema())
    assert answer.code == 201
    assert stored(answer)["properties"]["word"]["title"] == "Word"
    assert "title" not in str(structural_schema(WithTitle))


def test_floats_are_accepted_by_the_server_and_refused_by_the_generator(bare_api: Api) -> None:
    """Floats lose digits on the way, which no server prevents."""
    assert define(bare_api, WithFloat.model_json_schema()).code == 201
    with pytest.raises(SchemaError, match="is a float"):
        structural_schema(WithFloat)


@pytest.mark.parametrize(("bounded", "code"), [(False, 422), (True, 201)])
def test_cost_of_a_rule_is_estimated_from_bounds(
    bare_api: Api, *, bounded: bool, code: int
) -> None:
    """A rule over unbounded nested lists is refused; the same rule with bounds is accepted."""
    limits = ({"maxItems": 8}, {"maxLength": 16}) if bounded else ({}, {})
    word = {"type": "string", **limits[1]}
    rows = {"type": "array", "items": {"type": "array", "items": word, **limits[0]}, **limits[0]}
    spec = {
        "type": "object",
        "properties": {"rows": rows},
        "x-kubernetes-validations": [
            {"rule": "self.rows.all(r, r.all(a, self.rows.all(q, q.all(b, a == b))))"}
        ],
    }
    answer = define(bare_api, spec)
    assert answer.code == code, answer.message
    assert bounded or "estimated rule cost exceeds budget by factor of more than 100x" in (
        answer.message
    )


def test_lists_of_the_generator_declare_their_type(bare_api: Api) -> None:
    """A list that is a set refuses duplicates; an undeclared one does not leave the generator."""

    class Marked(BaseModel):
        words: Annotated[list[Short], Field(max_length=4, json_schema_extra=ATOMIC)]

    class Unmarked(BaseModel):
        words: Annotated[list[Short], Field(max_length=4)]

    assert define(bare_api, structural_schema(Marked)).code == 201
    with pytest.raises(SchemaError, match="is a list without a type"):
        structural_schema(Unmarked)
