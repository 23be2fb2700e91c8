"""Names of objects."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from trimtab.kube.names import MAX_NAME, child, deployment, model_set

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
OWNERS = st.from_regex(r"[a-z][-a-z0-9.]{0,80}", fullmatch=True)


@given(owner=OWNERS, suffix=OWNERS)
def test_names_are_dns_labels_of_at_most_63_characters(owner: str, suffix: str) -> None:
    """Any owner and suffix give a name that every kind accepts."""
    name = child(owner, suffix)
    assert len(name) <= MAX_NAME
    assert LABEL.fullmatch(name)


@given(pairs=st.lists(st.tuples(OWNERS, OWNERS), min_size=2, unique=True))
def test_cut_names_do_not_collide(pairs: list[tuple[str, str]]) -> None:
    """Two different children get two names, however long and alike they are."""
    # `a` + `b-c` and `a-b` + `c` read alike when short; callers' suffixes are hashes of one length.
    fixed = {(owner + "x" * 60, suffix) for owner, suffix in pairs}
    assert len({child(owner, suffix) for owner, suffix in fixed}) == len(fixed)


def test_names_are_equal_after_a_crash() -> None:
    """A name depends on nothing but what it names."""
    assert deployment("chat", "uid-1") == deployment("chat", "uid-1")
    assert deployment("chat", "uid-1") != deployment("chat", "uid-2")


def test_each_plan_has_its_own_model_set() -> None:
    """A pod template names its own model set, so a roll never changes what an old pod reads."""
    assert model_set("chat-1a2b3c4d", "a" * 16) == "chat-1a2b3c4d-aaaaaaaa"
