"""What `trimtab why` says, from a status alone."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.unit.cli.statuses import a_served_intent
from trimtab.cli import why_view
from trimtab.cli.app import app
from trimtab.cli.why import show

if TYPE_CHECKING:
    from pathlib import Path

RUN = CliRunner()


def rendered(body: dict) -> str:
    out = io.StringIO()
    show(body, out=Console(file=out, width=200, highlight=False))
    return out.getvalue()


def test_options_are_listed_with_figures_and_why_each_lost() -> None:
    """Chosen first, then the others: TTFT, TPOT, cost, margin, confidence, reason, sentence."""
    text = rendered(a_served_intent())
    for expected in (
        "InferenceIntent team-a/chat is ready: Serving",
        "2 x cpu, 1 thread, bf16",
        "Predictions (p95)",
        "410",
        "35.4",
        "0.09",
        "20 / 10",
        "High Measured",
        "MissesTarget",
        "Its TPOT of 52.1 ms plus the margin misses 50 ms.",
        "NVIDIA-H100-80GB-HBM3, TP 2, fp8: The price book has no price for this product",
        "Declared: 0.2 requests/s, 64 prompt tokens, 64 output tokens",
        "Measured in this engine on this CPU.",
    ):
        assert expected in text, expected


def test_conditions_are_shown_with_meaning_and_remedy() -> None:
    """Each condition has its reason's meaning, and the message that says what to do."""
    text = rendered(a_served_intent())
    assert "WithinTarget=False OutsideTarget: An observed figure misses its target" in text
    assert "p95 TPOT is 63 ms, the target 50 ms. Raise the target." in text


def test_the_group_and_the_engines_advice_are_told() -> None:
    """Who shares the worker and in which state, what idle models lend, and why not more."""
    body = a_served_intent()
    body["status"]["plan"] |= {
        "group": "team-a-12345678",
        "members": [
            {"model": "team-a/chat", "state": "Resident"},
            {"model": "team-a/tiny", "state": "Failed", "reason": "ModelCorrupt"},
        ],
        "remap": {
            "verdict": "IdleOnly",
            "reasons": ["LinkTooSlow: a layer takes 9 ms."],
            "lendUnits": [{"model": "team-a/tiny", "units": 28}],
            "switchMilliseconds": "49.5",
            "kvTokensBefore": 4096,
            "kvTokensAfter": 12288,
            "source": "Engine",
        },
    }
    text = rendered(body)
    for expected in (
        "Group team-a-12345678: team-a/chat Resident, team-a/tiny Failed (ModelCorrupt)",
        (
            "Remapping: IdleOnly (the engine's last advice); idle models give team-a/tiny 28 units; "
            "reading one again takes 49.5 ms; the KV cache holds 4096 tokens, 12288 with what "
            "is lent"
        ),
        "LinkTooSlow: a layer takes 9 ms.",
    ):
        assert expected in text, expected


def test_a_worker_of_its_own_says_why_it_shares_with_nobody() -> None:
    """Without a group the planner's verdict and reason are shown, and no members."""
    body = a_served_intent()
    body["status"]["plan"]["remap"] = {"verdict": "DoNotRemap", "reasons": ["TooBusy: 90 %."]}
    lines = why_view.sharing_lines(body)
    assert lines == ["Remapping: DoNotRemap (as planned)", "  TooBusy: 90 %."]
    body["status"]["plan"] |= {"group": "team-a-12345678"}
    assert why_view.sharing_lines(body)[0].endswith("its worker has not answered yet")


def test_predicted_stands_beside_observed() -> None:
    """What was observed is shown beside what was predicted."""
    rows = why_view.predicted_and_observed(a_served_intent())
    assert rows == [("TTFT ms", "410", "430"), ("TPOT ms", "35.4", "63")]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (None, "has no status yet: no operator has seen it."),
        (
            {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "Pending"}]},
            "is not judged yet: Pending",
        ),
        (
            {"conditions": [{"type": "Ready", "status": "False", "reason": "NoFit"}]},
            "is not ready: NoFit",
        ),
        (
            {
                "observedGeneration": 1,
                "conditions": [{"type": "Ready", "status": "True", "reason": "Serving"}],
            },
            "is ready: Serving (this is about generation 1; generation 2 is not judged yet)",
        ),
    ],
)
def test_headline_says_whether_it_is_ready(status: dict | None, sentence: str) -> None:
    """One sentence says whether the object is ready, why, and whether that is up to date."""
    body = a_served_intent() | {"status": status}
    assert why_view.headline(body).endswith(sentence)
    assert rendered(body).startswith(why_view.headline(body))


