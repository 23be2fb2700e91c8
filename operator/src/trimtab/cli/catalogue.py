"""Ask the catalogue of measured operators, which lives in a Python environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab.cli.output import CommandError
from trimtab.planning.architecture import Architecture
from trimtab.planning.fingerprint import parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.planning.fingerprint import Fingerprint

PYTHON: Final = "TRIMTAB_CATALOGUE_PYTHON"
_MODULE: Final = "trimtab_workers.fingerprint.catalogue"
_TIMEOUT_SECONDS: Final = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueQuery:
    """One fingerprint that is asked for; ``config`` None asks for what the package brings.

    ``grid`` is ``thin`` (planner.md §4) or ``full``, which only benchmarks judge by.
    """

    model: str
    system: str
    backend: str
    precision: str
    kv_precision: str
    tensor_parallel_size: int
    config: Mapping[str, Any] | None = None  # any: a config.json
    grid: str = "thin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """A fingerprint from the catalogue, and the model that it is of."""

    fingerprint: Fingerprint
    architecture: Architecture
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One estimate or one refusal per query, in their order; ``package`` is its version."""

    package: str
    results: tuple[Estimated | str, ...]


def ask(queries: Sequence[CatalogueQuery], *, python: str | None = None) -> Answers:
    """Return what the catalogue knows.

    Args:
        queries: What is asked for.
        python: Interpreter of the environment that holds the package; None takes the variable
            TRIMTAB_CATALOGUE_PYTHON, or this interpreter.

    Raises:
        CommandError: The package is not there, or its process failed.
    """
    interpreter = python or os.environ.get(PYTHON) or sys.executable
    request = json.dumps({"v": 1, "queries": [_as_json(query) for query in queries]})
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter that the user named
            [interpreter, "-m", _MODULE],
            input=request,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
            env=os.environ | {"PYTHONPATH": _sources(), "HF_HUB_OFFLINE": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(
            f"The catalogue's interpreter {interpreter} failed: {error}. Set {PYTHON} to the python of "
            "an environment that holds aiconfigurator."
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CommandError(
            f"The catalogue's process ended with {done.returncode}: {last} Run `{interpreter} -m "
            f"{_MODULE} < /dev/null` to see it all; {PYTHON} names another interpreter."
        )
    reply = json.loads(done.stdout)
    if not reply["ok"]:
        raise CommandError(
            f"{reply['message']} It is an optional extra of about 850 MB and needs an environment "
            f"of its own: `python -m venv catalogue && catalogue/bin/pip install 'aiconfigurator"
            f">=0.12,<0.13'`, then set {PYTHON}=catalogue/bin/python."
        )
    return Answers(package=reply["package"], results=tuple(map(_read, reply["results"])))


def _as_json(query: CatalogueQuery) -> dict[str, Any]:
    return {
        "model": query.model,
        "config": query.config,
        "system": query.system,
        "backend": query.backend,
        "precision": query.precision,
        "kvPrecision": query.kv_precision,
        "tensorParallelSize": query.tensor_parallel_size,
        "grid": query.grid,
    }


def _read(result: Mapping[str, Any]) -> Estimated | str:  # any: JSON
    if not result["ok"]:
        return str(result["message"])
    return Estimated(
        fingerprint=parse(json.dumps(result["fingerprint"])),
        architecture=Architecture.from_dict(result["architecture"]),
        depth=int(result["depth"]),
    )


def _sources() -> str:
    """Return where this project's packages lie, for an interpreter that has them not installed."""
    import trimtab  # noqa: PLC0415 - as above
    import trimtab_workers  # noqa: PLC0415 - only where the catalogue is asked

    folders = [Path(str(package.__file__)).parents[1] for package in (trimtab, trimtab_workers)]
    return os.pathsep.join(str(folder) for folder in dict.fromkeys(folders))
