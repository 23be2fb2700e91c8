"""`python -m trimtab_workers.engine.bench NAME …`: chooses a benchmark, without typer."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODULES: Final[Mapping[str, str]] = {
    "engine-throughput": "throughput",
    "cpu-peer": "cpu_peer",
    "cpu-idle": "cpu_idle",
    "sim-remap": "sim_remap",
    "cpu-link": "cpu_link",
    "accuracy": "accuracy",
    "ranks": "ranks",
    "calibrate": "gpu.calibrate",
    "decode": "gpu.decode",
    "exact": "gpu.exact",
    "active": "gpu.active",
    "c2c": "gpu.c2c",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark by name; 2 if there is none of that name."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or [""]
    module = MODULES.get(name)
    if module is None:
        print(  # noqa: T201 - a command
            f"error: There is no benchmark {name!r}: choose one of {', '.join(MODULES)}.",
            file=sys.stderr,
        )
        return 2
    ended: int = importlib.import_module(f"trimtab_workers.engine.bench.{module}").main(rest)
    return ended


if __name__ == "__main__":
    # A benchmark that is ended takes the processes of its sides with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
