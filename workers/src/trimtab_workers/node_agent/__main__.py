"""`python -m trimtab_workers.node_agent`: tell the gateway what function pods of foreign images used."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.net import bind_address
from trimtab_workers.node_agent import cgroup
from trimtab_workers.node_agent.app import serve
from trimtab_workers.node_agent.windows import Windows
from trimtab_workers.web import logs

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("trimtab_workers.node_agent")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trimtab_workers.node_agent", description=__doc__
    )
    parser.add_argument("--port", type=int, default=8000, help="windows and probes")
    parser.add_argument(
        "--cgroup-root", type=Path, default=cgroup.ROOT, help="where the node's cgroups are mounted"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent; return the exit status."""
    arguments = _arguments(argv)
    logs.configure()
    try:
        reader = cgroup.reader(arguments.cgroup_root)
    except cgroup.NoCgroupsError as error:
        log.error("cgroups_missing", extra={"reason": str(error)})  # noqa: TRY400 - the sentence says all
        return 2
    log.info("starting", extra={"reader": type(reader).__name__, "pods": len(reader.pods())})
    try:
        asyncio.run(
            serve(Windows(reader, clock=time.monotonic), host=bind_address(), port=arguments.port)
        )
    except OSError as error:
        log.error("cannot_listen", extra={"reason": str(error)})  # noqa: TRY400 - the sentence says all
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
