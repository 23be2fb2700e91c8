"""What the three kinds share: the base model, value types, CEL rules, metadata and conditions.

Models ignore unknown fields when they read the API server (an old operator meets a new field) and
forbid them in files that a person gives. Rules across fields live in the CRD as CEL and here as
predicates, never as validators: an object that the API server stored must always be readable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping  # noqa: TC003 - pydantic reads annotations
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints
from pydantic.alias_generators import to_camel

DEFAULTED: Final = "x-trimtab-default"
"""Schema key of a field whose default the CRD shows; the generator removes the key itself."""

ATOMIC: Final = {"x-kubernetes-list-type": "atomic"}
SET: Final = {"x-kubernetes-list-type": "set"}
VISIBLE: Final = {DEFAULTED: True}


def keyed(*keys: str) -> dict[str, Any]:  # any: JSON schema
    """Return the schema of a list that is a map by the given keys."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


class ApiModel(BaseModel):
    """A frozen value with camelCase names outside and snake_case names inside."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        use_attribute_docstrings=True,
        use_enum_values=False,
    )

    def to_manifest(self) -> dict[str, Any]:  # any: JSON
        """Return the value as JSON with camelCase names, without unset or null fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


# Values. Money, rates and shares are decimal strings, because JSON numbers lose digits on the way.

Money = Annotated[
    str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?$", max_length=16)
]
Decimals = Annotated[
    str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})(\.[0-9]{1,6})?$", max_length=16)
]
Percent = Annotated[
    str,
    StringConstraints(pattern=r"^(100(\.0{1,3})?|[1-9]?[0-9](\.[0-9]{1,3})?)$", max_length=7),
]
SignedPercent = Annotated[
    str,
    StringConstraints(pattern=r"^-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,3})?$", max_length=14),
]
QuantityText = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$", max_length=28
    ),
]
Quantity = Annotated[
    Annotated[int, Field(ge=0, le=2**53)] | QuantityText,
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]
Text = Annotated[str, StringConstraints(max_length=1024)]
Sentence = Annotated[str, StringConstraints(max_length=4096)]
Word = Annotated[
    str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]*$", min_length=1, max_length=64)
]
"""A PascalCase reason. Not an enum in the schema: an old reader meets a new writer's reason."""
DNSLabel = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", max_length=63)
]
DNSName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", max_length=253),
]
Product = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]{0,61}[A-Za-z0-9])?$", max_length=63),
]
"""A product as the normaliser writes it: `NVIDIA-H100-80GB-HBM3`, or `cpu`."""
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Bytes = Annotated[int, Field(ge=0, le=2**53)]
PerMille = Annotated[int, Field(ge=0, le=1_000_000)]


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[
    datetime,
    PlainSerializer(_rfc3339, return_type=str, when_used="json"),
    Field(json_schema_extra={"format": "date-time"}),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A condition across fields, in CEL for the API server and in Python for files read offline.

    Attributes:
        expression: CEL over `self` (and `oldSelf` for a transition rule).
        message: What a user sees; names the field and the remedy.
        reason: One of the API server's four, as the cause of the rejection.
        field_path: Field that is blamed, relative to where the rule stands.
        holds: The same over the parsed model; None where only an update can break it.
    """

    expression: str
    message: str
    reason: Literal[
        "FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate"
    ]
    field_path: str | None
    holds: Callable[[Any], bool] | None  # any: the model that the rule stands at


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of `kubectl get`; `wide` columns need `-o wide`."""

    name: str
    json_path: str
    description: str
    type: Literal["string", "integer", "date"] = "string"
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """How the API server and kubectl call a kind."""

    kind: str
    plural: str
    singular: str
    short: tuple[str, ...]
    scope: Literal["Namespaced", "Cluster"]
    description: str


class OwnerReference(ApiModel):
    """Which object owns this one."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(ApiModel):
    """Kubernetes' own metadata, as far as anybody reads it; the CRD leaves its schema to the server."""

    name: str = ""
    generate_name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()
    managed_fields: tuple[dict[str, Any], ...] = ()  # any: fieldsV1 is a set written as an object
    self_link: str | None = None


class StatusCondition(ApiModel):
    """One condition as it stands in a status (metav1.Condition)."""

    type: Annotated[
        str,
        StringConstraints(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$", max_length=316),
    ]
    """type names the condition; ours are listed in the API reference."""
    status: Literal["True", "False", "Unknown"]
    """status is True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """observedGeneration is the metadata.generation that was judged."""
    last_transition_time: Time
    """lastTransitionTime is when status last changed."""
    reason: Annotated[
        str,
        StringConstraints(
            pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", min_length=1, max_length=1024
        ),
    ]
    """reason is one PascalCase word for programs."""
    message: Annotated[str, StringConstraints(max_length=32768)]
    """message is a sentence for people: object, field, value and what to do."""


Conditions = Annotated[
    tuple[StatusCondition, ...], Field(max_length=32, json_schema_extra=keyed("type"))
]
ObservedGeneration = Annotated[int, Field(ge=0, le=2**53)]


class Resource(ApiModel):
    """An object of one of the three kinds. Subclasses add `spec` and `status`."""

    NAMES: ClassVar[Names]
    RULES: ClassVar[tuple[Rule, ...]]
    SPEC_RULES: ClassVar[tuple[Rule, ...]]
    COLUMNS: ClassVar[tuple[Column, ...]]

    api_version: Literal["trimtab.dev/v1alpha1"] = "trimtab.dev/v1alpha1"
    kind: str
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)

    @classmethod
    def from_cluster(cls, body: Mapping[str, Any]) -> Self:  # any: JSON
        """Read an object of the API server; unknown fields are ignored.

        Raises:
            pydantic.ValidationError: The object was stored under another schema.
        """
        return cls.model_validate(body, extra="ignore")

    @classmethod
    def from_file(cls, document: Mapping[str, Any]) -> Self:  # any: JSON
        """Read an object that a person wrote; unknown fields and inexact types are refused.

        Raises:
            pydantic.ValidationError: With one entry per wrong field. `manifests.read` turns it
                into sentences and checks the rules across fields too.
        """
        return cls.model_validate_json(json.dumps(document), strict=True, extra="forbid")


METADATA_RULES: Final = (
    Rule(
        expression="self.metadata.name.matches('^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$')",
        message=(
            "metadata.name must be at most 63 lower-case letters, digits and '-', must start with a "
            "letter and must end with a letter or digit, because labels and Services carry it"
        ),
        reason="FieldValueInvalid",
        field_path=None,
        holds=lambda resource: _is_label(resource.metadata.name),
    ),
)


def _is_label(name: str) -> bool:
    import re  # noqa: PLC0415 - only files need it

    return re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name) is not None
