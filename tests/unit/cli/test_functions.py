"""`trimtab functions replay`: advice from recorded invocations, as a person runs it."""

import json

import pytest
from typer.testing import CliRunner

from trimtab.cli.app import app

HEADER = "bytes,cpu_seconds,wall_seconds,peak_memory_mib,cpu_millis,memory_mib"
OPTIONS = ["--deadline-milliseconds", "10000", "--cpu", "250m:2:250m"]


def a_file(tmp_path, lines, *, header=HEADER):
    """Write invocations and return the file's name."""
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([header, *lines]))
    return str(path)


def invocations(count=100):
    """Return small and large inputs by turns, all run at 2 vCPU and 2 GiB."""
    return ["100,2,2,100,2000,2048", "9000,6,6,900,2000,2048"] * (count // 2)


def run(*arguments):
    """Run the command."""
    return CliRunner().invoke(app, ["functions", "replay", *arguments])


def test_advice_saves_what_small_inputs_do_not_need(tmp_path):
    """Nobody is late, nobody lacks memory, and less is reserved than was recorded."""
    result = run(a_file(tmp_path, invocations()), *OPTIONS, "-o", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["invocations"] == 100
    assert found["sized"]["late"] == found["sized"]["too_little_memory"] == 0
    assert found["sized"]["vcpu_seconds"] < found["recorded"]["vcpu_seconds"]
    assert found["sized"]["mib_seconds"] < found["recorded"]["mib_seconds"]
    assert found["decisions"]["default:WarmingUp"] == 10
    assert sum(size["invocations"] for size in found["sizes"]) == 100
    assert found["last"]["bucket"]["runs"] == 32
    assert found["last"]["cpu"]["candidates"]["bucket"] == 750
    assert found["last"]["features"]["bytes"] == 9000


def test_people_are_told_what_was_calculated(tmp_path):
    """The table says that times at other sizes were not run, and that short work is not sized."""
    lines = ["100,0.02,0.02,100,2000,2048"] * 40
    result = run(a_file(tmp_path, lines), *OPTIONS)
    assert result.exit_code == 0, result.output
    assert "calculated, not run" in result.output
    assert "TooShort" in result.output


def test_failed_invocations_and_categories_are_understood(tmp_path):
    """A 4xx teaches nothing, a text column is a category, throttling can be given."""
    header = f"{HEADER},throttled_seconds,status,codec"
    lines = ["100,2,8,100,250,2048,6,200,h264", "100,2,8,100,250,2048,6,404,av1"] * 20
    result = run(a_file(tmp_path, lines, header=header), *OPTIONS, "-o", "json")
    found = json.loads(result.stdout)
    assert found["dropped"] == {"client_error": 20}
    assert found["last"]["features"]["categories"] == ["codec=av1"]


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ([], (), "holds no invocation"),
        (["1,x,2,100,2000,2048"], (), "line 2: cpu_seconds is 'x'"),
        (["1,2,0,100,2000,2048"], (), "must be above 0"),
        (invocations(2), ("--cpu", "2:1:100m"), "min is 2000m and max is 1000m"),
        (invocations(2), ("--memory", "128Mi"), "--memory 128Mi is not min:max:step"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(tmp_path, lines, options, words):
    """The message names file, line, column or option, and what to write."""
    result = run(a_file(tmp_path, lines), *OPTIONS, *options)
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())


def test_a_file_without_features_is_refused(tmp_path):
    """Without anything that is known before the run nothing can be learned."""
    path = a_file(tmp_path, ["2,2,100,2000,2048"], header=HEADER.removeprefix("bytes,"))
    result = run(path, *OPTIONS)
    assert result.exit_code == 1
    assert "has no column beyond" in result.output
