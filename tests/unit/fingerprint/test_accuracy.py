"""The accuracy Job: model in, document out."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.unit.engine.builders import glass_directory
from trimtab.planning.accuracy import TEXT_DIGEST, dump, parse
from trimtab.planning.fingerprint import MAX_BYTES
from trimtab_workers.engine.capabilities import ENGINE_VERSION
from trimtab_workers.engine.scoring_text import TEXT
from trimtab_workers.engine.weights.inspect import inspect_checkpoint
from trimtab_workers.fingerprint import accuracy

SHORT = TEXT[:600]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return glass_directory(tmp_path_factory.mktemp("glass") / "en", "en")


def test_the_text_is_the_one_that_plans_are_about():
    """Operator and worker agree on the text by its hash: an edited text makes every loss stale."""
    assert hashlib.sha256(TEXT.encode()).hexdigest().startswith(TEXT_DIGEST)
    assert len(TEXT_DIGEST) == 16


def test_every_precision_is_measured_against_the_checkpoints_own(model: Path):
    """One row per precision but the own, with the files' digest, as an inspection names them."""
    ticks = iter(range(100))
    losses = accuracy.measure(
        model,
        precisions=("int8", "fp32", "int4", "int4"),
        threads=1,
        text=SHORT,
        clock=lambda: float(next(ticks)),
    )
    assert [loss.precision for loss in losses] == ["int8", "int4"]
    key = losses[0].key
    assert (key.own, key.engine_version) == ("fp32", ENGINE_VERSION)
    assert key.model == inspect_checkpoint(model).source[:32]
    assert key.text != TEXT_DIGEST
    assert len(dump(losses).encode()) < MAX_BYTES
    assert parse(dump(losses)) == losses
    int8, int4 = losses
    assert int4.error_micronats > int8.error_micronats > 0
    assert int4.agreement_permille < int8.agreement_permille
    assert int8.seconds == 1
    again = accuracy.measure(model, precisions=("int8",), threads=1, text=SHORT)
    assert again[0].difference_micronats == int8.difference_micronats


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> tuple[int, str]:
    log = tmp_path / "message"
    monkeypatch.setenv("TRIMTAB_TERMINATION_LOG", str(log))
    return accuracy.main(list(words)), log.read_text()


def test_the_message_is_the_document(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A Job that succeeds ends with status 0 and what it measured as its message."""
    monkeypatch.setattr(accuracy, "TEXT", SHORT)
    status, message = run(monkeypatch, tmp_path, "--path", str(model), "--precision", "bf16")
    assert status == 0
    assert [loss.precision for loss in parse(message)] == ["bf16"]


@pytest.mark.parametrize(
    ("path", "precision", "reason"),
    [("none", "int8", "ModelNotFound"), ("", "fp32", "InvalidSpecification")],
)
def test_a_job_that_cannot_measure_says_why(  # noqa: PLR0917 - fixtures and parameters
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    path: str,
    precision: str,
    reason: str,
):
    """No model, and nothing to compare: a reason and a sentence, and status 1."""
    monkeypatch.setattr(
        accuracy, "_scores", lambda *_, **__: pytest.fail("nothing is to be loaded")
    )
    where = str(model / path) if path else str(model)
    status, message = run(monkeypatch, tmp_path, "--path", where, "--precision", precision)
    assert status == 1
    said = json.loads(message)
    assert (said["ok"], said["reason"]) == (False, reason)
    assert said["message"].endswith(".")
