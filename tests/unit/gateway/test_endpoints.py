from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trimtab_workers.gateway.endpoints import EndpointBook, SliceRecord, parse_slice


def an_endpoint(uid, *, address="10.0.0.1", **conditions):
    return {
        "addresses": [address],
        "conditions": conditions,
        "targetRef": {"kind": "Pod", "name": f"pod-{uid}", "uid": uid},
    }


def a_slice(*endpoints, name="chat-abc", ports=None):
    return {
        "metadata": {
            "name": name,
            "namespace": "team-a",
            "labels": {"kubernetes.io/service-name": "chat"},
        },
        "ports": [{"name": "http", "port": 8000}] if ports is None else ports,
        "endpoints": list(endpoints),
    }


def serving(*slices):
    book = EndpointBook()
    for body in slices:
        book.put(parse_slice(body))
    return [row.uid for row in book.serving(namespace="team-a", service="chat")]


def test_ready_endpoints_serve():
    """Ready endpoints serve; absent conditions mean ready and not terminating."""
    rows = [
        an_endpoint("a", ready=True, terminating=False),
        an_endpoint("b"),
        an_endpoint("c", ready=False),
        an_endpoint("d", ready=None),
    ]
    assert serving(a_slice(*rows)) == ["a", "b", "d"]


def test_terminating_endpoints_get_nothing_new():
    """A terminating endpoint gets no new request, even where it still counts as ready."""
    assert serving(a_slice(an_endpoint("a", ready=True, terminating=True))) == []


def test_a_pod_in_two_slices_counts_once():
    """While a pod moves between slices, the one that says ready counts."""
    old = a_slice(an_endpoint("a", ready=False), name="old")
    new = a_slice(an_endpoint("a", ready=True), name="new")
    assert serving(old, new) == serving(new, old) == ["a"]


def test_ports_by_name_then_first():
    """The port named http is taken, else the first; without ports nothing serves."""
    named = parse_slice(
        a_slice(an_endpoint("a"), ports=[{"name": "admin", "port": 1}, {"name": "http", "port": 2}])
    )
    assert named.endpoints[0].base_url == "http://10.0.0.1:2"
    first = parse_slice(a_slice(an_endpoint("a"), ports=[{"name": "x", "port": 3}]))
    assert first.endpoints[0].port == 3
    assert parse_slice(a_slice(an_endpoint("a"), ports=[])).endpoints == ()


def test_ipv6_addresses_are_bracketed():
    """An IPv6 endpoint gives a valid URL."""
    record = parse_slice(a_slice(an_endpoint("a", address="fd00::1")))
    assert record.endpoints[0].base_url == "http://[fd00::1]:8000"


def test_slices_without_service_are_no_business_of_ours():
    """A slice that names no Service is ignored."""
    assert parse_slice({"metadata": {"name": "x", "namespace": "team-a"}}) is None


def test_removed_slices_are_forgotten():
    """After a slice is deleted, its pods are gone; deleting twice is fine."""
    book = EndpointBook()
    record = parse_slice(a_slice(an_endpoint("a")))
    book.put(record)
    book.remove(record.key)
    book.remove(record.key)
    assert book.serving(namespace="team-a", service="chat") == ()


def test_records_survive_json():
    """What is saved to disk is read back equal."""
    record = parse_slice(a_slice(an_endpoint("a"), an_endpoint("b", terminating=True)))
    assert SliceRecord.from_dict(record.to_dict()) == record


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["s1", "s2", "s3"]),
            st.sampled_from(["chat", "code", None]),
            st.sets(st.sampled_from("abc")),
        )
    )
)
def test_any_history_gives_what_the_last_slices_say(history):
    """However slices come, move between Services and go, each Service has its last slices' pods."""
    book, last = EndpointBook(), {}
    for key, service, uids in history:
        if service is None:
            book.remove(f"team-a/{key}")
            last.pop(key, None)
            continue
        body = a_slice(*(an_endpoint(uid) for uid in sorted(uids)), name=key)
        body["metadata"]["labels"]["kubernetes.io/service-name"] = service
        book.put(parse_slice(body))
        last[key] = (service, uids)
    for service in ("chat", "code"):
        wanted = set().union(*(uids for of, uids in last.values() if of == service))
        found = book.serving(namespace="team-a", service=service)
        assert [row.uid for row in found] == sorted(wanted)
    assert set(book.slices) == {f"team-a/{key}" for key in last}
