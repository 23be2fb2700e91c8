"""`python -m e2e.cluster.process`: run, stop or look into a stand-in node."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from e2e.cluster.process import addresses, processes, sweep
from e2e.cluster.process.api import Api, Kubeconfig
from e2e.cluster.process.images import Images
from e2e.cluster.process.node import Node, Settings
from e2e.cluster.process.records import write_json
from e2e.cluster.process.sweeping import stop_node

if TYPE_CHECKING:
    from collections.abc import Sequence


class AlreadyRunningError(RuntimeError):
    """Another stand-in node uses the state directory."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m e2e.cluster.process",
        description="A stand-in node: runs Trimtab's pods as local processes. Nothing is isolated, "
        "nothing limits CPU or memory.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run", help="serve (the default): SIGTERM ends it and its pods, SIGHUP leaves them running"
    )
    run.add_argument("--kubeconfig", type=Path, required=True)
    run.add_argument("--node-name", default="stand-in")
    run.add_argument("--loopback-prefix", default=addresses.LOOPBACK)
    run.add_argument("--pod-api-server", help="the API server's URL in pods' kubeconfigs")
    run.add_argument("--back-off-seconds", type=float, default=10.0)
    run.add_argument("--all-pods", action="store_true", help="run other people's pods, too")
    run.add_argument(
        "--pki", type=Path, help="folder with kubelet.crt, kubelet.key and ca.crt, for `kubectl logs`; "
        "default: the folder pki beside the state directory, if there is one",
    )  # fmt: skip
    run.add_argument(
        "--substitutes", type=Path, help="JSON: Python modules and the commands that play them"
    )
    run.add_argument("--namespace", action="append", default=[], help="run every pod of it")
    stop = commands.add_parser("stop", help="end the node and every process that it started")
    logs = commands.add_parser("logs", help="print a container's log")
    logs.add_argument("pod", help="NAMESPACE/NAME, of a running or an ended pod")
    logs.add_argument("-c", "--container")
    image = commands.add_parser("image", help="let a command or a folder stand for an image")
    image.add_argument("reference")
    image.add_argument("--folder", type=Path)
    image.add_argument("--entrypoint", nargs="*", default=[])
    for command in (run, stop, logs, image):
        command.add_argument("--state-dir", type=Path, required=True)
    return parser


async def _serve(settings: Settings, kubeconfig: Path) -> bool:
    """Serve until a signal comes and return whether the pods shall end, too."""
    from e2e.cluster.process.logs import serve_logs

    loop = asyncio.get_running_loop()
    asked: asyncio.Future[int] = loop.create_future()

    def ask(number: int) -> None:
        if not asked.done():
            asked.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, ask, number)
    async with Api(Kubeconfig(kubeconfig)) as api, serve_logs(settings) as serving:
        serve = asyncio.create_task(Node(serving, api=api).run())
        await asyncio.wait({serve, asked}, return_when=asyncio.FIRST_COMPLETED)
        if serve.done():
            serve.result()
        serve.cancel()
        await asyncio.gather(serve, return_exceptions=True)
    return asked.result() != signal.SIGHUP


def run(arguments: argparse.Namespace) -> None:
    """Serve as a node until told to stop."""
    state: Path = arguments.state_dir
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    pki: Path = arguments.pki or state.resolve().parent / "pki"
    settings = Settings(
        name=arguments.node_name,
        state_dir=state.resolve(),
        loopback=arguments.loopback_prefix,
        pod_api_server=arguments.pod_api_server,
        back_off_seconds=arguments.back_off_seconds,
        all_pods=arguments.all_pods,
        namespaces=frozenset(arguments.namespace),
        substitutes=json.loads(arguments.substitutes.read_text()) if arguments.substitutes else {},
        certificate=found if (found := pki / "kubelet.crt").exists() else None,
        client_authority=found if (found := pki / "ca.crt").exists() else None,
    )
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AlreadyRunningError(
                f"{state}: another stand-in node uses this state directory; stop it first"
            ) from error
        me = processes.identify()
        write_json(state / "node.json", {"pid": me.pid, "start_ticks": me.start_ticks})
        if asyncio.run(_serve(settings, arguments.kubeconfig)):
            sweep(settings.state_dir, seconds=8.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of the stand-in node."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(
        ["run", *words] if words[:1] and words[0][:2] == "--" else words
    )
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s stand-in-node %(message)s"
    )
    if arguments.command == "run":
        run(arguments)
    elif arguments.command == "stop":
        stop_node(arguments.state_dir)
        print(f"stand-in node stopped; {sweep(arguments.state_dir)} containers ended")
    elif arguments.command == "image":
        Images(arguments.state_dir / "images.json").add(
            arguments.reference, entrypoint=arguments.entrypoint, folder=arguments.folder
        )
    else:
        from e2e.cluster.process.logs import find

        path = find(arguments.state_dir, arguments.pod, container=arguments.container)
        sys.stdout.write(path.read_text(errors="replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
