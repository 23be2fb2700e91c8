"""On which nodes a volume can be mounted."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.observe.records import node
from trimtab.observe.volumes import nodes_of

NODES = tuple(
    node({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "rank": rank}}})
    for name, rank in (("n1", "1"), ("n0", "0"))
)


def a_volume(*terms: Any) -> dict[str, Any]:
    return {"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": list(terms)}}}}


def asks(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


def test_a_volume_without_affinity_is_everywhere() -> None:
    """A network volume says nothing about nodes, and so binds nobody."""
    assert nodes_of({"spec": {}}, NODES) is None


@pytest.mark.parametrize(
    ("terms", "found"),
    [
        ((asks("kubernetes.io/hostname", "In", "n1"),), ("n1",)),
        ((asks("kubernetes.io/hostname", "NotIn", "n1"),), ("n0",)),
        ((asks("rank", "Gt", "0"),), ("n1",)),
        ((asks("rank", "Lt", "1"),), ("n0",)),
        ((asks("rank", "Exists"),), ("n0", "n1")),
        ((asks("rank", "DoesNotExist"),), ()),
        ((asks("absent", "Gt", "0"),), ()),
        ((asks("rank", "Gt"),), ()),
        ((asks("rank", "Unheard"),), ()),
        ((asks("rank", "In", "0"), asks("rank", "In", "1")), ("n0", "n1")),
        (({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n0"]}]},), ("n0",)),
        (({},), ()),
        ((), ()),
    ],
)  # fmt: skip
def test_terms_are_alternatives_of_requirements(terms: Any, found: tuple[str, ...]) -> None:
    """One term that holds is enough, all of a term has to hold, and an empty one never does."""
    assert nodes_of(a_volume(*terms), NODES) == found


def test_all_of_a_term_has_to_hold() -> None:
    """Requirements of one term narrow each other down."""
    both = {
        "matchExpressions": [
            *asks("rank", "Exists")["matchExpressions"],
            *asks("rank", "In", "1")["matchExpressions"],
        ]
    }
    assert nodes_of(a_volume(both), NODES) == ("n1",)
