"""`python -m e2e.faults`: the proxy as a process, in front of the cluster of a kubeconfig."""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl
from pathlib import Path

from e2e.cluster.process.api import Kubeconfig
from e2e.faults.control import control
from e2e.faults.proxy import FaultProxy


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.faults", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="where clients connect")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--control-port", type=int, default=0, help="always on loopback")
    parser.add_argument("--certificate", type=Path, help="PEM; its key beside it as .key")
    return parser


async def _serve(arguments: argparse.Namespace) -> None:
    config = Kubeconfig(arguments.kubeconfig)
    serving = None
    if arguments.certificate:
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(arguments.certificate, arguments.certificate.with_suffix(".key"))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    proxy = FaultProxy(
        config.server, upstream_tls=config.tls(), serving=serving, host=arguments.host,
        port=arguments.port,
    )  # fmt: skip
    async with proxy, control(proxy, port=arguments.control_port) as url:
        print(f"proxy {proxy.url} control {url}", flush=True)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(_serve(_parser().parse_args()))
