"""Objects in files that people give: read strictly, refused in sentences that name field and value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import yaml
from pydantic import ValidationError

from trimtab.api.v1alpha1.gpuprofile import GPUProfile
from trimtab.api.v1alpha1.inferenceintent import InferenceIntent
from trimtab.api.v1alpha1.names import API_VERSION, GROUP
from trimtab.api.v1alpha1.serverlessfunction import ServerlessFunction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trimtab.api.v1alpha1.base import Resource

KINDS: Final[Mapping[str, type[Resource]]] = {
    kind.NAMES.kind: kind for kind in (InferenceIntent, ServerlessFunction, GPUProfile)
}


_UNION_STEPS: Final = frozenset({"constrained-int", "constrained-str", "int", "str"})


class ManifestError(ValueError):
    """A file does not hold what was asked for; the message has one line per mistake."""


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: a timestamp stays text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(text: str, *, origin: str) -> list[Resource]:
    """Return our objects of a YAML or JSON text, in its order; other groups' are passed over.

    Args:
        text: One or more documents; a `List` is unfolded.
        origin: File name, for messages.

    Raises:
        ManifestError: With every mistake of every document.
    """
    mistakes: list[str] = []
    resources: list[Resource] = []
    try:
        documents = list(_unfolded(yaml.load_all(text, Loader=_Loader)))
    except yaml.YAMLError as error:
        raise ManifestError(f"{origin} is not valid YAML: {error}. Correct it.") from error
    for document in documents:
        if _is_foreign(document):
            continue
        found = _read_one(document, origin=origin)
        if isinstance(found, list):
            mistakes.extend(found)
        else:
            resources.append(found)
    if mistakes:
        raise ManifestError("\n".join(mistakes))
    return resources


def broken_rules(resource: Resource) -> list[str]:
    """Return the messages of the rules across fields that an object breaks."""
    broken = [rule.message for rule in resource.RULES if rule.holds and not rule.holds(resource)]
    spec = getattr(resource, "spec", None)
    broken.extend(
        rule.message for rule in resource.SPEC_RULES if rule.holds and not rule.holds(spec)
    )
    return broken


def describe(document: Mapping[str, Any]) -> str:  # any: JSON
    """Return `Kind namespace/name` of an object, as far as it has them."""
    metadata = document.get("metadata") or {}
    parts = [metadata.get("namespace"), metadata.get("name")] if isinstance(metadata, dict) else []
    name = "/".join(str(part) for part in parts if part)
    return f"{document.get('kind')} {name or '(no name)'}"


def sentences(error: ValidationError, *, what: str) -> list[str]:
    """Return one sentence per wrong field: object, field, value and what is expected."""
    by_path = {_path(entry["loc"]): entry for entry in error.errors()}
    return [
        f"{what}: {path} is {_shown(entry)}: {_expected(entry)}." for path, entry in by_path.items()
    ]


def _unfolded(documents: Iterator[Any]) -> Iterator[Any]:  # any: YAML
    for document in documents:
        if document is None:
            continue
        if isinstance(document, dict) and document.get("kind") == "List":
            yield from document.get("items") or ()
        else:
            yield document


def _is_foreign(document: Any) -> bool:  # any: YAML
    return isinstance(document, dict) and (
        str(document.get("apiVersion", GROUP)).split("/")[0] != GROUP and "kind" in document
    )


def _read_one(document: Any, *, origin: str) -> Resource | list[str]:  # any: YAML
    if not isinstance(document, dict):
        return [f"{origin} holds {type(document).__name__} {document!r}: expected an object."]
    kind = KINDS.get(str(document.get("kind")))
    if kind is None or document.get("apiVersion") != API_VERSION:
        return [
            (
                f"{origin} holds {document.get('apiVersion')} {document.get('kind')}: expected "
                f"{API_VERSION} and one of {', '.join(KINDS)}."
            )
        ]
    what = describe(document)
    try:
        resource = kind.from_file(document)
    except ValidationError as error:
        return [f"{origin}: {sentence}" for sentence in sentences(error, what=what)]
    return [f"{origin}: {what}: {message}." for message in broken_rules(resource)] or resource


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        if str(step) in _UNION_STEPS:
            continue
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.lstrip(".") or "the object"


def _shown(entry: Mapping[str, Any]) -> str:  # any: pydantic's error entries
    if entry["type"] == "missing":
        return "missing"
    if entry["type"] == "extra_forbidden":
        return "unknown"
    text = repr(entry["input"])
    return text if len(text) <= 120 else f"{text[:117]}..."


def _expected(entry: Mapping[str, Any]) -> str:  # any: pydantic's error entries
    if entry["type"] == "missing":
        return "give it"
    if entry["type"] == "extra_forbidden":
        return "remove it or correct its name"
    message = str(entry["msg"])
    return message[:1].lower() + message[1:]
