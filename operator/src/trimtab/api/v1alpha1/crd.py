"""CustomResourceDefinitions from the pydantic models: what a real API server accepts, and no more.

pydantic writes JSON Schema 2020-12; the API server wants a *structural* OpenAPI 3.0 schema, and
silently drops or loudly refuses the rest. Each difference is handled by one function below; what
cannot be expressed (tuples, floats, look-around, unbounded strings) raises `SchemaError` here, so
that nobody learns it from a cluster.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from trimtab.api.v1alpha1.base import DEFAULTED
from trimtab.api.v1alpha1.manifests import KINDS
from trimtab.api.v1alpha1.names import GROUP, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import BaseModel

    from trimtab.api.v1alpha1.base import Resource, Rule

JSONSchema = dict[str, Any]  # any: a JSON Schema is an open set of keys

_HEADER: Final = "# Generated from the pydantic models by `trimtab crds generate`: edit those.\n"
_COPIED: Final = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "multipleOf",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
)
_SCALAR_BOUNDS: Final = frozenset({"pattern", "minLength", "maxLength", "minimum", "maximum"})
_KNOWN: Final = frozenset(
    {
        *_COPIED,
        "title",
        "default",
        "const",
        "anyOf",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "uniqueItems",
        DEFAULTED,
    }
)
_LOOK_AROUND: Final = re.compile(r"\(\?(?:[=!]|<[=!])|\\[1-9]")


class SchemaError(ValueError):
    """A model cannot be expressed as a structural schema; names the field and the remedy."""


def custom_resource_definition(kind: type[Resource]) -> JSONSchema:
    """Return the CustomResourceDefinition of one kind.

    Raises:
        SchemaError: A field of the models has no structural form.
    """
    names = kind.NAMES
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": names.kind,
                "listKind": f"{names.kind}List",
                "plural": names.plural,
                "singular": names.singular,
                "shortNames": list(names.short),
                "categories": ["trimtab"],
            },
            "scope": names.scope,
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in kind.COLUMNS],
                    "schema": {"openAPIV3Schema": _root(kind)},
                }
            ],
        },
    }


def structural_schema(model: type[BaseModel]) -> JSONSchema:
    """Return a model's structural schema: references inlined, only what the API server keeps.

    Raises:
        SchemaError: A field has no structural form; names the field and the remedy.
    """
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    return _Converter(definitions).convert(schema, path=model.__name__, inside=frozenset())


def to_yaml(definition: JSONSchema) -> str:
    """Return the bytes that `crds/` and the chart hold, as text."""
    return _HEADER + yaml.dump(
        definition, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True
    )


def rendered() -> dict[str, str]:
    """Return file name → text of every kind's definition."""
    return {
        f"{kind.NAMES.plural}.yaml": to_yaml(custom_resource_definition(kind))
        for kind in KINDS.values()
    }


