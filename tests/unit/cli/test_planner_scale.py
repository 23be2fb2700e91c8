"""`trimtab bench planner-scale`: its JSON is documented, so its keys are stable."""

import json

from trimtab.bench import planner_scale


def test_the_choice_s_cells_have_counts_beside_times(capsys):
    """Four cells: roomy and scarce, cold and warm, each with what was chosen and what the greedy would."""
    asked = "planner-scale --part choice --intents 20 --devices 96 --repeats 2 -o json"
    status = planner_scale.main(asked.split())
    result = json.loads(capsys.readouterr().out)
    assert status == 0
    assert (result["label"], result["repeats"]) == ("times measured, fleets synthetic", 2)
    cells = result["cells"]
    assert [(c["room"], c["temperature"]) for c in cells] == [
        ("roomy", "cold"),
        ("roomy", "warm"),
        ("scarce", "cold"),
        ("scarce", "warm"),
    ]
    for cell in cells:
        assert cell["columns"] <= 12 * 20
        assert cell["solver"] == "HiGHS"
        assert cell["wall_ms"]["p50"] <= cell["wall_ms"]["p95"] <= cell["wall_ms"]["max"]
        ours, greedy = cell["chosen"], cell["greedy_alone"]
        assert ours["unplaced"] <= greedy["unplaced"]
        assert cell["met"] == (cell["wall_ms"]["p95"] < cell["target_ms"])
    scarce = cells[2]
    assert scarce["devices_of_first_choices"] > scarce["devices"]


def test_one_intent_is_planned_over_six_products(capsys):
    """The table has a row for the cold start and one for the warm one."""
    planner_scale.main(["planner-scale", "--part", "one", "--repeats", "1", "--devices", "48"])
    out = capsys.readouterr().out
    assert "| one | roomy | cold | 1 | 48 |" in out
    assert "| one | roomy | warm | 1 | 48 |" in out
    assert "unplaced 0" in out
