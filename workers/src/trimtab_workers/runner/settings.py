"""The runner's environment (docs/design/20261123-contracts.md, section 13)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class SettingsError(ValueError):
    """An environment variable has an impossible value; names it, the value and the remedy."""


class RunnerSettings(NamedTuple):
    """How a runner runs; times are seconds.

    Attributes:
        source: Folder of the function's module.
        module: The module's name.
        signature: What spec.signature says; None lets names decide.
        start_seconds: How long importing the module may take.
        abandoned_seconds: How long a call may go on after its client went away.
        shutdown_seconds: How long SIGTERM waits for the call that runs.
        termination_log: Where the reason of a failed start is written.
    """

    host: str
    port: int
    source: Path
    module: str
    signature: str | None
    start_seconds: float
    abandoned_seconds: float
    shutdown_seconds: float
    termination_log: Path

    def child_environment(self) -> dict[str, str]:
        """Return what the child's environment has besides the parent's."""
        return {
            "TRIMTAB_FUNCTION_SOURCE": str(self.source),
            "TRIMTAB_FUNCTION_MODULE": self.module,
            "TRIMTAB_SIGNATURE": self.signature or "",
        }


def from_environment(
    environment: Mapping[str, str] | None = None,
    *,
    source: Path | None = None,
    module: str | None = None,
    signature: str | None = None,
    port: int | None = None,
) -> RunnerSettings:
    """Read the environment; what is given here as an argument (a flag) wins.

    Raises:
        SettingsError: A variable is no number, or a port is none.
    """
    given = os.environ if environment is None else environment
    chosen = port if port is not None else int(_number(given, "PORT", 8080))
    if not 0 <= chosen <= 65535:
        raise SettingsError(f"PORT is {chosen}; use 1 to 65535.")
    return RunnerSettings(
        host=given.get("TRIMTAB_BIND_ADDRESS", "0.0.0.0"),  # noqa: S104 - pods listen on all addresses
        port=chosen,
        source=source or Path(given.get("TRIMTAB_FUNCTION_SOURCE", ".")),
        module=module or given.get("TRIMTAB_FUNCTION_MODULE") or "main",
        signature=signature or given.get("TRIMTAB_SIGNATURE") or None,
        start_seconds=_number(given, "TRIMTAB_START_SECONDS", 300),
        abandoned_seconds=_number(given, "TRIMTAB_ABANDONED_SECONDS", 5),
        shutdown_seconds=_number(given, "TRIMTAB_SHUTDOWN_SECONDS", 25),
        termination_log=Path(given.get("TRIMTAB_TERMINATION_LOG", "/dev/termination-log")),
    )


def _number(given: Mapping[str, str], name: str, default: float) -> float:
    text = given.get(name) or str(default)
    try:
        value = float(text)
    except ValueError as error:
        raise SettingsError(f"{name} is {text!r}; write a number.") from error
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{name} is {text!r}; write a number that is not negative.")
    return value
