"""Start a Prometheus of our own on loopback, tell it what to scrape, and ask it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SCRAPE_SECONDS = 2
START_SECONDS = 30


class PrometheusError(RuntimeError):
    """Prometheus is missing, did not start, or refused a query; the message says what it said."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One metrics port; `labels` are those that Prometheus adds, the exporter's own win."""

    job: str
    address: str
    labels: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of an answer: labels, and points of (epoch seconds, value)."""

    labels: dict[str, str]
    points: list[tuple[float, float]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prometheus:
    """A running server; `folder` holds its configuration, targets and samples."""

    url: str
    folder: Path

    def scrape(self, targets: Iterable[Target]) -> None:
        """Scrape exactly these from now on; Prometheus notices the file by itself."""
        groups = [
            {"targets": [t.address], "labels": {"job": t.job, **dict(t.labels)}} for t in targets
        ]
        scratch = self.folder / "targets.tmp"
        scratch.write_text(json.dumps(groups))
        scratch.replace(self.folder / "targets.json")

    def _get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as exc:
            raise PrometheusError(
                f"{path} {parameters}: {exc.read().decode(errors='replace')}"
            ) from exc

    def healthy(self) -> dict[str, str]:
        """Return address -> what is wrong ("" if nothing) for every target."""
        return {
            target["labels"]["instance"]: "" if target["health"] == "up" else target["lastError"] or target["health"]
            for target in self._get("targets")["activeTargets"]
        }  # fmt: skip

    def instant(self, expression: str) -> list[Series]:
        """Evaluate an expression now."""
        return [
            Series(labels=item["metric"], points=[(item["value"][0], float(item["value"][1]))])
            for item in self._get("query", query=expression)["result"]
        ]

    def over(
        self, expression: str, *, start: float, end: float, step_seconds: float
    ) -> list[Series]:
        """Evaluate an expression over a time, as a panel does."""
        data = self._get(
            "query_range", query=expression, start=str(start), end=str(end), step=str(step_seconds)
        )
        return [
            Series(labels=item["metric"], points=[(t, float(v)) for t, v in item["values"]])
            for item in data["result"]
        ]

    def first_seconds(self) -> float:
        """Return when the oldest sample was taken, as epoch seconds; now if there is none."""
        found = self.instant("min(min_over_time(timestamp(up)[1d:10s]))")
        return found[0].points[0][1] if found else time.time()


def program() -> str:
    """Return the path of Prometheus.

    Raises:
        PrometheusError: It is not installed; says how to install it.
    """
    found = os.environ.get("TRIMTAB_PROMETHEUS") or shutil.which("prometheus")
    if not found:
        raise PrometheusError(
            "prometheus was not found. Remedy: apt-get install prometheus (its service is not needed), "
            "or set TRIMTAB_PROMETHEUS to its path."
        )
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _configuration(folder: Path, rules: Path | None) -> dict[str, Any]:
    return {
        "global": {
            "scrape_interval": f"{SCRAPE_SECONDS}s",
            "scrape_timeout": f"{SCRAPE_SECONDS}s",
            "evaluation_interval": f"{SCRAPE_SECONDS}s",
        },
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": [
            {
                "job_name": "trimtab",
                "honor_labels": True,
                "file_sd_configs": [
                    {"files": [str(folder / "targets.json")], "refresh_interval": "5s"}
                ],
            }
        ],
    }


@contextlib.contextmanager
def started(*, targets: Iterable[Target] = (), rules: Path | None = None) -> Iterator[Prometheus]:
    """Run Prometheus for the length of the block; its samples go with it.

    Raises:
        PrometheusError: It is not installed or was not ready in time; holds the end of its log.
    """
    with tempfile.TemporaryDirectory(prefix="trimtab-prometheus-") as name:
        folder = Path(name)
        server = Prometheus(url=f"http://127.0.0.1:{_free_port()}", folder=folder)
        server.scrape(targets)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(_configuration(folder, rules)))
        log = folder / "prometheus.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    program(),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'samples'}",
                    f"--web.listen-address={server.url.removeprefix('http://')}",
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                _until_ready(server, process, log)
                yield server
            finally:
                process.terminate()
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _until_ready(server: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{server.url}/-/ready", timeout=2),
        ):
            return
        time.sleep(0.1)
    raise PrometheusError(
        f"Prometheus was not ready within {START_SECONDS} s; its log ends: {log.read_text()[-2000:]}"
    )
