"""Render the chart with the real Helm; find Helm and promtool, or skip aloud where CI does not insist."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Objects = list[dict[str, Any]]
    Render = Callable[..., Objects]

CHART = Path(__file__).resolve().parents[2] / "charts" / "trimtab"


def program(name: str, *, remedy: str) -> str:
    """Return the path of a program; without it the test is skipped, or fails where CI is set."""
    found = os.environ.get(f"TRIMTAB_{name.upper()}") or shutil.which(name) or cached(name)
    if found:
        return found
    message = f"{name} was not found: {remedy}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def cached(name: str) -> str | None:
    """Return a program that `python -m e2e.cluster build` left in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"
    hits = sorted(
        path for path in cache.glob(f"*/*/{name}") if os.access(path, os.X_OK) and path.is_file()
    )
    return str(hits[-1]) if hits else None


@pytest.fixture(scope="session")
def helm() -> str:
    """Path of Helm."""
    return program("helm", remedy="run `python -m e2e.cluster build` or set TRIMTAB_HELM")


@pytest.fixture(scope="session")
def promtool() -> str:
    """Path of Prometheus' own checker."""
    return program("promtool", remedy="apt-get install prometheus, or set TRIMTAB_PROMTOOL")


class RenderError(Exception):
    """Helm refused; holds what it said."""


def template(helm: str, *arguments: str, values: Mapping[str, Any] | None = None) -> str:
    """Return what `helm template` prints for the chart."""
    done = subprocess.run(
        [helm, "template", "trimtab", str(CHART), "--namespace", "trimtab-system", "--values", "-", *arguments],
        input=yaml.safe_dump(dict(values or {})), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RenderError(done.stderr)
    return done.stdout


@pytest.fixture(scope="session")
def render(helm: str) -> Render:
    """Return a function (values) -> the rendered objects."""

    def rendered(values: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        return [item for item in yaml.safe_load_all(template(helm, values=values)) if item]

    return rendered
