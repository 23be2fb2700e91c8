"""The caches: newest state wins, whatever order events and answers come in."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.observe.cache import ObjectCache
from trimtab.observe.records import Record, generic


def a_body(
    name: str = "a", *, uid: str = "u1", version: int = 1, owner: str = "", **meta: Any
) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version)}
    if owner:
        metadata["ownerReferences"] = [{"uid": owner}]  # type: ignore[assignment]
    return {"metadata": metadata | meta}


@pytest.fixture
def cache() -> ObjectCache[Record]:
    return ObjectCache(generic)


def test_an_older_event_never_replaces_the_answer_of_a_write(cache: ObjectCache[Record]) -> None:
    """A step reads its own writes although the watch lags."""
    cache.put(a_body(version=7))
    assert cache.apply_event("MODIFIED", a_body(version=5)) is None
    found = cache.get("n", "a")
    assert found is not None
    assert found.resource_version == 7


def test_the_event_of_an_own_write_is_no_news(cache: ObjectCache[Record]) -> None:
    """The watch's echo of a write wakes nobody a second time."""
    _, change = cache.put(a_body(version=7))
    assert change is not None
    assert cache.apply_event("MODIFIED", a_body(version=7)) is None


def test_a_deleted_object_does_not_come_back_by_an_old_event(cache: ObjectCache[Record]) -> None:
    """Once gone, a uid stays gone; its name may live again under another uid."""
    cache.apply_event("ADDED", a_body(version=3))
    cache.apply_event("DELETED", a_body(version=4))
    assert cache.apply_event("MODIFIED", a_body(version=3)) is None
    assert cache.get("n", "a") is None
    assert cache.seen("u1")
    change = cache.apply_event("ADDED", a_body(uid="u2", version=9))
    assert change is not None
    assert change.before is None


def test_a_late_deletion_of_a_former_object_spares_its_successor(
    cache: ObjectCache[Record],
) -> None:
    """The DELETED of the old uid does not remove the new object of the same name."""
    cache.apply_event("ADDED", a_body(uid="u1", version=3))
    cache.apply_event("ADDED", a_body(uid="u2", version=9))
    assert cache.apply_event("DELETED", a_body(uid="u1", version=4)) is None
    found = cache.get("n", "a")
    assert found is not None
    assert found.uid == "u2"


def test_children_are_found_by_every_owner(cache: ObjectCache[Record]) -> None:
    """References and the owner label both count, and the index follows changes."""
    cache.put(a_body("a", uid="u1", owner="o1"))
    cache.put(a_body("b", uid="u2", labels={"trimtab.dev/owner-uid": "o1"}))
    assert [r.name for r in cache.owned_by("o1")] == ["a", "b"]
    cache.put(a_body("a", uid="u1", version=2, owner="o2"))
    assert [r.name for r in cache.owned_by("o1")] == ["b"]
    cache.forget("u2")
    assert cache.owned_by("o1") == ()


def test_a_status_of_others_is_no_change_of_what_we_own() -> None:
    """The fingerprint of an object moves with its spec, our labels and annotations alone."""
    base = a_body(generation=2, labels={"trimtab.dev/intent": "x"})
    other = a_body(version=9, generation=2, labels={"trimtab.dev/intent": "x", "team": "blue"})
    edited = a_body(version=9, generation=3, labels={"trimtab.dev/intent": "x"})
    relabelled = a_body(version=9, generation=2, labels={"trimtab.dev/intent": "y"})
    assert generic(base).fingerprint == generic(other).fingerprint
    assert generic(base).fingerprint != generic(edited).fingerprint
    assert generic(base).fingerprint != generic(relabelled).fingerprint


def test_content_counts_where_a_kind_has_no_generation() -> None:
    """A ConfigMap's data and a Service's spec are what may be edited."""
    one = a_body() | {"data": {"k": "1"}}
    two = a_body(version=2) | {"data": {"k": "2"}}
    assert generic(one).fingerprint != generic(two).fingerprint
