"""On which nodes a claim's volume can be mounted, as its PersistentVolume says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from trimtab.observe.records import Body, NodeRecord

_OPERATORS: Final[Mapping[str, Callable[[str | None, Sequence[str]], bool]]] = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
    "Gt": lambda value, values: _number(value) > _number(values[0]),
    "Lt": lambda value, values: _number(value) < _number(values[0]),
}


def nodes_of(volume: Body, nodes: Iterable[NodeRecord]) -> tuple[str, ...] | None:
    """Return the nodes that can mount a PersistentVolume, sorted; None where all can."""
    affinity = (volume.get("spec") or {}).get("nodeAffinity") or {}
    required = affinity.get("required")
    if not required:
        return None
    terms = required.get("nodeSelectorTerms") or ()
    return tuple(sorted(node.name for node in nodes if any(_matches(t, node) for t in terms)))


def _matches(term: Mapping[str, Any], node: NodeRecord) -> bool:
    """Whether a node has all that a term asks; an empty term matches nothing, as Kubernetes has it."""
    by_label = [(one, node.labels) for one in term.get("matchExpressions") or ()]
    by_field = [(one, {"metadata.name": node.name}) for one in term.get("matchFields") or ()]
    asked = [*by_label, *by_field]
    return bool(asked) and all(_holds(one, found) for one, found in asked)


def _holds(requirement: Mapping[str, Any], found: Mapping[str, str]) -> bool:
    judge = _OPERATORS.get(str(requirement.get("operator")))
    try:
        value = found.get(str(requirement.get("key")))
        return judge is not None and judge(value, requirement.get("values") or ())
    except (ValueError, IndexError):
        return False


def _number(text: str | None) -> int:
    if text is None:
        raise ValueError("Only a label that is there can be compared as a number.")
    return int(text)
