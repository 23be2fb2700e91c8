"""The command line: `python -m e2e.cluster up|down|status|kubeconfig|build|load-image`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from e2e.cluster import api, build, embedded, providers, requirements, state
from e2e.cluster.errors import ClusterError
from e2e.cluster.versions import LEVELS

if TYPE_CHECKING:
    from collections.abc import Sequence

console = Console(stderr=True, highlight=False)


def _report(line: str) -> None:
    console.print(f"  {line}", markup=False)


def _up(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    cluster = api.up(
        name=arguments.name, level=arguments.level, kubeconfig=arguments.kubeconfig,
        console=console, report=_report,
    )  # fmt: skip
    seconds = time.monotonic() - start
    if arguments.output == "json":
        described = {
            "name": cluster.name, "provider": cluster.provider, "level": cluster.level,
            "why": cluster.why, "kubeconfig": str(cluster.kubeconfig),
            "server": cluster.api_server_url, "seconds": round(seconds, 1),
        }  # fmt: skip
        print(json.dumps(described))
    else:
        console.print(
            f"cluster {cluster.name} is up at level {cluster.level} {cluster.why} in {seconds:.1f} s",
            markup=False,
        )
        print(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    names = state.names() if arguments.all else [arguments.name]
    removed = [name for name in names if api.down(name, report=_report)]
    if arguments.output == "json":
        print(json.dumps({"removed": removed}))
    elif not removed:
        console.print("there was no such cluster" if not arguments.all else "there is no cluster")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    st = state.load(arguments.name)
    rows = embedded.status(arguments.name)
    if arguments.output == "json":
        known = {"provider": st.provider, "level": st.level, "ready": st.ready} if st else None
        print(json.dumps({"name": arguments.name, "cluster": known, "components": rows}))
    elif st is None:
        others = ", ".join(state.names()) or "none"
        console.print(f"there is no cluster {arguments.name} (clusters here: {others})")
    else:
        table = Table("component", "pid", "version", "health", title=f"{st.name}: {st.level}")
        for row in rows:
            colour = "green" if row["health"] in {"healthy", "running"} else "red"
            table.add_row(
                str(row["component"]), str(row["pid"] or "-"), str(row["version"]),
                f"[{colour}]{row['health']}[/]",
            )  # fmt: skip
        Console(highlight=False).print(table)
    healthy = bool(st) and all(row["health"] in {"healthy", "running"} for row in rows)
    return 0 if healthy else 3


def _kubeconfig(arguments: argparse.Namespace) -> int:
    cluster = api.get(arguments.name)
    if cluster is None:
        raise ClusterError(
            f"There is no running cluster {arguments.name}. "
            f"Remedy: `python -m e2e.cluster up --name {arguments.name}`."
        )
    print(cluster.kubeconfig)
    return 0


def _build(arguments: argparse.Namespace) -> int:
    level = arguments.level
    if arguments.install_missing and (packages := requirements.missing_packages()):
        _report(f"installing {' '.join(packages)}")
        requirements.install(packages)
    if level == "auto":
        level, why = embedded.highest_level()
        if why:
            _report(why)
    elif problems := build.missing_for_build(level):
        raise ClusterError(f"The {level} level cannot be built here: {' '.join(problems)}")
    built = build.build_level(level, console=console)
    if arguments.output == "json":
        rows = {
            one.binary: {"path": str(one.path), "version": one.version, "seconds": round(one.seconds, 1)}
            for one in built.values()
        }  # fmt: skip
        print(json.dumps(rows))
    return 0


def _load_image(arguments: argparse.Namespace) -> int:
    found = providers.facts(arguments.name)
    if found is None:
        raise ClusterError(f"There is no running cluster {arguments.name}.")
    api.Cluster(**found).load_image(arguments.archive)
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="trimtab", help="which cluster (default: trimtab)")
    common.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    levels = ("auto", "kind", *LEVELS)
    up = commands.add_parser(
        "up", parents=[common], help="start a cluster, or what of it is missing"
    )
    up.add_argument("--level", choices=levels, default="auto")
    up.add_argument(
        "--kubeconfig", type=Path, help="use that cluster (default: $TRIMTAB_KUBECONFIG)"
    )
    up.set_defaults(run=_up)
    down = commands.add_parser("down", parents=[common], help="remove a cluster and all it left")
    down.add_argument("--all", action="store_true", help="remove every cluster of this user")
    down.set_defaults(run=_down)
    status = commands.add_parser("status", parents=[common], help="components, pids, health")
    status.set_defaults(run=_status)
    config = commands.add_parser("kubeconfig", parents=[common], help="print the kubeconfig's path")
    config.set_defaults(run=_kubeconfig)
    built = commands.add_parser("build", parents=[common], help="build what a level needs, no more")
    built.add_argument("--level", choices=("auto", *LEVELS), default="auto")
    built.add_argument(
        "--install-missing",
        action="store_true",
        help="as root on Debian: apt-get install what the node level lacks first",
    )
    built.set_defaults(run=_build)
    load = commands.add_parser("load-image", parents=[common], help="import a docker-archive tar")
    load.add_argument("archive", type=Path)
    load.set_defaults(run=_load_image)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; errors end with status 2 and one message on stderr."""
    arguments = _parser().parse_args(words)
    try:
        status: int = arguments.run(arguments)
    except ClusterError as exc:
        console.print(f"error: {exc}", style="red", markup=False)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
