"""The benchmark from its first fingerprint to its last run, one way to serve at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from trimtab.api.v1alpha1.inferenceintent import ModelSource
from trimtab.bench.open_loop import drive, percentile
from trimtab.bench.road.anchoring import COUNTED
from trimtab.bench.road.forecast import LEAST_LOAD, Forecast
from trimtab.bench.road.ledger import Opening, Row
from trimtab.bench.road.matrix import Rates, Run, Way, blocks, total_seconds
from trimtab.bench.road.stage import CannotServeError
from trimtab.observe.inspections import INSPECTION_KEY
from trimtab.reconcile.fingerprint_book import FINGERPRINT_KEY
from trimtab.reconcile.inferenceintent import jobs
from trimtab.reconcile.labels import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trimtab.bench.open_loop import Outcome
    from trimtab.bench.road.ledger import Ledger
    from trimtab.bench.road.matrix import Shape
    from trimtab.bench.road.stage import Served, Stage
    from trimtab.planning.plan import Option

JSON = dict[str, Any]  # any: a document
PRICES: Final = ("trimtab-prices", "prices.yaml")
_FIRST_PER_SECOND, _FIRST_SECONDS = 2.0, 4.0
_PATIENCE: Final = 0.5
_LEAST_PATIENCE_SECONDS: Final = 30.0
_DRAIN_SECONDS: Final = 60.0
_BETWEEN_SECONDS: Final = 40.0
_BUDGET_SLACK: Final = 1.02
_KV_CAPACITY: Final = "trimtab_engine_kv_capacity_tokens"
_QUEUED: Final = ("vllm:num_requests_running", "vllm:num_requests_waiting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conductor:
    """Measures what a ledger still misses."""

    stage: Stage
    ledger: Ledger
    model: str
    shape: Shape
    source: Mapping[str, Any]
    say: Callable[[str], None]

    async def measure(self) -> None:
        """Measure everything that is missing; each run is written when it ends.

        Raises:
            CommandError: The cluster cannot serve the model at all.
        """
        opening = self.ledger.opening
        if opening is None:
            opening = await self._survey()
            self.ledger.begin(opening)
        forecast = Forecast(opening.known(), prompt=self.shape.prompt, output=self.shape.output)
        planned = list(blocks(self.shape, opening.rates))
        left = [(way, self.ledger.missing(runs)) for way, runs in planned]
        seconds = sum(total_seconds(runs) + _BETWEEN_SECONDS for _, runs in left if runs)
        count = sum(len(runs) for _, runs in left)
        self.say(f"{count} runs to measure, about {seconds / 60:.0f} min")
        refused: set[str] = set()
        for way, runs in left:
            if not runs or way.name in refused:
                continue
            try:
                await self._serve(way, runs, opening, forecast)
            except CannotServeError as error:
                refused.add(way.name)
                self.ledger.skip(way.name, str(error))
                self.say(f"{way.name} is skipped: {error}")
            seconds -= total_seconds(runs) + _BETWEEN_SECONDS
            self.say(f"about {max(0.0, seconds) / 60:.0f} min left")

    async def _survey(self) -> Opening:
        """Let the cluster inspect and measure the model; nothing is scored yet."""
        fingerprints, inspection, public_name, nodes = [], "", "", []
        overhead = 0
        for precision in self.shape.precisions:
            name = f"bench-{precision}"
            self.say(f"{precision}: inspection and fingerprint Jobs, then a first worker")
            try:
                way = Way(precision=precision, replicas=1)
                served = await self.stage.serve(name, _wanted(way, rate=LEAST_LOAD.rate))
                fingerprints.append(await self._fingerprint(served))
                inspection = inspection or await self._inspection(served)
                public_name = served.public_name
                nodes = await self.stage.nodes(name)
                await self._first_requests(served)
                overhead = max(overhead, await self.stage.overhead_us(public_name))
            finally:
                await self.stage.remove(name)
        prices = await self.stage.config_map(*PRICES)
        opening = Opening(
            model=self.model,
            shape=self.shape,
            rates=Rates(base=0.0, saturating={}, preempt=0.0),
            inspection=inspection,
            fingerprints=tuple(fingerprints),
            prices=prices,
            overhead_us=overhead,
            conditions=_conditions(inspection, fingerprints, nodes=nodes, overhead_us=overhead),
        )
        forecast = Forecast(opening.known(), prompt=self.shape.prompt, output=self.shape.output)
        return replace(opening, rates=forecast.rates(self.shape))

    async def _fingerprint(self, served: Served) -> str:
        confidence = served.body["status"]["plan"].get("confidence") or {}
        name = str(confidence.get("fingerprint") or "")
        document = await self.stage.config_map(name, FINGERPRINT_KEY) if name else ""
        if not document:
            raise CannotServeError(
                f"InferenceIntent {served.name} is planned from source "
                f"{confidence.get('source')!r}, not from a fingerprint of this cluster: see its "
                "condition Fingerprinted."
            )
        return document

    async def _inspection(self, served: Served) -> str:
        meta = served.body["metadata"]
        owner = Owner(namespace=meta["namespace"], name=meta["name"], uid=meta["uid"])
        source = jobs.source_digest(ModelSource.model_validate(self.source))
        return await self.stage.config_map(jobs.facts_name(owner, source=source), INSPECTION_KEY)

    async def _first_requests(self, served: Served) -> None:
        """Send a few requests that are not counted: a process's first ones are slow."""
        run = Run(
            way=served.name,
            kind="load",
            share=0.0,
            repeat=-1,
            rate=_FIRST_PER_SECOND,
            seconds=_FIRST_SECONDS,
            prompt=self.shape.prompt,
            output=min(16, self.shape.output),
            length_cv=0.0,
        )
        await drive(
            await self.stage.endpoint(), run.arrivals(served.public_name), until_seconds=60.0
        )

    async def _serve(
        self, way: Way, runs: Sequence[Run], opening: Opening, forecast: Forecast
    ) -> None:
        name = f"bench-{way.name}"
        rate = LEAST_LOAD.rate if way.small else self.shape.loads[-1] * opening.rates.base
        option = forecast.option(way, rate)
        try:
            served = await self.stage.serve(
                name, _wanted(way, rate=rate, shape=self.shape, option=option)
            )
            _check(served, way)
            await self._first_requests(served)
            for run in runs:
                row = await self._run(served, run)
                self.ledger.add(row)
                self.say(_told(row))
        finally:
            await self.stage.remove(name)

    async def _run(self, served: Served, run: Run) -> Row:
        endpoint = await self.stage.endpoint()
        before = await self.stage.counters(served.name)
        started, busy = datetime.now(UTC), os.getloadavg()[0]
        outcomes = await drive(
            endpoint, run.arrivals(served.public_name), until_seconds=_until(run)
        )
        after = await self.stage.counters(served.name)
        await self._drained(served.name)
        return row_of(
            run,
            outcomes,
            before=before,
            after=after,
            load_average=(busy, os.getloadavg()[0]),
            started=started.isoformat(timespec="seconds"),
        )

    async def _drained(self, name: str) -> None:
        """Wait until the workers are idle: what was broken off must not be in the next run."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while True:
                    seen = await self.stage.counters(name)
                    if seen is None:
                        await asyncio.sleep(5.0)
                        return
                    if not any(seen.get(queue) for queue in _QUEUED):
                        return
                    await asyncio.sleep(0.5)


def row_of(
    run: Run,
    outcomes: Sequence[Outcome],
    *,
    before: Mapping[str, float] | None,
    after: Mapping[str, float] | None,
    load_average: tuple[float, float],
    started: str,
) -> Row:
    """Return a run's outcomes as a row; what arrived during the warm-up is not counted."""
    begin = run.warm_up_seconds
    counted = [o for o in outcomes if o.arrival.at_seconds >= begin]
    good = [o for o in counted if o.error is None and o.ttft_seconds is not None]
    errors: dict[str, int] = {}
    for outcome in counted:
        if outcome.error is not None:
            errors[outcome.error] = errors.get(outcome.error, 0) + 1
    lag = percentile([o.lag_seconds for o in outcomes], 0.99)
    counters = None
    if before is not None and after is not None:
        counters = {name: after.get(name, 0.0) - before.get(name, 0.0) for name in COUNTED}
    tokens = tokens_within(outcomes, begin=begin, end=run.total_seconds)
    sent = [o.arrival.output_tokens for o in outcomes]
    mean = sum(sent) / len(sent) if sent else run.output
    return Row(
        run=run,
        requests=len(counted),
        errors=errors,
        ttft_us=tuple(round(1e6 * (o.ttft_seconds or 0.0)) for o in good),
        tpot_us=tuple(round(1e6 * o.tpot_seconds) for o in good if o.tpot_seconds is not None),
        e2e_us=tuple(
            round(1e6 * (o.end_seconds - o.arrival.at_seconds - o.lag_seconds)) for o in good
        ),
        requests_per_second=tokens / mean / run.seconds,
        lag_ms_p99=None if lag is None else round(1000 * lag, 2),
        load_average=load_average,
        counters=counters,
        kv_tokens=None if after is None else round(after.get(_KV_CAPACITY, 0.0)),
        started=started,
    )