def test_negative_polarity_is_good_when_false() -> None:
    """OutliersFound=False is good news."""
    body = {
        "kind": "GPUProfile",
        "metadata": {"name": "h100"},
        "status": {
            "gpus": 8,
            "bins": {"fast": 1, "normal": 7},
            "conditions": [
                {"type": "Measured", "status": "True"},
                {"type": "OutliersFound", "status": "False"},
                {"type": "CommonCause", "status": "True"},
                {"type": "Fresh", "status": "Unknown"},
            ],
        },
    }
    assert [line.good for line in why_view.condition_lines(body)] == [True, True, False, None]
    assert 'bins: {"fast": 1, "normal": 7}' in rendered(body)


def test_markup_in_messages_is_text() -> None:
    """A message with square brackets is printed, not interpreted."""
    body = a_served_intent()
    body["status"]["conditions"][5]["message"] = "nodes[0] is [red]hot[/red]"
    assert "nodes[0] is [red]hot[/red]" in rendered(body)


def test_explanation_for_programs_holds_everything() -> None:
    """JSON has the summary, conditions with meanings, the plan and its alternatives."""
    found = why_view.as_json(a_served_intent())
    assert found["object"] == "InferenceIntent team-a/chat"
    assert len(found["alternatives"]) == 2
    assert found["conditions"][0]["meaning"]
    assert found["plan"]["replicas"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["why", "pod/x"], "pod/x names no object of Trimtab: write ii/NAME"),
        (["why", "chat"], "chat names no object of Trimtab"),
        (["why", "ii/"], "ii/ names no object of Trimtab"),
    ],
)
def test_target_that_is_none_is_refused_without_a_cluster(words: list[str], message: str) -> None:
    """A wrong kind is answered at once."""
    done = RUN.invoke(app, words)
    assert done.exit_code == 1
    assert message in done.stderr


def test_missing_cluster_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a configuration the message says what to set."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    done = RUN.invoke(app, ["why", "ii/chat", "-n", "x"])
    assert done.exit_code == 1
    assert "which does not exist" in done.stderr
    monkeypatch.delenv("KUBECONFIG")
    done = RUN.invoke(app, ["why", "ii/chat", "-n", "x"])
    assert "set KUBECONFIG" in done.stderr


def test_namespace_is_that_of_the_current_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command looks where kubectl looks."""
    from trimtab.cli.cluster import namespace

    config = tmp_path / "config"
    config.write_text(
        "current-context: b\ncontexts:\n- {name: a, context: {namespace: wrong}}\n"
        "- {name: b, context: {namespace: team-b}}\n"
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    assert namespace() == "team-b"
    config.write_text("current-context: a\ncontexts: [{name: a, context: {}}]\n")
    assert namespace() == "default"


def test_what_a_precision_loses_is_shown_with_its_error() -> None:
    """An option with a measured loss shows it; one without shows nothing in that column."""
    body = a_served_intent()
    body["status"]["plan"] |= {"accuracyLossPercent": "0.28", "accuracyLossErrorPercent": "0.1"}
    assert "0.28 ± 0.1 %" in rendered(body)
    lines = why_view.option_lines(body)
    assert [line.accuracy_loss for line in lines] == ["0.28 ± 0.1 %"] + [""] * (len(lines) - 1)


def test_a_load_says_how_uneven_it_was_seen_to_be() -> None:
    """Bursts are part of what was planned for; while they are assumed away nothing is said."""
    body = a_served_intent()
    assert "varying" not in why_view.load_line(body)
    load = body["status"]["plan"]["load"]
    load |= {"gapVariation": "3.1", "promptVariation": "1", "outputVariation": "0.8"}
    assert why_view.load_line(body).endswith(
        "varying by 3.1 of the mean gap, 1 of the mean prompt and 0.8 of the mean output"
    )
