"""A real Prometheus beside the running system: every query has data, every panel is drawn."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from e2e import stack as st
from e2e.monitoring import draw, prometheus, queries, targets
from e2e.scenarios.builders import TEAM

if TYPE_CHECKING:
    from e2e.scenarios.builders import Client

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]
WATCH_SECONDS = 90.0


def test_every_dashboard_and_alert_has_data_from_the_running_system(
    stack: st.Stack, chat: dict[str, Any], client: Client, tmp_path: Path
) -> None:
    """With a client streaming, no query of a dashboard or alert is empty, but for a listed reason."""
    assert chat["metadata"]["namespace"] == TEAM
    try:
        prometheus.program()
    except prometheus.PrometheusError as exc:
        pytest.skip(str(exc))
    with prometheus.started(rules=queries.ALERTS) as server:
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline:
            server.scrape(targets.of_cluster(stack.cluster))
            time.sleep(5)  # pods may come and go; there is no event to wait for
        assert {why for why in server.healthy().values() if why} == set()
        asked = [*queries.of_dashboards(), *queries.of_alerts()]
        found = queries.verdicts(server, asked, seconds=WATCH_SECONDS)
        print(queries.report(found))
        for path in sorted(queries.DASHBOARDS.glob("*.json")):
            output = tmp_path / f"{path.stem}.png"
            draw.dashboard(
                path, server, output=output, seconds=WATCH_SECONDS,
                caption=f"Embedded cluster, level {stack.cluster.level}; one client streaming from {TEAM}/chat.",
            )  # fmt: skip
            assert output.stat().st_size > 30_000
    assert [v.query for v in found if not v.good] == []
    assert client.failures == []


def _runbooks() -> list[tuple[str, str]]:
    return [
        (path.name, command)
        for path in sorted((st.ROOT / "docs" / "runbooks").glob("*.md"))
        for command in re.findall(r"^```\n(.*)\n```$", path.read_text(), re.MULTILINE)
    ]


@pytest.mark.parametrize(("runbook", "command"), _runbooks())
def test_a_runbooks_command_runs(
    runbook: str, command: str, stack: st.Stack, chat: dict[str, Any]
) -> None:
    """What a runbook tells to type ends well on a healthy system, its capitals replaced by names."""
    component = "operator" if "proxy" in command else "worker"
    namespace = st.SYSTEM if component == "operator" else TEAM
    pods = stack.list("pods", namespace, f"app.kubernetes.io/component={component}")
    names = {
        "NAMESPACE": TEAM,
        "NAME": chat["metadata"]["name"],
        "POD": pods[0]["metadata"]["name"],
        "VERB": "patch",
        "RESOURCE": "deployments.apps",
    }
    typed = re.sub(r"\b[A-Z]{3,}\b", lambda found: names[found.group()], command)
    if "--previous" in typed:
        typed = typed.replace(" --previous", "")  # nothing crashed
    program, *arguments = typed.split()
    if program == "helm":
        assert stack.cluster.helm(*(a.replace("charts/", f"{st.ROOT}/charts/") for a in arguments))
    elif arguments[0] == "trimtab":
        done = subprocess.run(
            [str(Path(sys.executable).parent / "trimtab"), *arguments[1:]], env=stack.cluster.environment(), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{runbook}: {done.stderr}"
    else:
        # Another runbook may just have rolled the pod that is asked: it has said nothing yet.
        st.wait_for(f"{runbook}: {typed}", lambda: stack.kubectl(*arguments), seconds=60)