def tokens_within(outcomes: Sequence[Outcome], *, begin: float, end: float) -> float:
    """Return how many output tokens came between two times, seconds after the start.

    A request's tokens are taken as evenly spread between its first and its last one.
    """
    total = 0.0
    for outcome in outcomes:
        if outcome.ttft_seconds is None:
            continue
        first = outcome.arrival.at_seconds + outcome.lag_seconds + outcome.ttft_seconds
        total += begin <= first < end
        span = outcome.end_seconds - first
        if span > 0:
            within = max(0.0, min(end, outcome.end_seconds) - max(begin, first))
            total += (outcome.output_tokens - 1) * within / span
    return total


def _wanted(
    way: Way, *, rate: float, shape: Shape | None = None, option: Option | None = None
) -> JSON:
    """Return the spec that pins a way: precision and replicas by constraints, one thread by cost."""
    prompt, output = LEAST_LOAD.prompt, LEAST_LOAD.output
    if shape is not None and not way.small:
        prompt, output = shape.prompt, shape.output
    spec: JSON = {
        "objective": "MinCost",
        "load": {
            "requestsPerSecond": f"{rate:.3f}",
            "promptTokens": prompt,
            "outputTokens": output,
        },
        "constraints": {
            "gpuProducts": ["cpu"],
            "precisions": [way.precision],
            "minReplicas": way.replicas,
            "maxReplicas": way.replicas,
        },
    }
    cost = None if option is None else option.cost_per_hour_micro_usd
    if cost is not None:
        # A second thread costs more than the slack; without prices MinCost takes the fewest.
        budget = round(_BUDGET_SLACK * cost)
        spec |= {"objective": "TargetCost", "targets": {"costPerHour": f"{budget / 1e6:.6f}"}}
    return spec


