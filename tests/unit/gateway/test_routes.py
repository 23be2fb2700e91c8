from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab_workers.gateway.routes import (
    AmbiguousModelError,
    ModelNotFoundError,
    ModelRoute,
    PodFactors,
    RouteDocumentError,
    RouteTable,
    choose,
    parse_routes,
    without_rights,
)


def a_model(**fields):
    return {"name": "chat", "intent": "chat", "service": "chat-1a2b3c4d"} | fields


def a_document(*models, **fields):
    document = {"v": 1, "revision": 7, "namespace": "team-a", "models": list(models)}
    return json.dumps(document | fields)


def a_table(*names):
    """Build a table from public names."""
    namespaces = {}
    for name in names:
        namespace, _, model = name.partition("/")
        namespaces.setdefault(namespace, []).append(a_model(name=model))
    return RouteTable(
        {
            namespace: parse_routes(a_document(*models, namespace=namespace))
            for namespace, models in namespaces.items()
        }
    )


def test_document_is_read():
    """A document gives models with their service, mix and pods."""
    pods = {"u1": {"prefill": 900, "decode": 1100}, "u2": {}}
    model = a_model(bare=True, mix={"prefill": 1, "decode": 3}, pods=pods, newer="field")
    (route,) = parse_routes(a_document(model, newer=1)).models
    assert route.public_name == "team-a/chat"
    assert route.bare
    assert route.prefill_share == 0.25
    assert route.pods == {"u1": PodFactors(900, 1100), "u2": PodFactors(1000, 1000)}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "JSON"),
        ("[]", "v = 1"),
        (a_document(v=2), "v = 1"),
        (a_document(namespace=""), "namespace"),
        (a_document(revision=True), "revision"),
        (a_document(revision=-1), "revision"),
        (a_document(models={}), "models"),
        (a_document("chat"), "'chat'"),
        (a_document(a_model(service=None)), "service"),
        (a_document(a_model(mix=[1])), "mix"),
        (a_document(a_model(mix={"prefill": -1, "decode": 1})), "prefill"),
        (a_document(a_model(pods=["u1"])), "pods"),
        (a_document(a_model(pods={"u1": 3})), "u1"),
        (a_document(a_model(pods={"u1": {"decode": 0}})), "decode"),
        (a_document(a_model(), a_model()), "more than once"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_bad_documents_name_the_field(text, word):
    """A document that cannot be read says which field is wrong."""
    with pytest.raises(RouteDocumentError, match=word):
        parse_routes(text)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    """No text makes the reader fail in another way."""
    with contextlib.suppress(RouteDocumentError):
        parse_routes(text)


@given(
    st.floats(0, 1),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
)
def test_weight_is_clipped_and_falls_with_slowness(share, prefill, decode):
    """A pod's weight is 10⁶ over its mixed factor, within 500 and 2000."""
    route = ModelRoute(
        namespace="a",
        name="m",
        intent="m",
        service="s",
        prefill_share=share,
        pods={"u": PodFactors(prefill, decode), "v": PodFactors(prefill + 100, decode + 100)},
    )
    assert 500 <= route.weight("v") <= route.weight("u") <= 2000
    assert route.weight("unknown") == 1000


def test_a_median_pod_weighs_what_an_unknown_one_does():
    """Factors of 1000 mean weight 1000; twice as slow in decode alone means less."""
    pods = {"u": PodFactors(1000, 1000), "slow": PodFactors(1000, 2000)}
    route = ModelRoute(namespace="a", name="m", intent="m", service="s", pods=pods)
    assert route.weight("u") == 1000
    assert route.weight("slow") == 667


def test_full_names_find_one_model():
    """`namespace/name` means that model and no other."""
    table = a_table("a/chat", "b/chat")
    assert choose(table.candidates("b/chat"), name="b/chat").namespace == "b"
    assert table.candidates("c/chat") == ()
    assert table.candidates("a/other") == ()


def test_bare_names_are_resolved_among_what_is_allowed():
    """A bare name finds the one allowed model, none, or several, which are named."""
    candidates = a_table("a/chat", "b/chat", "b/code").candidates("chat")
    assert choose([candidates[1]], name="chat").public_name == "b/chat"
    with pytest.raises(ModelNotFoundError, match="chat"):
        choose([], name="chat")
    with pytest.raises(AmbiguousModelError, match="a/chat, b/chat"):
        choose(candidates, name="chat")


def test_without_callers_the_operator_grants_bare_names():
    """Where nobody checks callers, only the model flagged `bare` has the bare name."""
    documents = {
        "a": parse_routes(a_document(a_model(), namespace="a")),
        "b": parse_routes(a_document(a_model(bare=True), namespace="b")),
    }
    candidates = RouteTable(documents).candidates("chat")
    assert [route.namespace for route in without_rights(candidates, name="chat")] == ["b"]
    assert len(without_rights(candidates, name="a/chat")) == 2


def test_revision_is_the_highest():
    """The table's revision is the highest of its documents."""
    documents = {
        "a": parse_routes(a_document(revision=3)),
        "b": parse_routes(a_document(revision=5)),
    }
    assert RouteTable(documents).revision == 5
    assert RouteTable().revision == 0
