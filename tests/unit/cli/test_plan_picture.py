"""The picture of a plan: from the files of the examples, the cheapest option first."""

from __future__ import annotations

from pathlib import Path

from tools import plan_picture
from trimtab.cli import offline

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples" / "offline"


def test_a_plan_is_drawn_from_files(tmp_path: Path) -> None:
    """The example of a purchase gives a picture; what was chosen is in it once, costs rise, and what cannot run is last."""
    decided = offline.decide(
        intents=[EXAMPLES / "purchase.yaml"],
        inventory=EXAMPLES / "purchase-fleet.yaml",
        prices=EXAMPLES / "prices.yaml",
        fingerprints=None,
    )
    for body in offline.shown(decided):
        options = plan_picture.options_of(body)
        costs = [float(o["costPerHour"]) for o in options if o.get("predicted")]
        assert costs == sorted(costs)
        assert sum(bool(option.get("chosen")) for option in options) == 1
        can_run = [bool(option.get("predicted")) for option in options]
        assert can_run == sorted(can_run, reverse=True)
        output = tmp_path / f"{body['metadata']['name']}.png"
        plan_picture.draw(body, inputs="Example.", output=output)
        assert output.read_bytes().startswith(b"\x89PNG")


def test_a_bar_ends_where_the_margin_ends() -> None:
    """The hatched end is the prediction and its margin; what cannot run has no bar."""
    predicted = {"timePerOutputTokenMilliseconds": "20"}
    option = {"predicted": predicted, "margin": {"timePerOutputTokenPercent": 15}}
    found = plan_picture.bar(option, "timePerOutputToken")
    assert found == plan_picture.Bar(predicted=20.0, with_margin=23.0)
    assert plan_picture.bar({}, "timePerOutputToken") is None
