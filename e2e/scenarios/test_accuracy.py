"""What int8 and int4 lose on the real model, measured in the cluster, and a limit between the two."""

from __future__ import annotations

import json
from decimal import ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.scenarios.builders import TEAM, an_intent
from trimtab.api.v1alpha1.names import COMPONENT_LABEL, OWNER_UID_LABEL
from trimtab.observe.inspections import INSPECTION_KEY, ModelFacts, parse_verdict
from trimtab.planning.accuracy import AccuracyLoss, parse
from trimtab.reconcile.snapshot import ACCURACY_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]
NAME = "judged"


def constrained(limit: str) -> dict[str, Any]:
    pins = {"precisions": ["int8", "int4"], "maxAccuracyLossPercent": limit, "maxReplicas": 1}
    return an_intent(NAME, constraints=pins)


@pytest.fixture
def measured(stack: st.Stack) -> Iterator[dict[str, AccuracyLoss]]:
    """An intent that nothing may serve before its losses are known, and those losses."""

    def kept(labels: str, key: str) -> list[str]:
        maps = stack.kubectl("get", "configmaps", "-n", st.SYSTEM, "-o", "json", "-l", labels)
        return [m["data"][key] for m in json.loads(maps)["items"] if key in m["data"]]

    def documents() -> dict[str, AccuracyLoss]:
        uid = (stack.get("ii", NAME, TEAM) or {}).get("metadata", {}).get("uid", "")
        inspected = [
            verdict.model.source
            for text in kept(f"{OWNER_UID_LABEL}={uid}", INSPECTION_KEY)
            if isinstance(verdict := parse_verdict(text), ModelFacts)
        ]
        found = [parse(text)[0] for text in kept(f"{COMPONENT_LABEL}=accuracy", ACCURACY_KEY)]
        # Other models of other scenarios may have been measured in this cluster.
        return {loss.precision: loss for loss in found if loss.key.model in inspected}

    try:
        stack.apply(constrained("0"))
        yield st.wait_for(
            "what int8 and int4 lose",
            lambda: found if len(found := documents()) == 2 else None,
            seconds=480,
        )
    finally:
        stack.kubectl("delete", "ii", NAME, "-n", TEAM, "--wait=false", "--ignore-not-found")


def test_a_limit_between_two_measured_losses(
    stack: st.Stack, measured: dict[str, AccuracyLoss], capsys: pytest.CaptureFixture[str]
) -> None:
    """The real model is measured at both precisions, and a limit between them admits one alone."""
    with capsys.disabled():
        for loss in measured.values():
            print(f"\nmeasured: {loss.precision} {loss.described()}; {loss.seconds} s", end="")
    assert {loss.key.own for loss in measured.values()} == {"bf16"}
    # Which one loses less depends on the checkpoint: this file was quantised to 4 bits before.
    better, worse = sorted(measured.values(), key=lambda loss: loss.percent)
    assert better.percent < worse.percent
    assert worse.percent > 0
    between = max(Decimal(0), (better.percent + worse.percent) / 2)
    limit = f"{between.quantize(worse.percent, rounding=ROUND_FLOOR):f}"
    stack.apply(constrained(limit))

    def options() -> dict[str, dict[str, Any]] | None:
        status = (stack.get("ii", NAME, TEAM) or {}).get("status") or {}
        found = [status["plan"]] if "plan" in status else []
        by = {o["precision"]: o for o in (*status.get("alternatives", ())[::-1], *found)}
        admitted = by.get(better.precision, {}).get("reason") not in (None, "AccuracyLoss")
        return by if admitted else None

    # Others may hold all threads, so what counts is that it is an option, not that it is the plan.
    found = st.wait_for(
        "an option within the limit",
        options,
        seconds=90,
        seen=lambda: (stack.get("ii", NAME, TEAM) or {}).get("status"),
    )
    for loss in (better, worse):
        shown = found[loss.precision]["accuracyLossPercent"]
        assert shown == f"{loss.percent.normalize():f}"
    refused = found[worse.precision]
    assert refused["reason"] == "AccuracyLoss"
    assert f"loses {worse.percent.normalize():f} % of accuracy" in refused["message"]
    assert f"more than spec.constraints.maxAccuracyLossPercent {limit}." in refused["message"]
    said = " ".join(stack.trimtab("why", f"ii/{NAME}", "-n", TEAM).split())
    assert f"{worse.precision} loses {worse.percent.normalize():f} % of accuracy" in said
