"""Alerts: few, each with a firing and a silent case, a severity, a summary and a runbook that exists."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "charts" / "trimtab" / "files" / "alerts.yaml"
CASES = Path(__file__).parent / "rules" / "alerts_test.yaml"


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_promtool_accepts_the_rules(promtool: str) -> None:
    """`promtool check rules` parses every expression and template."""
    done = subprocess.run(
        [promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_and_stay_silent_as_written(promtool: str, tmp_path: Path) -> None:
    """`promtool test rules` replays a firing and a silent series for every alert."""
    shutil.copy(ALERTS, tmp_path / "alerts.yaml")
    cases = shutil.copy(CASES, tmp_path / "cases.yaml")
    done = subprocess.run(
        [promtool, "test", "rules", cases], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    """No alert is without a case that expects it, nor without a case that expects its silence."""
    firing, silent = set(), set()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for check in case["alert_rule_test"]:
            (firing if check.get("exp_alerts") else silent).add(check["alertname"])
    assert firing == silent == set(rules())


@pytest.mark.parametrize("name", rules())
def test_every_alert_says_how_bad_what_and_what_to_do(name: str) -> None:
    """Severity, summary and the path of a runbook whose heading is the alert's name."""
    rule = rules()[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["for"]
    assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
    runbook = ROOT / rule["annotations"]["runbook_url"]
    text = runbook.read_text()
    assert text.startswith(f"# {name}\n\nSeverity: {rule['labels']['severity']}.")
    for section in ("## Impact", "## Diagnosis", "## Mitigation"):
        assert section in text, section


def test_every_runbook_belongs_to_an_alert() -> None:
    """No runbook describes an alert that is gone."""
    linked = {Path(rule["annotations"]["runbook_url"]).name for rule in rules().values()}
    assert {path.name for path in (ROOT / "docs" / "runbooks").glob("*.md")} == linked
