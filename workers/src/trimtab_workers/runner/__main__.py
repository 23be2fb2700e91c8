"""`python -m trimtab_workers.runner`: serve a Python function over HTTP, whatever its signature."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab_workers.runner import own_group
from trimtab_workers.runner.settings import RunnerSettings, SettingsError, from_environment
from trimtab_workers.runner.signatures import SIGNATURES
from trimtab_workers.runner.spawn import start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab_workers.node_agent.cgroup import Group, Reader
    from trimtab_workers.runner.spawn import Started


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trimtab_workers.runner", description=__doc__)
    parser.add_argument(
        "--source", type=Path, help="folder of the module (TRIMTAB_FUNCTION_SOURCE)"
    )
    parser.add_argument("--module", help="the module, without .py (TRIMTAB_FUNCTION_MODULE, main)")
    parser.add_argument(
        "--signature",
        choices=SIGNATURES,
        help="how to call it (TRIMTAB_SIGNATURE; default: by names)",
    )
    parser.add_argument("--port", type=int, help="PORT, 8080; 0 lets the system choose")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the function; return the exit status."""
    arguments = _arguments(argv)
    try:
        settings = from_environment(
            source=arguments.source,
            module=arguments.module,
            signature=arguments.signature,
            port=arguments.port,
        )
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - before there are logs
        return 2
    # The group must be looked at before there is a second process in it, and the child loads the
    # function while this process imports asyncio and h11: together they make a start a third shorter.
    own = own_group.find()
    memory = own[0].limits(own[1]).mem_mib if own else None
    return _serve(settings, own, start(settings, memory_mib=memory or 0))


def _serve(settings: RunnerSettings, own: tuple[Reader, Group] | None, started: Started) -> int:
    from trimtab_workers.runner.lifecycle import run  # noqa: PLC0415 - after the child was started

    return run(settings, own=own, started=started)


if __name__ == "__main__":
    sys.exit(main())
