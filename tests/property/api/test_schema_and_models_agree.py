"""The schema that the API server has and the models that the operator has say the same."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab.api.v1alpha1.crd import custom_resource_definition
from trimtab.api.v1alpha1.manifests import KINDS

if TYPE_CHECKING:
    from trimtab.api.v1alpha1.base import Resource

JSON = dict[str, Any]
SCHEMAS: dict[str, JSON] = {
    name: custom_resource_definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for name, kind in KINDS.items()
}
CALM = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def drawn_from(schema: JSON) -> st.SearchStrategy[Any]:
    """Values that a structural schema accepts."""
    if schema.get("x-kubernetes-int-or-string"):
        return st.one_of(_integers(schema), _strings(schema))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return {
        "string": _strings,
        "integer": _integers,
        "boolean": lambda _: st.booleans(),
        "array": _lists,
        "object": _objects,
    }[schema["type"]](schema)


def _objects(schema: JSON) -> st.SearchStrategy[JSON]:
    if "additionalProperties" in schema:
        return st.dictionaries(
            st.from_regex(r"[a-z]{1,8}", fullmatch=True),
            drawn_from(schema["additionalProperties"]),
            min_size=schema.get("minProperties", 0),
            max_size=3,
        )
    fields = {name: drawn_from(child) for name, child in schema.get("properties", {}).items()}
    required = set(schema.get("required", ()))
    return st.fixed_dictionaries(
        {name: field for name, field in fields.items() if name in required},
        optional={name: field for name, field in fields.items() if name not in required},
    )


def _integers(schema: JSON) -> st.SearchStrategy[int]:
    return st.integers(min_value=schema["minimum"], max_value=schema["maximum"])


def _strings(schema: JSON) -> st.SearchStrategy[str]:
    if schema.get("format") == "date-time":
        return (
            st.datetimes()
            .map(lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%SZ"))
            .filter(lambda text: re.match(r"\d{4}-", text) is not None)
        )
    longest = schema["maxLength"]
    if "pattern" in schema:
        found = st.from_regex(
            schema["pattern"].rstrip("$") + r"\Z", alphabet=st.characters(codec="ascii")
        )
        return found.filter(lambda text: schema.get("minLength", 0) <= len(text) <= longest)
    return st.text(
        st.characters(codec="utf-8"), min_size=schema.get("minLength", 0), max_size=min(longest, 40)
    )


def _lists(schema: JSON) -> st.SearchStrategy[list[Any]]:
    keys = schema.get("x-kubernetes-list-map-keys", ())
    unique: Any = None
    if schema["x-kubernetes-list-type"] == "set":
        unique = repr
    elif keys:
        unique = lambda item: tuple(repr(item[key]) for key in keys)  # noqa: E731 - a key function
    return st.lists(
        drawn_from(schema["items"]),
        min_size=schema.get("minItems", 0),
        max_size=min(schema["maxItems"], 3),
        unique_by=unique,
    )


def _manifest(kind: str, spec: Any, status: Any = None) -> JSON:
    manifest = {
        "apiVersion": "trimtab.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "subject"},
        "spec": spec,
    }
    return manifest if status is None else manifest | {"status": status}


def _read(kind: str) -> type[Resource]:
    return KINDS[kind]


@pytest.mark.parametrize("kind", sorted(KINDS))
@CALM
@given(data=st.data())
def test_models_read_whatever_the_schema_accepts(kind: str, data: st.DataObject) -> None:
    """Spec and status that the schema accepts are read, by both readers, and written back unchanged."""
    parts = SCHEMAS[kind]["properties"]
    manifest = _manifest(
        kind, data.draw(drawn_from(parts["spec"])), data.draw(drawn_from(parts["status"]))
    )
    model = _read(kind)
    assert model.from_file(manifest).to_manifest() == manifest
    assert model.from_cluster(manifest).to_manifest() == manifest


def _required(schema: JSON, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [(*path, name) for name in schema.get("required", ())]
    for name, child in schema.get("properties", {}).items():
        found += _required(child, (*path, name))
    return found


def _enums(schema: JSON, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if "enum" in schema else []
    for name, child in schema.get("properties", {}).items():
        found += _enums(child, (*path, name))
    return found


def _place(manifest: JSON, path: tuple[str, ...]) -> JSON | None:
    place: Any = manifest
    for step in path[:-1]:
        place = place.get(step) if isinstance(place, dict) else None
    return place if isinstance(place, dict) and path[-1] in place else None


def _paths(find: Any) -> list[Any]:
    return [
        pytest.param(kind, path, id=f"{kind}.{'.'.join(path)}")
        for kind in sorted(KINDS)
        for part in ("spec", "status")
        for path in find(SCHEMAS[kind]["properties"][part], (part,))
    ]


def _with_everything(schema: JSON, path: tuple[str, ...]) -> JSON:
    """The schema with every field on the way to `path` required, so that draws contain it."""
    schema = copy.deepcopy(schema)
    place = schema
    for step in path:
        place["required"] = sorted({*place.get("required", ()), step})
        place = place["properties"][step]
    return schema


@pytest.mark.parametrize(("kind", "path"), _paths(_required))
@settings(CALM, max_examples=3)
@given(data=st.data())
def test_models_require_what_the_schema_requires(
    kind: str, path: tuple[str, ...], data: st.DataObject
) -> None:
    """Without a required field neither reader accepts the object."""
    manifest = data.draw(drawn_from(_with_everything(_whole(kind), path)))
    manifest = _manifest(kind, manifest["spec"], manifest.get("status"))
    place = _place(manifest, path)
    assume(place is not None)
    del place[path[-1]]
    for read in (_read(kind).from_file, _read(kind).from_cluster):
        with pytest.raises(ValidationError):
            read(manifest)


@pytest.mark.parametrize(("kind", "path"), _paths(_enums))
@settings(CALM, max_examples=3)
@given(data=st.data(), word=st.from_regex(r"[A-Z][a-z]{9}", fullmatch=True))
def test_models_refuse_values_outside_an_enum(
    kind: str, path: tuple[str, ...], data: st.DataObject, word: str
) -> None:
    """A word that no enum lists is refused by both readers."""
    manifest = data.draw(drawn_from(_with_everything(_whole(kind), path)))
    manifest = _manifest(kind, manifest["spec"], manifest.get("status"))
    place = _place(manifest, path)
    assume(place is not None)
    assume(word not in str(SCHEMAS[kind]))
    place[path[-1]] = word
    for read in (_read(kind).from_file, _read(kind).from_cluster):
        with pytest.raises(ValidationError):
            read(manifest)


def _whole(kind: str) -> JSON:
    parts = SCHEMAS[kind]["properties"]
    return {
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": parts["spec"], "status": parts["status"]},
    }
