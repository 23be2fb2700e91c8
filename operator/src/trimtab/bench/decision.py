"""`trimtab bench decision`: how long it takes to decide a size (rightsizer.md §11).

Measured on this machine: features from headers and the first bytes of a body, prediction alone, and both,
in a model that has learned; a request waits for both.
"""

from __future__ import annotations

import argparse
import os
import platform
import struct
import sys
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from trimtab.bench.report import run, table
from trimtab.cli.output import CommandError
from trimtab.rightsizing.checkpoint import Origin, dump
from trimtab.rightsizing.features import Plan, Request
from trimtab.rightsizing.sizer import FunctionModel
from trimtab.rightsizing.types import Ladder, PeakKind, Size, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from trimtab.bench.report import JSON
    from trimtab.rightsizing.types import Features

NAME: Final = "decision"
_BUDGET_US: Final = 2000
_DEADLINE_S: Final = 10.0
_LEARNED: Final = 1000
_DIFFERENT: Final = 256
_TARGETS: Final = {"features_and_prediction": 1000.0, "prediction": 100.0}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; `--help` shows its options."""
    parser = argparse.ArgumentParser(
        prog=f"trimtab bench {NAME}", description=f"{__doc__}".partition("\n")[0]
    )
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table")
    return run(parser, argv, measure=measure, text=text)


def measure(given: argparse.Namespace) -> JSON:
    """Return the document.

    Raises:
        CommandError: There are no calls to measure.
    """
    if given.calls < 1:
        raise CommandError(f"--calls is {given.calls}: at least 1.")
    plan = Plan.compile(())
    random = np.random.default_rng(0)
    requests = [_request(random) for _ in range(_DIFFERENT)]
    model = _learned(plan, requests, random)
    features = [_features(plan, request) for request in requests]
    timed = {
        "features": _timed(given.calls, lambda i: _features(plan, requests[i % _DIFFERENT])),
        "prediction": _timed(
            given.calls,
            lambda i: model.preview(features[i % _DIFFERENT], budget_s=_DEADLINE_S),
        ),
        "features_and_prediction": _timed(
            given.calls,
            lambda i: model.preview(
                _features(plan, requests[i % _DIFFERENT]), budget_s=_DEADLINE_S
            ),
        ),
        "learning": _timed(
            min(given.calls, 10_000),
            lambda i: _observe(model, features[i % _DIFFERENT], random),
        ),
    }
    return {
        "benchmark": NAME,
        "label": "measured on this machine",
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "load": os.getloadavg(),
        },
        "calls": given.calls,
        "classes": len(model.ladder.cpu_m),
        "inputs": model.basis.width,
        "checkpoint_bytes": len(dump(model, origin=Origin(uid="bench", digest="bench"))),
        "microseconds": timed,
        "targets": [
            {
                "target": f"{what} {figure}",
                "measured": timed[what][figure],
                "below": limit,
                "met": bool(timed[what][figure] < limit),
            }
            for what, limit in _TARGETS.items()
            for figure in ("p99_us", "cpu_p99_us")
        ],
    }


def _request(random: np.random.Generator) -> Request:
    """Return an upload of a JPEG with 8 KiB of metadata before its size."""
    width, height = (int(size) for size in random.integers(100, 4000, size=2))
    exif = b"\xff\xe1" + struct.pack(">H", 8192) + bytes(8190)
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    body = b"\xff\xd8" + exif + frame
    return Request(
        headers={"content-type": "image/jpeg", "host": "gateway"},
        query={},
        prefix=body,
        length=int(width * height * random.uniform(0.1, 0.5)),
    )


def _features(plan: Plan, request: Request) -> Features:
    return plan.vector(request, budget_us=_BUDGET_US, clock=_clock)


def _clock() -> int:
    return time.perf_counter_ns() // 1000


def _learned(plan: Plan, requests: Sequence[Request], random: np.random.Generator) -> FunctionModel:
    """Return a model of 20 classes of each that has seen every request several times."""
    model = FunctionModel(
        Ladder.of(cpu_m=(100, 2000, 100), mem_mib=(128, 2560, 128)), layout=plan.layout
    )
    for call in range(_LEARNED):
        _observe(model, _features(plan, requests[call % _DIFFERENT]), random)
    return model


def _observe(model: FunctionModel, features: Features, random: np.random.Generator) -> None:
    cpu_s = 1e-6 * features.numbers[1] * float(random.uniform(0.9, 1.1))
    usage = Usage(
        cpu_s=cpu_s,
        wall_s=cpu_s,
        throttled_s=0.0,
        periods_throttled=0,
        peak_anon_mib=64 + 1e-4 * features.numbers[1],
        peak_kind=PeakKind.RESET,
        oom=False,
        alloc=Size(2000, 2560),
    )
    model.observe(features, usage, budget_s=_DEADLINE_S)


def _timed(calls: int, call: Callable[[int], object]) -> JSON:
    """Return quantiles of single calls, in microseconds, after a hundred that are not counted.

    By the clock, and by this thread's CPU time, which other processes on the machine do not touch.
    """
    for number in range(min(calls, 100)):
        call(number)
    took, used = np.empty(calls), np.empty(calls)
    for number in range(calls):
        begin, spent = time.perf_counter_ns(), time.thread_time_ns()
        call(number)
        used[number] = time.thread_time_ns() - spent
        took[number] = time.perf_counter_ns() - begin
    return {
        **_quantiles(took / 1000, ""),
        **_quantiles(used / 1000, "cpu_"),
    }


def _quantiles(values: NDArray[np.float64], name: str) -> JSON:
    p50, p99, most = (round(float(v), 1) for v in np.quantile(values, (0.5, 0.99, 1.0)))
    return {f"{name}p50_us": p50, f"{name}p99_us": p99, f"{name}max_us": most}


def text(document: JSON) -> str:
    """Return the document for people."""
    head = (
        f"{NAME}: {document['label']}, {document['calls']} calls, {document['classes']} classes, "
        f"{document['inputs']} inputs, checkpoint {document['checkpoint_bytes']} bytes"
    )
    times = table([{"microseconds": n, **t} for n, t in document["microseconds"].items()])
    machine = f"machine: {document['machine']}"
    return "\n".join((head, machine, times, "", table(document["targets"])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