class _Dumper(yaml.SafeDumper):
    """Without anchors: the API server refuses none, but people cannot read them."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _root(kind: type[Resource]) -> JSONSchema:
    schema = kind.model_json_schema(by_alias=True)
    converter = _Converter(schema["$defs"])
    spec, status = (
        converter.convert(schema["properties"][part], path=part, inside=frozenset())
        for part in ("spec", "status")
    )
    if kind.SPEC_RULES:
        spec["x-kubernetes-validations"] = _validations(kind.SPEC_RULES)
    root: JSONSchema = {
        "description": kind.NAMES.description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {
                "description": "apiVersion is the version of this object's schema.",
                "type": "string",
            },
            "kind": {"description": "kind is the kind of this object.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }
    if kind.RULES:
        root["x-kubernetes-validations"] = _validations(kind.RULES)
    return root


def _validations(rules: Iterable[Rule]) -> list[dict[str, str]]:
    found = []
    for rule in rules:
        entry = {"rule": rule.expression, "message": rule.message, "reason": rule.reason}
        if rule.field_path is not None:
            entry["fieldPath"] = rule.field_path
        found.append(entry)
    return found


def _column(column: Any) -> JSONSchema:  # any: base.Column, imported for typing only
    found: JSONSchema = {
        "name": column.name,
        "type": column.type,
        "description": column.description,
        "jsonPath": column.json_path,
    }
    if column.wide:
        found["priority"] = 1
    return found


@dataclass(frozen=True, slots=True)
class _Converter:
    """Walks one schema; `path` is for messages, `inside` the references being inlined."""

    definitions: JSONSchema

    def convert(self, node: JSONSchema, *, path: str, inside: frozenset[str]) -> JSONSchema:
        """Return the structural form of one node."""
        node, inside = self._inlined(node, path=path, inside=inside)
        if "anyOf" in node and not node.get("x-kubernetes-int-or-string"):
            node, inside = self._without_null(node, path=path, inside=inside)
        if node.get("x-kubernetes-int-or-string"):
            return _int_or_string(node)
        _refuse(node, path=path)
        found: JSONSchema = {key: node[key] for key in _COPIED if key in node}
        if "const" in node:  # accepted and silently dropped by the API server
            found["enum"] = [node["const"]]
        _exclusive(node, found)
        if node.get(DEFAULTED):
            found["default"] = node["default"]
        if node.get("uniqueItems"):
            found["x-kubernetes-list-type"] = "set"
        found.update({key: value for key, value in node.items() if key.startswith("x-kubernetes-")})
        if "items" in node:
            found["items"] = self.convert(node["items"], path=f"{path}[]", inside=inside)
        if found.get("type") == "object":
            found.update(self._members(node, path=path, inside=inside))
        _bounded(found, path=path)
        if found["type"] == "integer":
            found["format"] = "int32" if found["maximum"] < 2**31 else "int64"
        return found

    def _inlined(
        self, node: JSONSchema, *, path: str, inside: frozenset[str]
    ) -> tuple[JSONSchema, frozenset[str]]:
        """Inline a `$ref`; what stands beside it (a field's own description) wins."""
        while "$ref" in node:
            name = str(node["$ref"]).removeprefix("#/$defs/")
            if name in inside:
                raise SchemaError(f"{path} refers to itself through {name}: break the cycle.")
            inside |= {name}
            beside = {key: value for key, value in node.items() if key != "$ref"}
            node = {**self.definitions[name], **beside}
        return node, inside

    def _without_null(
        self, node: JSONSchema, *, path: str, inside: frozenset[str]
    ) -> tuple[JSONSchema, frozenset[str]]:
        """Replace `anyOf: [X, null]` by X: a null field is an absent one."""
        choices = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
        if len(choices) != 1:
            raise SchemaError(
                f"{path} has {len(choices)} types: give it one, or use Quantity for an integer or "
                "a string."
            )
        beside = {key: value for key, value in node.items() if key != "anyOf"}
        chosen, inside = self._inlined(choices[0], path=path, inside=inside)
        return {**chosen, **beside}, inside

    def _members(self, node: JSONSchema, *, path: str, inside: frozenset[str]) -> JSONSchema:
        """Return an object's fields, or a map's values."""
        if "properties" in node:
            # `additionalProperties: false` excludes `properties` in a structural schema; pruning
            # and kubectl's strict validation do its work.
            members: JSONSchema = {"required": node["required"]} if node.get("required") else {}
            members["properties"] = {
                name: self.convert(child, path=f"{path}.{name}", inside=inside)
                for name, child in node["properties"].items()
            }
            return members
        values = node.get("additionalProperties")
        if not isinstance(values, dict):
            raise SchemaError(f"{path} is an open object: declare its fields.")
        if "$ref" in values or values.get("type") == "object":
            raise SchemaError(f"{path} is a map of structs: use a list that is a map by a key.")
        return {"additionalProperties": self.convert(values, path=f"{path}[*]", inside=inside)}


def _int_or_string(node: JSONSchema) -> JSONSchema:
    found: JSONSchema = {"description": node["description"]} if "description" in node else {}
    found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    for choice in node["anyOf"]:  # each bound speaks of one of the two types only
        found.update({key: value for key, value in choice.items() if key in _SCALAR_BOUNDS})
    found["x-kubernetes-int-or-string"] = True
    return found


def _refuse(node: JSONSchema, *, path: str) -> None:
    if "prefixItems" in node:
        raise SchemaError(f"{path} is a tuple: use a list of one type, or a model.")
    if node.get("type") == "number":
        raise SchemaError(f"{path} is a float: use a decimal string or an integer with a unit.")
    if _LOOK_AROUND.search(node.get("pattern", "")):
        raise SchemaError(
            f"{path} has pattern {node['pattern']!r}: the API server's RE2 knows no look-around and "
            "no back-reference; use a Rule."
        )
    unknown = [key for key in node if key not in _KNOWN and not key.startswith("x-kubernetes-")]
    if unknown:
        raise SchemaError(f"{path} has {', '.join(unknown)}, which no structural schema has.")
    if node.get(DEFAULTED) and "default" not in node:
        raise SchemaError(f"{path} is marked as defaulted but has no default: give it one.")


def _exclusive(node: JSONSchema, found: JSONSchema) -> None:
    """OpenAPI 3.0 has a flag where JSON Schema has a number."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            found[bound] = node[exclusive]
            found[exclusive] = True


def _bounded(found: JSONSchema, *, path: str) -> None:
    """Every length and count has a limit: the cost of a CEL rule is estimated from them."""
    kind = found.get("type")
    limited = {
        "string": ("maxLength", "enum", "format"),
        "array": ("maxItems",),
        "integer": ("maximum",),
    }
    if kind is None:
        raise SchemaError(f"{path} has no type: give it one.")
    if kind in limited and not any(limit in found for limit in limited[kind]):
        raise SchemaError(f"{path} is an unbounded {kind}: give it {limited[kind][0]}.")
    if "additionalProperties" in found and "maxProperties" not in found:
        raise SchemaError(f"{path} is an unbounded map: give it maxProperties.")
    if kind == "array" and "x-kubernetes-list-type" not in found:
        raise SchemaError(f"{path} is a list without a type: mark it atomic, set or keyed.")
