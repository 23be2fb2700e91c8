"""The registered predictions of engine.md §9 and how a result is judged against them; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab_workers.engine.bench.figures import Figures

Verdict = Literal["win", "tie", "lose", "mixed"]

TIE: Final = 0.05
# How much better a figure is: below 1 is better for times, above 1 for rates.
_SIGNS: Final[Mapping[str, int]] = {"tokens_per_second": 1, "ttft_p99": -1, "tbt_p99": -1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What was registered before anything was measured.

    Attributes:
        subject: The policy that is judged; `against` the one it is compared with.
        text: The row of the table, in its words.
        expected: Verdicts with which it holds.
    """

    scenario: str
    subject: str
    against: str
    text: str
    expected: tuple[Verdict, ...]


PREDICTIONS: Final = (
    Prediction(
        scenario="temporal",
        subject="remap",
        against="recompute",
        text="win: P99 TTFT several-fold, throughput up, preemptions to about 0",
        expected=("win",),
    ),
    Prediction(
        scenario="temporal",
        subject="remap",
        against="swap",
        text="win (idle weights)",
        expected=("win",),
    ),
    Prediction(
        scenario="alternating",
        subject="remap",
        against="recompute",
        text="lose or tie",
        expected=("lose", "tie"),
    ),
    Prediction(
        scenario="alternating", subject="remap", against="swap", text="lose", expected=("lose",)
    ),
    Prediction(
        scenario="all-active-decode",
        subject="remap",
        against="recompute",
        text="tie at hidden m (about 0 layers)",
        expected=("tie",),
    ),
    Prediction(
        scenario="all-active-decode",
        subject="static:4",
        against="recompute",
        text="lose if forced",
        expected=("lose",),
    ),
    Prediction(
        scenario="all-active-decode",
        subject="remap",
        against="swap",
        text="lose",
        expected=("lose",),
    ),
    Prediction(
        scenario="all-active-prefill",
        subject="remap",
        against="recompute",
        text="small win (m up to 5, alpha up to 4)",
        expected=("win",),
    ),
    Prediction(
        scenario="all-active-prefill",
        subject="remap",
        against="swap",
        text="tie",
        expected=("tie",),
    ),
    Prediction(
        scenario="large-kv-share",
        subject="remap",
        against="recompute",
        text="tie (the controller must stay at 0)",
        expected=("tie",),
    ),
    Prediction(
        scenario="large-kv-share", subject="remap", against="swap", text="tie", expected=("tie",)
    ),
    Prediction(
        scenario="fast-link",
        subject="remap",
        against="recompute",
        text="win, 1.3 to 3 times the throughput",
        expected=("win",),
    ),
    Prediction(
        scenario="fast-link",
        subject="remap",
        against="swap",
        text="win on the TBT tail",
        expected=("win",),
    ),
)


def ratios(subject: Figures, other: Figures) -> dict[str, float | None]:
    """Return subject ÷ other for throughput, P99 TTFT and P99 TBT; None where the other is 0."""
    found = {}
    for name in _SIGNS:
        theirs = float(getattr(other, name))
        found[name] = float(getattr(subject, name)) / theirs if theirs else None
    return found


def judge(found: Mapping[str, float | None], *, tie: float = TIE) -> Verdict:
    """Say whether a set of ratios is a win, a loss, a tie (all within 5 %) or both at once."""
    better = worse = False
    for name, ratio in found.items():
        if ratio is None:
            continue
        gain = ratio if _SIGNS[name] > 0 else (1 / ratio if ratio else float("inf"))
        better |= gain > 1 + tie
        worse |= gain < 1 / (1 + tie)
    if better and worse:
        return "mixed"
    return "win" if better else "lose" if worse else "tie"


def check(results: Mapping[str, Mapping[str, Figures]]) -> list[dict[str, Any]]:
    """Judge every prediction whose scenario and policies were run.

    Args:
        results: Figures by scenario and policy.
    """
    rows = []
    for prediction in PREDICTIONS:
        run = results.get(prediction.scenario, {})
        if prediction.subject not in run or prediction.against not in run:
            continue
        found = ratios(run[prediction.subject], run[prediction.against])
        verdict = judge(found)
        rows.append(
            {
                "scenario": prediction.scenario,
                "subject": prediction.subject,
                "against": prediction.against,
                "predicted": prediction.text,
                "ratios": found,
                "verdict": verdict,
                "holds": verdict in prediction.expected,
            }
        )
    return rows
