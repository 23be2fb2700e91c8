"""Asks the serving engine what a model of some depth costs, each time in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from trimtab.cli.output import CommandError

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON = dict[str, Any]  # any: JSON

_MODULE: Final = "trimtab_workers.fingerprint.probe"
_TIMEOUT_SECONDS: Final = 3600


def lacking() -> str:
    """Return why the engine cannot be asked here, with the remedy; empty if it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed: run `pip install 'trimtab[engine]'`."
    return ""


def ask(question: Mapping[str, object]) -> JSON:
    """Return the engine's answer; `trimtab_workers.fingerprint.probe` says what can be asked.

    Raises:
        CommandError: The process failed; names the question and its last line.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", _MODULE],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(
            f"The engine's process did not answer: {error}. Try fewer points."
        ) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CommandError(
            f"The engine's process ended with {done.returncode} at {question['what']}: {last} Give a "
            "smaller model or fewer layers if memory ran out."
        )
    answer: JSON = json.loads(done.stdout)
    return answer
