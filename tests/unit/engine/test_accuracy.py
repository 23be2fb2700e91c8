"""How well a model foretells a text: the scores, and what `trimtab bench accuracy` says of them."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.unit.engine.builders import an_engine
from trimtab_workers.engine import scoring
from trimtab_workers.engine.bench import accuracy
from trimtab_workers.engine.scoring_text import TEXT


def test_against_one_token_at_a_time(glass_en: Path, monkeypatch: pytest.MonkeyPatch):
    """A window's log-probabilities are those of its prefixes, computed one after another."""
    monkeypatch.setattr(scoring, "MODEL", "m")
    monkeypatch.setattr(scoring, "_ROWS", 2)
    engine = an_engine(glass_en, dtype="fp32", prefix_caching=False)
    tokens = [5, 9, 200, 31, 7, 7, 450]
    whole = scoring.score_tokens(engine, tokens)
    for count in range(2, len(tokens) + 1):
        found = scoring.score_tokens(engine, tokens[:count])
        assert found.nats[-1].item() == pytest.approx(whole.nats[count - 2].item(), abs=1e-4)
        assert found.likeliest[-1] == whole.likeliest[count - 2]
    assert (whole.nats > 0).all()
    scheduler = engine.tenant("m").scheduler
    assert scheduler is not None
    assert scheduler.blocks.used == 0


def test_a_standard_error_knows_that_neighbours_are_alike():
    """Values that come in runs of 32 say as much as one each: the error is larger by about √32."""
    single = torch.randn(64, generator=torch.Generator().manual_seed(1)).double()
    runs = single.repeat_interleave(32)
    plain = runs.std().item() / math.sqrt(len(runs))
    assert scoring.standard_error(runs) == pytest.approx(single.std().item() / 8)
    assert scoring.standard_error(runs) > 5 * plain
    assert scoring.standard_error(torch.tensor([1.0])) == 0.0


def test_differences_are_paired():
    """A constant shift of every token has no error, however much tokens differ."""
    nats = torch.rand(320, generator=torch.Generator().manual_seed(2)).double() * 9
    likeliest = torch.arange(320)
    found = scoring.difference(
        scoring.Scores(nats + 0.01, likeliest // 2 * 2), scoring.Scores(nats, likeliest)
    )
    assert (found.nats, found.error_nats) == (pytest.approx(0.01), pytest.approx(0, abs=1e-9))
    assert found.percent == pytest.approx(1.005, abs=1e-3)
    assert found.agreement == 0.5


def test_no_numbers_are_no_scores(glass_en: Path, monkeypatch: pytest.MonkeyPatch):
    """A model whose log-probabilities are NaN is refused by name instead of being judged."""
    engine = scoring.load(glass_en, precision="fp32", threads=1)
    broken = scoring.Scores(torch.tensor([math.nan]).double(), torch.tensor([1]))
    monkeypatch.setattr(scoring, "score_tokens", lambda *_: broken)
    with pytest.raises(scoring.ScoringError, match="no numbers at precision fp32"):
        scoring.score(engine, "one two three")


def test_report(glass_en: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The report compares with the first precision and names bytes; quantised ones stay close."""
    (tmp_path / "text").write_text(TEXT[:400])
    options = ["--model", str(glass_en), "-o", "json", "--text", str(tmp_path / "text")]
    chosen = [x for p in ("fp32", "int8", "int4") for x in ("--precision", p)]
    assert accuracy.main([*options, *chosen]) == 0
    rows = {row["precision"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert (rows["fp32"]["loss_percent"], rows["fp32"]["agreement_percent"]) == (0.0, 100.0)
    assert rows["int8"]["weight_bytes"] < rows["fp32"]["weight_bytes"] / 2
    assert abs(rows["int8"]["loss_percent"]) < 5
    assert abs(rows["int4"]["loss_percent"]) < 20
    assert rows["int4"]["error_percent"] > rows["fp32"]["error_percent"] == 0
    assert rows["int4"]["perplexity"] == pytest.approx(
        2 ** rows["int4"]["bits_per_token"], rel=1e-3
    )
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
