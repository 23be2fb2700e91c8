"""What holds for every pace and every observation."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.reconcile.builders import (
    SETTINGS,
    a_plan,
    a_record,
    an_observed,
    an_option,
)
from trimtab.api.v1alpha1.inferenceintent import InferenceIntentStatus
from trimtab.observe.intents import FingerprintProgress, ObservedIntent
from trimtab.reconcile.inferenceintent.decide import decide
from trimtab.reconcile.inferenceintent.rollout import Rollout
from trimtab.reconcile.pacing import LONGEST_BACKOFF_SECONDS, RESYNC_SECONDS, Outcome
from trimtab.reconcile.pacing import next_delay_seconds as delay

JITTER = st.floats(-1, 1)


@given(failures=st.integers(1, 1000), jitter=JITTER)
def test_back_offs_stay_within_bounds(failures: int, jitter: float) -> None:
    """Failure n rests min(300, 2ⁿ) s, spread by 20 %."""
    plain = min(LONGEST_BACKOFF_SECONDS, 2.0 ** min(failures, 30))
    found = delay(outcome=Outcome(failed=True), failures=failures, jitter=jitter)
    assert 0.8 * plain - 1e-9 <= found <= 1.2 * plain + 1e-9


@given(failures=st.integers(1, 50), jitter=JITTER, wish=st.floats(0, 10_000))
def test_retry_after_is_the_least(failures: int, jitter: float, wish: float) -> None:
    """No back-off is shorter than what the server asked for."""
    outcome = Outcome(failed=True, retry_after_seconds=wish)
    assert delay(outcome=outcome, failures=failures, jitter=jitter) >= wish


@given(jitter=JITTER, appointment=st.none() | st.floats(0, 10_000))
def test_nobody_is_forgotten(jitter: float, appointment: float | None) -> None:
    """Every object is looked at within the resync period, and never in a busy loop."""
    outcome = Outcome(requeue_after_seconds=appointment)
    found = delay(outcome=outcome, failures=0, jitter=jitter)
    assert 0.1 <= found <= 1.2 * RESYNC_SECONDS


@st.composite
def observed(draw: st.DrawFn) -> ObservedIntent:
    record = a_record(generation=draw(st.integers(1, 3)), priority=draw(st.integers(0, 2)))
    option = st.builds(
        an_option,
        precision=st.sampled_from(["bf16", "fp32"]),
        threads=st.integers(1, 8),
        replicas=st.integers(1, 4),
        arena_bytes=st.integers(2**20, 2**34),
        max_model_len=st.integers(16, 8192),
        cost_per_hour_micro_usd=st.none() | st.integers(0, 10**12),
    )
    changes: dict[str, Any] = {
        "plan": draw(st.none() | st.builds(lambda o: a_plan(record, option=o), option)),
        "fingerprints": draw(
            st.builds(FingerprintProgress, wanted=st.integers(0, 4), hold=st.booleans())
        ),
        "planner_problem": draw(st.sampled_from(["", "It hung."])),
        "price_problem": draw(st.sampled_from(["", "Key x is unknown."])),
        "gateway_answers": draw(st.booleans()),
        "several_nodes": draw(st.booleans()),
    }
    return an_observed(record, **changes)


@given(seen=observed())
def test_equal_observations_give_equal_plans(seen: ObservedIntent) -> None:
    """A decision has no clock, no chance and no memory."""
    assert decide(seen, settings=SETTINGS) == decide(seen, settings=SETTINGS)


@given(seen=observed())
def test_every_status_fits_the_schema(seen: ObservedIntent) -> None:
    """Whatever is decided, the API server would take its status."""
    plan = decide(seen, settings=SETTINGS)
    InferenceIntentStatus.model_validate(plan.status, extra="forbid")
    assert plan.conditions[0].type == "Ready"
    assert all(c.message.startswith("InferenceIntent team-a/chat: ") for c in plan.conditions)


@given(seen=observed())
def test_names_and_sizes_of_children_are_accepted(seen: ObservedIntent) -> None:
    """Every child's name is a label of at most 63 characters, and carries its owner."""
    for manifest in decide(seen, settings=SETTINGS).desired:
        meta = manifest["metadata"]
        assert len(meta["name"]) <= 63
        assert meta["labels"]["trimtab.dev/owner-uid"] == seen.record.uid
        assert all(len(value) <= 63 for value in meta["labels"].values())


@given(seen=observed())
def test_a_roll_out_is_read_back_as_it_was_written(seen: ObservedIntent) -> None:
    """After a crash the Deployment's annotation tells what runs."""
    for manifest in decide(seen, settings=SETTINGS).desired:
        if manifest["kind"] == "Deployment":
            text = manifest["metadata"]["annotations"]["trimtab.dev/rollout"]
            rollout = Rollout.from_json(text)
            assert rollout is not None
            assert rollout.to_json() == text
