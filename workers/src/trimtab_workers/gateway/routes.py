"""The routing table: which models exist, which Service serves each, how fast each pod is.

Pure. One document per namespace, written by the operator (docs/design/20261123-contracts.md,
section 8). A document that cannot be read changes nothing for its namespace.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNKNOWN_POD_FACTOR: Final = 1000
_WEIGHT_FLOOR, _WEIGHT_CEILING = 500, 2000


class RouteDocumentError(ValueError):
    """A `routes.json` that cannot be used; the message names the field and its value."""


class ModelNotFoundError(LookupError):
    """No model of that name exists, or the caller may invoke none of those that do."""


class AmbiguousModelError(LookupError):
    """A bare name stands for several models; the message names them."""


@dataclass(frozen=True, slots=True)
class PodFactors:
    """How slow a pod is beside the median of its pool, in thousandths."""

    prefill: int = UNKNOWN_POD_FACTOR
    decode: int = UNKNOWN_POD_FACTOR


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRoute:
    """One model that clients can name."""

    namespace: str
    name: str
    intent: str
    service: str
    bare: bool = False
    alarm: bool = False
    prefill_share: float = 0.5
    pods: Mapping[str, PodFactors] = field(default_factory=dict)

    @property
    def public_name(self) -> str:
        """The one name a worker answers to."""
        return f"{self.namespace}/{self.name}"

    @property
    def intent_key(self) -> str:
        """The intent's namespace and name, as `/-/observed` reports it."""
        return f"{self.namespace}/{self.intent}"

    def factor(self, uid: str) -> float:
        """Return how slow a pod is for this model's mix, in thousandths; 1000 if unknown."""
        factors = self.pods.get(uid)
        if factors is None:
            return float(UNKNOWN_POD_FACTOR)
        return self.prefill_share * factors.prefill + (1.0 - self.prefill_share) * factors.decode

    def weight(self, uid: str) -> int:
        """Return a pod's share of work by the table alone; see `weight_of`."""
        return weight_of(self.factor(uid))


def weight_of(factor: float) -> int:
    """Return 10⁶ ÷ factor: 1000 for the median pod, clipped to 500 and 2000."""
    return max(_WEIGHT_FLOOR, min(_WEIGHT_CEILING, round(1e6 / factor)))


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceRoutes:
    """The models of one namespace, and the revision of the document that said so."""

    namespace: str
    revision: int
    models: tuple[ModelRoute, ...]


class RouteTable:
    """Every namespace's models, found by name at a cost that does not grow with their number."""

    def __init__(self, namespaces: Mapping[str, NamespaceRoutes] | None = None) -> None:
        self.namespaces: Mapping[str, NamespaceRoutes] = namespaces or {}
        models = [model for routes in self.namespaces.values() for model in routes.models]
        models.sort(key=lambda model: (model.namespace, model.name))
        self._models = tuple(models)
        self._by_public_name = {model.public_name: model for model in models}
        self._by_name: dict[str, list[ModelRoute]] = {}
        for model in models:
            self._by_name.setdefault(model.name, []).append(model)

    @property
    def revision(self) -> int:
        """The highest revision in force, 0 for an empty table."""
        return max((routes.revision for routes in self.namespaces.values()), default=0)

    def models(self) -> tuple[ModelRoute, ...]:
        """Return every model, by namespace and name."""
        return self._models

    def candidates(self, name: str) -> tuple[ModelRoute, ...]:
        """Return the models that `name` can stand for, without regard to rights."""
        if "/" in name:
            model = self._by_public_name.get(name)
            return () if model is None else (model,)
        return tuple(self._by_name.get(name, ()))


def without_rights(candidates: Iterable[ModelRoute], *, name: str) -> tuple[ModelRoute, ...]:
    """Keep, of a bare name's candidates, those that the operator granted it to.

    Used where nobody checks callers (`gateway.auth: None`).
    """
    if "/" in name:
        return tuple(candidates)
    return tuple(model for model in candidates if model.bare)


def choose(allowed: Iterable[ModelRoute], *, name: str) -> ModelRoute:
    """Return the one model that `name` means among those the caller may invoke.

    Raises:
        ModelNotFoundError: There is none.
        AmbiguousModelError: There are several; names them.
    """
    found = tuple(allowed)
    if not found:
        raise ModelNotFoundError(
            f"The model '{name}' does not exist, or you may not invoke it. "
            "GET /v1/models lists those you may."
        )
    if len(found) > 1:
        names = ", ".join(sorted(model.public_name for model in found))
        raise AmbiguousModelError(
            f"The model name '{name}' stands for several models: {names}. Use one of these names."
        )
    return found[0]


def parse_routes(text: str) -> NamespaceRoutes:
    """Read one `routes.json`; fields we do not know are ignored, as they may be newer.

    Raises:
        RouteDocumentError: The text is no such document; names the field and its value.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RouteDocumentError(f"routes.json is not JSON: {error}.") from error
    if not isinstance(document, dict) or document.get("v") != 1:
        raise RouteDocumentError("routes.json must be an object with v = 1.")
    namespace = _text(document, "namespace")
    revision = document.get("revision")
    if not isinstance(revision, int) or isinstance(revision, bool) or revision < 0:
        raise RouteDocumentError(f"revision is {revision!r}; it must be an integer of 0 or more.")
    models = document.get("models")
    if not isinstance(models, list):
        raise RouteDocumentError(f"models is {type(models).__name__}; it must be a list.")
    parsed = tuple(_parse_model(entry, namespace=namespace) for entry in models)
    names = [model.name for model in parsed]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise RouteDocumentError(f"models names {twice} more than once.")
    return NamespaceRoutes(namespace=namespace, revision=revision, models=parsed)


def _parse_model(entry: object, *, namespace: str) -> ModelRoute:
    if not isinstance(entry, dict):
        raise RouteDocumentError(f"models has {entry!r}; each entry must be an object.")
    pods = entry.get("pods") or {}
    if not isinstance(pods, dict):
        raise RouteDocumentError(f"models[].pods is {pods!r}; it must be an object by pod uid.")
    return ModelRoute(
        namespace=namespace,
        name=_text(entry, "name"),
        intent=_text(entry, "intent"),
        service=_text(entry, "service"),
        bare=entry.get("bare") is True,
        alarm=entry.get("alarm") is True,
        prefill_share=_prefill_share(entry.get("mix")),
        pods={str(uid): _parse_factors(str(uid), factors) for uid, factors in pods.items()},
    )


def _prefill_share(mix: object) -> float:
    if mix is None:
        return 0.5
    if not isinstance(mix, dict):
        raise RouteDocumentError(f"models[].mix is {mix!r}; it must be null or an object.")
    prefill, decode = (_number(mix, key) for key in ("prefill", "decode"))
    total = prefill + decode
    return prefill / total if total > 0 else 0.5


def _parse_factors(uid: str, factors: object) -> PodFactors:
    if not isinstance(factors, dict):
        raise RouteDocumentError(f"models[].pods[{uid}] is {factors!r}; it must be an object.")
    values = []
    for phase in ("prefill", "decode"):
        value = factors.get(phase, UNKNOWN_POD_FACTOR)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise RouteDocumentError(
                f"models[].pods[{uid}].{phase} is {value!r}; it must be a positive integer."
            )
        values.append(value)
    return PodFactors(*values)


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise RouteDocumentError(f"{key} is {value!r}; it must be a non-empty text.")
    return value


def _number(document: Mapping[str, Any], key: str) -> float:
    value = document.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e12:
        raise RouteDocumentError(f"models[].mix.{key} is {value!r}; it must be 0 or more.")
    return float(value)
