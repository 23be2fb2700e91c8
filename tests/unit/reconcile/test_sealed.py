"""What the operator reads back from objects that anybody may edit."""

from __future__ import annotations

import json

import pytest

from trimtab.kube import names
from trimtab.observe.records import config_map, deployment
from trimtab.reconcile.sealed import ROLLOUT_ANNOTATION, rollout_text, seal, unseal

DOCUMENT = {"threads": 1, "nodes": ["n0"], "config": {"precision": "bf16"}}
TEXT = seal(DOCUMENT)


def test_what_was_sealed_is_read_as_it_was_written() -> None:
    """Spaces and order do not matter; one without a seal is of an older release."""
    assert unseal(TEXT) == DOCUMENT
    assert unseal(json.dumps(json.loads(TEXT), indent=1)) == DOCUMENT
    assert unseal(json.dumps(DOCUMENT)) == DOCUMENT


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace('"threads":1', '"threads":2'),
        TEXT.replace('"nodes":["n0"],', ""),
        json.dumps({**DOCUMENT, "seal": "0" * 16}),
        json.dumps({**DOCUMENT, "seal": 1}),
        "",
        "[]",
        "[" * 100_000,
        '{"a":' * 50_000,
    ],
)
def test_an_edit_is_as_good_as_nothing(text: str) -> None:
    """One figure changed, one field missing, another seal, no document at all."""
    assert unseal(text) is None


def _deployment(text: str, *, digest: str = "d1") -> dict[str, object]:
    template = {"metadata": {"annotations": {"trimtab.dev/plan-digest": digest}}}
    meta = {"name": "chat", "namespace": "team-a", "annotations": {ROLLOUT_ANNOTATION: text}}
    return {"metadata": meta, "spec": {"template": template}}


def _set(text: str, *, digest: str = "d1", namespace: str = "team-a") -> dict[str, object]:
    name = names.model_set("chat", digest)
    meta = {"name": name, "namespace": namespace, "annotations": {ROLLOUT_ANNOTATION: text}}
    return {"metadata": meta, "data": {}}


def test_the_copy_counts_only_where_the_note_was_edited_and_only_of_what_runs() -> None:
    """The Deployment's own first; then the set that its pods read, no other one and no tenant's."""
    other = seal({"threads": 8})
    sets = [
        config_map(_set(other, digest="d0")),
        config_map(_set(other, namespace="team-b")),
        config_map(_set(TEXT)),
    ]
    assert rollout_text(deployment(_deployment(other)), sets) == other
    assert rollout_text(deployment(_deployment("edited")), sets) == TEXT
    assert rollout_text(deployment(_deployment("edited")), sets[:2]) == ""