def _check(served: Served, way: Way) -> None:
    """Refuse what the operator planned otherwise than asked."""
    plan = served.body["status"]["plan"]
    have = (plan.get("precision"), plan.get("replicas"), plan.get("threadsPerReplica"))
    if have != (way.precision, way.replicas, 1):
        raise CannotServeError(
            f"{way.name} was planned as {have[0]}, {have[1]} replicas of {have[2]} threads: "
            f"{plan.get('message', '')}"
        )


def _until(run: Run) -> float:
    if run.kind == "capacity":
        return run.total_seconds
    return run.total_seconds + max(_LEAST_PATIENCE_SECONDS, _PATIENCE * run.total_seconds)


def _told(row: Row) -> str:
    tpot = percentile(row.tpot_us, 0.5)
    shown = "-" if tpot is None else f"{tpot / 1000:.1f} ms"
    failed = f", not answered: {dict(row.errors)}" if row.errors else ""
    return (
        f"{row.run.key}: {row.requests} requests at {row.run.rate:.3f}/s, TPOT p50 {shown}, "
        f"{row.requests_per_second:.3f} answered/s, load average {row.load_average[1]:.1f}{failed}"
    )


def _conditions(
    inspection: str, fingerprints: Sequence[str], *, nodes: Sequence[str], overhead_us: int
) -> JSON:
    facts = json.loads(inspection) if inspection else {}
    documents = [json.loads(text) for text in fingerprints]
    return {
        "cpu_model": facts.get("cpuModel"),
        "cpus": facts.get("cpus"),
        "nodes": len(nodes),
        "threads_per_replica": 1,
        "gateway_overhead_ms": round(overhead_us / 1000, 2),
        "fingerprints": [
            {
                "precision": document["key"]["precision"],
                "engine_version": document["key"]["engineVersion"],
                "seconds": document.get("gpuSeconds"),
                "notes": document.get("notes", []),
                "taken": document.get("taken"),
                "points": sum(len(document.get(k, ())) for k in ("decode", "prefill", "mixed")),
            }
            for document in documents
        ],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_before": round(os.getloadavg()[0], 2),
    }
