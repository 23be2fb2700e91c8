"""`planner-error` and `planner-choice` on files of rows whose truth is known."""

import json
import math

import pytest
from typer.testing import CliRunner

from tests.unit.bench import silicon_rows
from tests.unit.bench.silicon_rows import a_row, a_world, write
from trimtab.bench import estimates, planner_choice, planner_error
from trimtab.cli.app import app

BENCHES = {"planner-error": planner_error, "planner-choice": planner_choice}


@pytest.fixture(autouse=True)
def known_catalogue(monkeypatch):
    """The catalogue's process is replaced by one with known times."""
    monkeypatch.setattr(estimates, "ask", silicon_rows.ask)


def run(name, tmp_path, rows, capsys, *options):
    path = write(tmp_path / "rows.csv", rows)
    assert BENCHES[name].main(["--rows", str(path), "-o", "json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_rows_that_the_catalogue_knows_have_no_error(tmp_path, capsys):
    """Truth made by the same operators is predicted to the last digit, and counted."""
    found = run("planner-error", tmp_path, a_world(), capsys)
    assert found["rows"] == {"read": 60, "used": 60, "apart": 0, "skipped": {}}
    assert found["TPOT"]["raw"]["mape_percent"] == 0
    assert found["TTFT"]["raw"]["mape_percent"] == 0
    assert found["catalogue"] == "aiconfigurator 0.12.0"


def distorted(size, level):
    return math.exp(0.10 + 0.03 * math.log2(size) - 0.02 * math.log2(level))


def test_anchors_are_not_scored_and_help(tmp_path, capsys):
    """Four anchors leave 56 rows and at most a quarter of the error; one leaves 59."""
    found = run("planner-error", tmp_path, a_world(distortion=distorted), capsys)
    four, one = found["TPOT"]["anchors_4"], found["TPOT"]["anchors_1"]
    assert (four["rows"], one["rows"]) == (56, 59)
    assert four["raw_on_the_same_rows"]["mape_percent"] > 4
    assert four["mape_percent"] < four["raw_on_the_same_rows"]["mape_percent"] / 4
    assert not found["groups"][0]["anchors"]["suspect"]
    ttft = found["TTFT"]["anchors_4"]
    assert ttft["mape_percent"] < ttft["raw_on_the_same_rows"]["mape_percent"] / 4


def test_two_anchors_at_one_size_are_weighed_against_one_factor_for_all(tmp_path, capsys):
    """Where only TP 1 is off, others lose at most 2 points, and over 2 by the naive way."""
    rows = a_world(distortion=lambda size, _: 1.06 if size == 1 else 1.0)
    anchors = run("planner-error", tmp_path, rows, capsys)["groups"][0]["anchors"]
    two = anchors["two_at_one_size"]
    assert 0 < two["raised_points"] <= 2 < two["naive_raised_points"]


def test_a_group_apart_is_reported_and_not_totalled(tmp_path, capsys):
    """Rows known to be off by a factor of two leave the totals as they are."""
    odd = a_world(
        distortion=lambda *_: 0.5, system="h200_sxm", backend="vllm", backend_version="0.12.0"
    )
    found = run("planner-error", tmp_path, [*a_world(), *odd], capsys)
    assert found["TPOT"]["raw"]["mape_percent"] == 0
    assert found["rows"]["apart"] == 60
    assert [bool(group["apart"]) for group in found["groups"]] == [False, True]
    assert found["groups"][1]["TPOT"]["raw"]["mape_percent"] > 50


def test_rows_without_an_estimate_are_counted(tmp_path, capsys):
    """A size that the catalogue lacks is skipped with its reason in the group."""
    rows = [*a_world(), a_row(tp_size=3)]
    found = run("planner-error", tmp_path, rows, capsys)
    assert found["rows"]["skipped"] == {"no estimate": 1}
    assert "no tensor parallel 3" in found["groups"][0]["no_estimate"]["3"]


def test_a_few_rows_are_no_place_for_anchors(tmp_path, capsys):
    """A group that four anchors would use up is scored raw only."""
    found = run("planner-error", tmp_path, [a_row(), a_row(batch_size=16)], capsys)
    assert found["TPOT"]["raw"]["rows"] == 2
    assert found["TPOT"]["anchors_4"]["rows"] == 0
    assert found["groups"][0]["anchors"] is None


def test_knowing_the_truth_leaves_no_regret_and_no_violation(tmp_path, capsys):
    """With exact predictions latency and cost are the oracle's; margins alone cost throughput."""
    found = run("planner-choice", tmp_path, a_world(), capsys)
    planner = found["totals"]["planner"]
    for objective in ("MinLatency", "MinCost"):
        assert planner[objective]["max_regret_percent"] == 0
    assert planner["violations"] == 0
    assert found["totals"]["top_1_percent"] == 100
    assert found["totals"]["kendall_tau"] == 1
    assert 50 < planner["TargetLatency"]["tokens_per_gpu_of_oracle_percent"] <= 100


def test_every_static_size_and_the_best_stand_beside_ours(tmp_path, capsys):
    """No static size beats exact predictions, and the best one beats the others."""
    totals = run("planner-choice", tmp_path, a_world(), capsys)["totals"]
    static = totals["static"]
    sizes = [static[f"tensor_parallel_{size}"] for size in silicon_rows.SIZES]
    assert all(s["cells"] == totals["cells"] for s in sizes)
    regrets = [s["MinLatency"]["mean_regret_percent"] for s in sizes]
    assert min(regrets) >= totals["planner"]["MinLatency"]["mean_regret_percent"]
    assert max(regrets) > 5
    best = static["best_per_group"]
    assert best in sizes
    assert totals["roofline"]["cells"] == totals["cells"]
    assert totals["random_mean_regret_percent"] > 0


def test_the_papers_ratios_stand_beside_both_static_choices(tmp_path, capsys):
    """Five ratios: the paper's, against the poorest and against the best static size."""
    lines = run("planner-choice", tmp_path, a_world(), capsys)["totals"]["iserve"]
    assert [line["paper"] for line in lines] == [
        "-77.62 %",
        "-86.70 %",
        "7.09 : 1",
        "4.72 times",
        "6.05 times",
    ]
    poor, best = (
        float(lines[0][f"against the {which} static"].rstrip(" %")) for which in ("poorest", "best")
    )
    assert poor < best <= 0


def test_a_margin_costs_throughput_and_saves_targets(tmp_path, capsys):
    """With every run a tenth slower than predicted, no margin misses targets and 20 % misses none."""
    rows = a_world(distortion=lambda *_: 1.1)
    margins = run("planner-choice", tmp_path, rows, capsys)["totals"]["margins"]
    assert list(margins) == ["0 %", "10 %", "15 %", "20 %"]
    assert margins["0 %"]["violations"] > 0
    assert margins["20 %"]["violations"] == 0
    exact = run("planner-choice", tmp_path, a_world(), capsys)["totals"]["margins"]
    shares = [m["tokens_per_gpu_of_oracle_percent"] for m in exact.values()]
    assert shares[0] == 100
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < 100


def test_a_cell_names_question_oracle_and_pick(tmp_path, capsys):
    """Each cell can be checked by hand against the file."""
    cells = run("planner-choice", tmp_path, a_world(), capsys)["groups"][0]["per_cell"]
    cell = next(c for c in cells if c["objective"] == "TargetLatency")
    assert {"prompt_tokens", "output_tokens", "target_tpot_ms", "oracle", "pick"} < set(cell)
    assert cell["pick"]["tpot_ms"] <= cell["target_tpot_ms"]
    assert cell["attainment_percent"] <= 100


@pytest.mark.parametrize("name", BENCHES)
def test_people_get_tables(tmp_path, capsys, name):
    """Without -o json the same figures are text, counts first."""
    path = write(tmp_path / "rows.csv", a_world())
    assert BENCHES[name].main(["--rows", str(path)]) == 0
    text = capsys.readouterr().out
    assert text.index("60 read") < text.index("%")


@pytest.mark.parametrize("name", BENCHES)
def test_a_missing_file_is_one_sentence(tmp_path, capsys, name):
    """The sentence goes to standard error with status 1."""
    assert BENCHES[name].main(["--rows", str(tmp_path / "none.csv")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_without_the_catalogue_the_command_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    """The extra is optional: the sentence names size, command and variable."""
    monkeypatch.undo()
    script = tmp_path / "python"
    script.write_text(
        '#!/bin/sh\necho \'{"v":1,"ok":false,"message":"aiconfigurator is missing."}\'\n'
    )
    script.chmod(0o755)
    path = write(tmp_path / "rows.csv", [a_row()])
    options = ["--rows", str(path), "--catalogue-python", str(script)]
    assert planner_error.main(options) == 1
    said = capsys.readouterr().err
    assert "850 MB" in said
    assert "TRIMTAB_CATALOGUE_PYTHON" in said


def test_both_are_listed():
    """`trimtab bench list` names them."""
    listed = CliRunner().invoke(app, ["bench", "list"]).stdout
    assert all(name in listed for name in BENCHES)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--model-config", "m=none.json"], "Give the model's config.json"),
        (["--model-config", "m"], "Give NAME=PATH"),
        (["--catalogue-python", "/none/python"], "Set TRIMTAB_CATALOGUE_PYTHON"),
    ],
)
def test_errors_name_a_remedy(tmp_path, monkeypatch, capsys, options, remedy):
    """Whoever reads an error knows what to do next."""
    monkeypatch.undo()
    path = write(tmp_path / "rows.csv", [a_row()])
    assert planner_error.main(["--rows", str(path), *options]) == 1
    assert remedy in capsys.readouterr().err


def test_a_catalogue_that_dies_says_how_to_see_why(tmp_path, monkeypatch, capsys):
    """The command that shows the whole failure is in the sentence."""
    monkeypatch.undo()
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    script.chmod(0o755)
    path = write(tmp_path / "rows.csv", [a_row()])
    assert planner_error.main(["--rows", str(path), "--catalogue-python", str(script)]) == 1
    said = capsys.readouterr().err
    assert "ended with 3: broken" in said
    assert "-m trimtab_workers.fingerprint.catalogue" in said


def test_what_no_chooser_can_beat_is_printed_beside_ours(tmp_path, capsys):
    """Who knows the rows and keeps no margin has no regret; with a margin he pays as we do."""
    document = run("planner-choice", tmp_path, a_world(), capsys)
    totals = document["totals"]
    known = totals["foresight"]
    assert known["0 %"]["TargetLatency"]["max_regret_percent"] == 0
    # The catalogue's error is none here, so ours is the same chooser.
    for margin, found in totals["margins"].items():
        assert known[margin]["TargetLatency"] == found
    lines = document["bounds"]["TargetLatency"]
    assert [line["mape_percent"] for line in lines] == [0, 2, 5, 10]
    assert all(line["violations_percent"] <= 5 for line in lines)
    assert lines[0]["mean_regret_percent"] == lines[0]["margin_percent"] == 0
    margins = [line["margin_percent"] for line in lines]
    assert margins == sorted(margins)
    assert lines[-1]["mean_regret_percent"] > 0


def test_choices_with_anchors_stand_beside_those_without(tmp_path, capsys):
    """Where every run is slower than predicted, four anchors leave fewer misses in the same cells."""
    rows = a_world(distortion=lambda *_: 1.5)
    totals = run("planner-choice", tmp_path, rows, capsys)["totals"]
    corrected, raw = totals["anchored"], totals["anchored"]["raw_in_the_same_groups"]
    assert raw == totals["planner"]
    assert corrected["cells"] == raw["cells"]
    assert raw["TargetLatency"]["violations"] > corrected["TargetLatency"]["violations"] == 0
    few = run("planner-choice", tmp_path, [*rows[:3], *rows[-3:]], capsys)["totals"]
    assert few["anchored"] is None


def test_host_time_that_a_catalogue_lacks_is_found_in_the_rows(tmp_path, capsys):
    """Runs that take 20 µs longer per sequence than predicted say so, and exact ones say 0."""
    rows = a_world()
    for row in rows:
        row["silicon_tpot_ms"] += 0.020 * row["batch_size"]
    found = run("planner-error", tmp_path, rows, capsys)["groups"][0]["host_time"]
    assert found["us_per_sequence"] == 20
    assert found["mape_percent"] == 0 < found["raw_mape_percent"]
    exact = run("planner-error", tmp_path, a_world(), capsys)["groups"][0]["host_time"]
    assert exact == {"us_per_sequence": 0, "mape_percent": 0, "raw_mape_percent": 0}
