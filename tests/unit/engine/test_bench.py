"""The throughput benchmark answers all prompts on every way and reports ratios."""

import json
from pathlib import Path

import pytest

from trimtab_workers.engine.bench import __main__ as bench
from trimtab_workers.engine.bench import throughput


def test_throughput(glass_en: Path, capsys: pytest.CaptureFixture[str]):
    """On the tiny model engine and transformers agree, and the JSON has figures and targets."""
    code = bench.main(
        [
            "engine-throughput",
            f"--model={glass_en}",
            "--batch=1,3",
            "--prompt=12",
            "--output=8",
            "--dtype=fp32",
            "--repeats=2",
            "-o=json",
        ]
    )
    assert code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["agreement"] == 1.0
    assert [row["batch"] for row in result["rows"]] == [1, 3]
    assert all(row["over_loop"] > 0 and row["over_batch"] > 0 for row in result["rows"])
    assert result["targets"]["over_loop"] == 5.0
    assert "| 3 | " in throughput.markdown(result)


def test_missing_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A model that is not there ends with a sentence and exit status 2."""
    assert bench.main(["engine-throughput", f"--model={tmp_path / 'none'}", "--no-compare"]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_unknown_name(capsys: pytest.CaptureFixture[str]):
    """A name that is no benchmark ends with the list of names and exit status 2."""
    assert bench.main(["engine-speed"]) == 2
    assert "choose one of engine-throughput, cpu-peer" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "1,x", "-3", ""])
def test_bad_batches(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Batch sizes that are no positive numbers are refused before anything is loaded."""
    with pytest.raises(SystemExit):
        bench.main(["engine-throughput", f"--model={tmp_path}", f"--batch={given}"])
    assert "give positive numbers such as 1,8,32" in capsys.readouterr().err
