"""`python -m trimtab_workers.server`: flags, logs, and the engine's construction."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.net import bind_address
from trimtab_workers.engine.errors import EngineError
from trimtab_workers.server.lifecycle import ServerSettings, serve
from trimtab_workers.web import logs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab_workers.server.slot import ServedEngine

log = logging.getLogger("trimtab_workers.server")

LOST_SECONDS = 8.0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trimtab_workers.server", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the model set, models.json")
    parser.add_argument("--model-root", type=Path, required=True, help="folder of the models")
    parser.add_argument("--port", type=int, default=8000, help="OpenAI API")
    parser.add_argument("--admin-port", type=int, default=8001, help="/-/state and /-/reload")
    parser.add_argument("--metrics-port", type=int, default=8002, help="/metrics alone")
    parser.add_argument(
        "--shutdown-timeout",
        type=float,
        default=45.0,
        metavar="SECONDS",
        help="how long SIGTERM waits for running requests",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker; return the exit status."""
    arguments = _arguments(argv)
    logs.configure()
    release = version("trimtab")
    settings = ServerSettings(
        host=bind_address(),
        port=arguments.port,
        admin_port=arguments.admin_port,
        metrics_port=arguments.metrics_port,
        shutdown_timeout_seconds=arguments.shutdown_timeout,
        version=release,
    )

    def build() -> ServedEngine:
        from trimtab_workers.engine.config import load_config  # noqa: PLC0415 - after listening
        from trimtab_workers.engine.engine import Engine  # noqa: PLC0415 - torch takes seconds

        config = load_config(arguments.config, model_root=arguments.model_root)
        shown = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        shown["models"] = {model.name: f"{model.path}, {model.dtype}" for model in config.models}
        log.info("configured", extra={"config": shown})
        return Engine(config, on_group_lost=lost.set_and_stop)

    lost = _Lost()
    log.info("starting", extra={"version": release, "pid": os.getpid()})
    try:
        asyncio.run(serve(settings, build=build))
    except EngineError as error:
        log.error("engine_cannot_start", extra={"code": error.code, "reason": error.message})  # noqa: TRY400 - the sentence says all
        return 1
    except OSError as error:
        log.error("cannot_listen", extra={"reason": str(error)})  # noqa: TRY400 - the sentence says all
        return 1
    return 1 if lost.is_set else 0


class _Lost:
    """What a worker does when one of its ranks has ended: answer what runs, then end with 1.

    The engine fails every request, so the drain is short; whatever hangs is cut off.
    """

    def __init__(self) -> None:
        self.is_set = False

    def set_and_stop(self) -> None:
        """Begin the end; called on a thread of the group."""
        self.is_set = True
        last = threading.Timer(LOST_SECONDS, os._exit, (1,))
        last.daemon = True
        last.start()
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
