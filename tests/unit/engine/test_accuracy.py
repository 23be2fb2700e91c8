"""`trimtab bench accuracy`: bits per token as the engine serves them."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.unit.engine.builders import an_engine
from trimtab_workers.engine.bench import accuracy
from trimtab_workers.engine.bench.accuracy_text import TEXT


def test_against_one_token_at_a_time(glass_en: Path, monkeypatch: pytest.MonkeyPatch):
    """A window's log-probabilities are those of its prefixes, computed one after another."""
    monkeypatch.setattr(accuracy, "_NAME", "m")
    engine = an_engine(glass_en, dtype="fp32", prefix_caching=False)
    tokens = [5, 9, 200, 31, 7, 7, 450]
    whole, likely = accuracy.log_probabilities(engine, tokens)
    for count in range(2, len(tokens) + 1):
        found, most = accuracy.log_probabilities(engine, tokens[:count])
        assert found[-1].item() == pytest.approx(whole[count - 2].item(), abs=1e-4)
        assert most[-1] == likely[count - 2]
    assert (whole < 0).all()
    scheduler = engine.tenant("m").scheduler
    assert scheduler is not None
    assert scheduler.blocks.used == 0


def test_report(glass_en: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The report compares with the first precision and names bytes; quantised ones stay close."""
    (tmp_path / "text").write_text(TEXT[:400])
    options = ["--model", str(glass_en), "-o", "json", "--text", str(tmp_path / "text")]
    chosen = [x for p in ("fp32", "int8", "int4") for x in ("--precision", p)]
    assert accuracy.main([*options, *chosen]) == 0
    rows = {row["precision"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert (rows["fp32"]["loss_percent"], rows["fp32"]["agreement_percent"]) == (0.0, 100.0)
    assert rows["int8"]["weight_bytes"] < rows["fp32"]["weight_bytes"] / 2
    assert abs(rows["int8"]["loss_percent"]) < 2
    assert abs(rows["int4"]["loss_percent"]) < 5
    # glassllm was trained on other text: better than chance is all that is sure.
    assert rows["fp32"]["bits_per_token"] < math.log2(1024)


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A path without a model ends with the sentence that names it."""
    assert accuracy.main(["--model", str(tmp_path / "none")]) == 1
    assert "there is no such file or directory" in capsys.readouterr().err


def test_steps_are_timed(glass_en: Path):
    """With repeats, every precision has a time for each kind of step."""
    [row] = accuracy.compare(glass_en, precisions=["int8"], text=TEXT[:80], threads=1, repeats=1)
    assert len(row.step_ms) == 4
    assert min(row.step_ms) > 0
    assert torch.isfinite(torch.tensor(row.bits_per_token))
