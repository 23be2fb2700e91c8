"""A benchmark on a machine that is a formula: what it measures follows from a fingerprint of its own."""

import json
from dataclasses import replace
from functools import lru_cache

from tests.unit.planning.builders import CPU, SMOLLM2, a_fingerprint, a_key
from trimtab.bench.road.anchoring import CONTEXT, PREEMPTIONS, SECONDS, SEQUENCES, STEPS
from trimtab.bench.road.forecast import Forecast
from trimtab.bench.road.ledger import Ledger, Opening, Row
from trimtab.bench.road.matrix import Rates, Shape, blocks
from trimtab.observe.capabilities import ASSUMED
from trimtab.planning.fingerprint import dump
from trimtab.planning.step_model import StepWork

SHAPE = Shape(
    loads=(0.2, 0.5),
    precisions=("bf16", "fp32"),
    replicas=(1,),
    repeats=2,
    seconds=40.0,
    capacity_seconds=20.0,
    preempt=True,
    prompt=64,
    output=64,
    length_cv=0.5,
)
PRICES = 'cpuHour: {"*": "0.04"}\nmemoryGiBHour: "0.005"\n'
INSPECTION = json.dumps(
    {
        "v": 1,
        "ok": True,
        "family": "llama",
        "architecture": SMOLLM2.to_dict(),
        "depth": 30,
        "precision": "bf16",
        "parameters": 134515008,
        "weightBytes": 269030016,
        "contextLength": 2048,
        "cpuModel": CPU,
        "cpus": 2,
    }
)


def documents(*, bf16=1.0, fp32=1.6):
    """Return fingerprints whose steps take so many times the usual."""
    factors = {"bf16": bf16, "fp32": fp32}
    return tuple(
        dump(
            a_fingerprint(
                key=replace(a_key(precision=precision), engine_version=ASSUMED.version),
                fixed_us=5000.0 * factor,
                layer_us=700.0 * factor,
                us_per_token=20.0 * factor,
                us_per_kv_token=0.1 * factor,
                us_per_work=0.02 * factor,
            )
        )
        for precision, factor in factors.items()
    )


@lru_cache
def an_opening(*, shape=SHAPE):
    opening = Opening(
        model="smollm2-135m",
        shape=shape,
        rates=Rates(base=0.0, saturating={}, preempt=0.0),
        inspection=INSPECTION,
        fingerprints=documents(),
        prices=PRICES,
        overhead_us=1000,
        conditions={"cpus": 2},
    )
    return replace(opening, rates=forecast_of(opening).rates(shape))


def forecast_of(opening):
    return Forecast(opening.known(), prompt=opening.shape.prompt, output=opening.shape.output)


def measured(path, *, truth=None, noise=lambda run: 1.0, shape=SHAPE):
    """Return the ledger of a whole benchmark on a machine with the fingerprints ``truth``.

    ``noise`` multiplies what requests of a run see.
    """
    ledger, opening = Ledger(path), an_opening(shape=shape)
    ledger.begin(opening)
    real = forecast_of(replace(opening, fingerprints=truth or documents()))
    most = shape.loads[-1] * opening.rates.base
    for way, runs in blocks(shape, opening.rates):
        for run in runs:
            ledger.add(a_row(run, way, real, factor=noise(run), planned_rate=most))
    return ledger


def a_row(run, way, real, *, factor, planned_rate):
    found = real.replay(run, way, planned_rate=0.0 if way.small else planned_rate)
    steps, batch = 500, {0.2: 1, 0.5: 3, 0.7: 5}.get(run.share, 16)
    work = StepWork(tokens=batch, sampled=batch, batch=batch, kv_tokens=batch * 96)
    step_us = real._source(way.precision).model.step_us(work) * factor
    return Row(
        run=run,
        requests=len(found.values["E2E"]),
        errors={},
        ttft_us=tuple(round(v * factor) for v in found.values["TTFT"]),
        tpot_us=tuple(round(v * factor) for v in found.values["TPOT"]),
        e2e_us=tuple(round(v * factor) for v in found.values["E2E"]),
        requests_per_second=(
            real.capacity(way, planned_rate=planned_rate) / factor
            if run.kind == "capacity"
            else run.rate
        ),
        lag_ms_p99=1.0,
        load_average=(1.0, 1.1),
        counters={
            STEPS: steps,
            SECONDS: steps * step_us / 1e6,
            SEQUENCES: steps * batch,
            CONTEXT: steps * batch * 96,
            PREEMPTIONS: found.preemptions,
        },
        kv_tokens=4096,
        started="2026-11-23T18:00:00+00:00",
    )
