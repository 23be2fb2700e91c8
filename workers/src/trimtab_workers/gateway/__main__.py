"""`python -m trimtab_workers.gateway`: flags, environment, logs."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from trimtab.api.v1alpha1.names import GATEWAY
from trimtab.net import bind_address
from trimtab_workers.gateway.kube.client import WatchingClient
from trimtab_workers.gateway.lifecycle import serve
from trimtab_workers.gateway.settings import GatewaySettings, SettingsError, from_environment
from trimtab_workers.web import logs

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger("trimtab_workers.gateway")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trimtab_workers.gateway", description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="clients: /v1/*")
    parser.add_argument("--admin-port", type=int, default=8001, help="/-/observed and probes")
    parser.add_argument("--metrics-port", type=int, default=8002, help="/metrics alone")
    return parser.parse_args(argv)


async def _run(settings: GatewaySettings) -> None:
    async with await WatchingClient.connect(manager=GATEWAY) as client:
        await serve(settings, client=client)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the gateway; return the exit status."""
    arguments = _arguments(argv)
    try:
        logs.configure()
        settings = from_environment(
            host=bind_address(),
            port=arguments.port,
            admin_port=arguments.admin_port,
            metrics_port=arguments.metrics_port,
        )
    except (SettingsError, ValueError) as error:
        log.error("settings_invalid", extra={"reason": str(error)})  # noqa: TRY400 - the sentence says all
        return 2
    if settings.state_dir is None:
        log.warning("no_state_dir", extra={"remedy": "Set TRIMTAB_STATE_DIR to a writable folder."})
    log.info("starting", extra={"version": version("trimtab"), "pid": os.getpid()})
    try:
        asyncio.run(_run(settings))
    except OSError as error:
        log.error("cannot_start", extra={"reason": str(error)})  # noqa: TRY400 - the sentence says all
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
