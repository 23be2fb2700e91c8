"""Precisions of fewer bits: never chosen unasked, and what is said when they are."""

from dataclasses import replace

import pytest

from tests.unit.planning.builders import CAPABILITIES, SMOLLM2, a_model, an_intent, plan_one
from trimtab.planning.memory import memory_plan
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import compute_precision, loses_accuracy, matrix_bytes
from trimtab.planning.snapshot import Constraints

ALL = replace(CAPABILITIES, precisions=("bf16", "fp32", "int8", "int4"))


def test_never_unasked():
    """An engine that runs int8 and int4 changes no plan of an intent that does not name them."""
    found = plan_one(an_intent(), capabilities=ALL)
    shown = {found.option.config.precision, *(a.config.precision for a in found.alternatives)}
    assert shown == {"bf16"}
    assert "accuracy" not in " ".join(found.notes)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_asked_for(precision: str):
    """A pinned precision of fewer bits is planned, smaller, with a note that its loss is unknown."""
    plain = plan_one(an_intent(), capabilities=ALL).option
    found = plan_one(an_intent(constraints=Constraints(precisions=(precision,))), capabilities=ALL)
    assert found.option.config.precision == precision
    assert found.option.memory_bytes < plain.memory_bytes
    assert f"{precision}, which keeps fewer bits than the checkpoint's bf16" in found.notes[-1]
    assert {need.kv_precision for need in found.needs} == {"bf16"}


def test_bound_that_nothing_proves():
    """A bound on accuracy excludes what is not measured, and says how to get a plan."""
    bound = Constraints(precisions=("int8",), max_accuracy_loss_percent="1")
    found = plan_one(an_intent(constraints=bound), capabilities=ALL)
    assert (found.verdict, found.reason) == ("Unplanned", "ConstraintsExcludeAll")
    assert "maxAccuracyLossPercent 1. Allow bf16" in found.message
    both = replace(bound, precisions=("int8", "bf16"))
    found = plan_one(an_intent(constraints=both), capabilities=ALL)
    assert found.option.config.precision == "bf16"
    assert {a.reason for a in found.alternatives if a.config.precision == "int8"} == {
        "AccuracyLoss"
    }


def test_order_of_bits():
    """Only a precision with fewer bits than the checkpoint's loses accuracy."""
    assert not loses_accuracy("fp32", own="bf16")
    assert not loses_accuracy("bf16", own="fp16")
    assert loses_accuracy("bf16", own="fp32")
    assert loses_accuracy("int4", own="int8")
    assert compute_precision("fp32") == "fp32"


def test_bytes():
    """SmolLM2's gate-up matrix: a byte or five bits a weight; the KV cache stays bf16's."""
    assert matrix_bytes(3072, 576, precision="bf16") == 3072 * 576 * 2
    assert matrix_bytes(3072, 576, precision="int8") == 3072 * 576 + 3072 * 2
    assert matrix_bytes(3072, 576, precision="int4") == 3072 * 576 * 5 // 8
    sizes = {
        precision: memory_plan(
            SMOLLM2,
            depth=30,
            precision=precision,
            kv_precision=compute_precision(precision),
            kv_tokens=2048,
            block_tokens=16,
            fingerprint=None,
            policy=PlannerPolicy(),
        )
        for precision in ("bf16", "int8", "int4")
    }
    assert sizes["int4"].weights < sizes["int8"].weights < 0.62 * sizes["bf16"].weights
    assert sizes["int4"].kv_tokens >= 2048


def test_checkpoint_of_fp32():
    """A checkpoint of fp32 is planned as fp32; bf16 has to be asked for."""
    assert plan_one(an_intent(model=a_model(precision="fp32"))).option.config.precision == "fp32"
