"""Scenarios 1 and 10 of docs: the operator is killed between its writes, and while objects are deleted."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.faults import FirstOfEachKind, KillAfterWrite, Match, Status
from e2e.faults.endstate import difference

if TYPE_CHECKING:
    from e2e.faults.bench import Bench

pytestmark = [pytest.mark.control_plane, pytest.mark.timeout(900)]

WRITES = Match(mutating=True, lease=False)


def _events(bench: Bench) -> collections.Counter[tuple[str, str]]:
    """Count the intent's events by reason and note; an aggregated event counts as many times."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for event in bench.list("events.events.k8s.io"):
        if event["regarding"].get("kind") == "InferenceIntent":
            count = (event.get("series") or {}).get("count", 1)
            found[event["reason"], event.get("note", "")] += count
    return found


def _survives(
    bench: Bench, undisturbed: dict[str, Any], fault: KillAfterWrite, *, seconds: float = 600
) -> None:
    fault.kill = bench.operator.kill
    bench.proxy.add(fault)
    bench.apply(bench.intent())
    bench.wait_settled(seconds=seconds)
    bench.proxy.clear()
    bench.wait("operator leads", bench.operator.ready)
    assert difference(undisturbed, bench.end_state()) == ""
    assert bench.proxy.injected["kill-after-write"] == fault.injected > 5
    killed = [end for end in bench.operator.ends if end.code == -9]
    assert len(killed) == fault.injected
    assert max(_events(bench).values()) == 1, _events(bench)


def test_killed_after_each_kind_of_write_it_creates_the_same_objects(
    bench: Bench, undisturbed: dict[str, Any]
) -> None:
    """Scenario 1: killed after the first write of every kind during a create, it ends where it would have."""
    kinds = FirstOfEachKind(WRITES)
    _survives(bench, undisturbed, KillAfterWrite(match=kinds, times=None))
    written = {(verb, resource) for verb, resource, _ in kinds.kinds}
    assert ("patch", "deployments") in written
    assert ("patch", "inferenceintents") in written


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_after_every_write_it_creates_the_same_objects(
    bench: Bench, undisturbed: dict[str, Any]
) -> None:
    """Scenario 1, in full: killed after every single write of a create, one after another."""
    # Sixty restarts: a busy machine needs 12 s for one, and a restart's first write repeats an apply.
    _survives(bench, undisturbed, KillAfterWrite(match=WRITES, times=60), seconds=1800)


def test_intent_deleted_while_the_operator_is_down_leaves_nothing(bench: Bench) -> None:
    """Scenario 10: on start children go, the finalizer is released though the server errs at first."""
    bench.apply(bench.intent())
    bench.wait_settled()
    pods = bench.list("pods")
    assert pods
    bench.operator.hold()
    bench.delete("chat", wait=False)
    intent = bench.get()
    assert intent is not None, "the finalizer holds the object while nobody is there to release it"
    assert intent["metadata"]["deletionTimestamp"]
    release = Match(verbs=frozenset({"patch"}), resource="inferenceintents")
    bench.proxy.add(Status(match=release, times=2, code=500))
    bench.operator.release()
    bench.wait("the intent to go", lambda: bench.get() is None, seconds=120)
    owned = "deployments,services,jobs,networkpolicies,pods"
    bench.wait("children to go", lambda: not bench.list(owned), seconds=60)
    left = [
        m for m in bench.cluster.get("configmaps", "-n", "faults-system", "-l", "trimtab.dev/intent=chat")["items"]
        if m["metadata"]["labels"].get("trimtab.dev/intent-namespace") == bench.namespace
    ]  # fmt: skip
    assert not left, "what lies in the system namespace has no owner: the sweep takes it"
    assert bench.proxy.injected["status"] == 2
    bench.cluster.kubectl("delete", "namespace", bench.namespace, "--wait=false")
    st.wait_for(
        "the namespace to go",
        lambda: (
            not bench.cluster.kubectl(
                "get", "namespace", bench.namespace, "--ignore-not-found", "-o", "name"
            )
        ),
        seconds=90,
    )
    bench.cluster.kubectl("create", "namespace", bench.namespace)  # the clean-up expects one
