"""An open-loop load generator for any OpenAI endpoint, on the unchanged `openai` package.

`python -m e2e.load --url http://127.0.0.1:8000/v1 --model NAME --rate 4 --seconds 30`: requests
leave when their time has come, however many are still running, as users do; a closed loop would
wait for a slow server and so hide that it is slow. Prompts are random token ids and outputs have
exact lengths (`ignore_eos`), so two servers get the same work.

Figures, as in the vLLM project's own benchmark: TTFT from sending to the first chunk with output;
TPOT is (last chunk - first chunk) / (output tokens - 1) per request; goodput counts requests within
both limits per second. `lag` is how late this client itself sent: where it is not small beside the
TTFT, the client was the bottleneck and the figures are worth nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import os
import random
import sys
import time
from typing import TYPE_CHECKING, Any

import openai

from trimtab.bench.open_loop import Arrival, Outcome, percentile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request must keep to count as goodput (engine.md, section 9)."""

    ttft_seconds: float = 1.0
    tpot_seconds: float = 0.05


def poisson(
    *,
    rate: float,
    seconds: float,
    models: Sequence[str],
    prompt_tokens: int,
    output_tokens: int,
    seed: int,
) -> list[Arrival]:
    """Return arrivals of a Poisson process, models in turn; equal seeds give equal arrivals."""
    source = random.Random(seed)
    arrivals: list[Arrival] = []
    at = source.expovariate(rate)
    while at < seconds:
        arrivals.append(
            Arrival(
                at_seconds=at,
                model=models[len(arrivals) % len(models)],
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                seed=source.getrandbits(31),
            )
        )
        at += source.expovariate(rate)
    return arrivals


async def drive(
    client: openai.AsyncOpenAI, arrivals: Iterable[Arrival], *, vocabulary: int = 512
) -> list[Outcome]:
    """Send every request at its time and return the outcomes in order of arrival.

    Args:
        arrivals: In any order.
        client: With `max_retries=0`: a retry would hide a refusal.
        vocabulary: Prompts are drawn from the token ids 4 … vocabulary - 1.
    """
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_send(client, a, start, vocabulary)) for a in arrivals]
    return [task.result() for task in tasks]


async def _send(
    client: openai.AsyncOpenAI, arrival: Arrival, start: float, vocabulary: int
) -> Outcome:
    source = random.Random(arrival.seed)
    prompt = [source.randrange(4, vocabulary) for _ in range(arrival.prompt_tokens)]
    await asyncio.sleep(max(0.0, start + arrival.at_seconds - time.perf_counter()))
    sent = time.perf_counter()
    lag = sent - start - arrival.at_seconds
    times: list[float] = []
    tokens = 0
    try:
        stream = await client.completions.create(
            model=arrival.model,
            prompt=prompt,
            max_tokens=arrival.output_tokens,
            temperature=0.0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            if chunk.choices and (chunk.choices[0].text or chunk.choices[0].finish_reason):
                times.append(time.perf_counter())
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
    except openai.OpenAIError as error:
        return Outcome(arrival=arrival, lag_seconds=lag, error=type(error).__name__)
    return Outcome(
        arrival=arrival,
        lag_seconds=lag,
        ttft_seconds=times[0] - sent,
        tpot_seconds=(times[-1] - times[0]) / (tokens - 1) if tokens > 1 else None,
        gaps_seconds=tuple(b - a for a, b in itertools.pairwise(times)),
        end_seconds=times[-1] - start,
        output_tokens=tokens,
    )


def summary(
    outcomes: Sequence[Outcome], *, limits: Limits, warmup_seconds: float = 0.0
) -> dict[str, Any]:
    """Return counts, rates and P50/P90/P99 in milliseconds; arrivals of the warm-up are dropped."""
    counted = [o for o in outcomes if o.arrival.at_seconds >= warmup_seconds]
    done = [o for o in counted if o.error is None]
    errors: dict[str, int] = {}
    for outcome in counted:
        if outcome.error is not None:
            errors[outcome.error] = errors.get(outcome.error, 0) + 1
    span = max((o.end_seconds for o in done), default=0.0) - warmup_seconds
    good = [
        o
        for o in done
        if (o.ttft_seconds or 0.0) <= limits.ttft_seconds
        and (o.tpot_seconds or 0.0) <= limits.tpot_seconds
    ]
    series = {
        "ttft": [o.ttft_seconds for o in done if o.ttft_seconds is not None],
        "tpot": [o.tpot_seconds for o in done if o.tpot_seconds is not None],
        "gap": [gap for o in done for gap in o.gaps_seconds],
        "lag": [o.lag_seconds for o in counted],
    }
    rows: dict[str, Any] = {
        "requests": len(counted),
        "completed": len(done),
        "errors": errors,
        "seconds": round(span, 3),
        "output_tokens": sum(o.output_tokens for o in done),
        "output_tokens_per_second": _rate(sum(o.output_tokens for o in done), span),
        "requests_per_second": _rate(len(done), span),
        "goodput_per_second": _rate(len(good), span),
    }
    for name, values in series.items():
        found = {f"p{share}": percentile(values, share / 100) for share in (50, 90, 99)}
        rows[f"{name}_ms"] = {k: None if v is None else round(v * 1e3, 2) for k, v in found.items()}
    return rows


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None


def _table(result: dict[str, Any]) -> str:
    lines = [f"{k:<26}{v}" for k, v in result.items() if not isinstance(v, dict) or k == "errors"]
    lines.append(f"{'milliseconds':<14}{'p50':>10}{'p90':>10}{'p99':>10}")
    for name in ("ttft_ms", "tpot_ms", "gap_ms", "lag_ms"):
        cells = "".join(f"{result[name][p]!s:>10}" for p in ("p50", "p90", "p99"))
        lines.append(f"{name.removesuffix('_ms'):<14}{cells}")
    return "\n".join(lines)


async def _main(arguments: argparse.Namespace) -> int:
    arrivals = poisson(
        rate=arguments.rate,
        seconds=arguments.warmup + arguments.seconds,
        models=arguments.model,
        prompt_tokens=arguments.prompt_tokens,
        output_tokens=arguments.output_tokens,
        seed=arguments.seed,
    )
    async with openai.AsyncOpenAI(
        base_url=arguments.url, api_key=arguments.api_key, max_retries=0
    ) as client:
        outcomes = await drive(client, arrivals, vocabulary=arguments.vocabulary)
    limits = Limits(
        ttft_seconds=arguments.ttft_limit / 1e3, tpot_seconds=arguments.tpot_limit / 1e3
    )
    result = summary(outcomes, limits=limits, warmup_seconds=arguments.warmup)
    print(json.dumps(result) if arguments.output == "json" else _table(result))
    return 0 if result["completed"] == result["requests"] else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one load from the command line; exit 1 if any request failed."""
    parser = argparse.ArgumentParser(prog="python -m e2e.load", description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True, help="the endpoint, with its /v1")
    parser.add_argument("--model", required=True, action="append", help="several take turns")
    parser.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", "none"))
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--warmup", type=float, default=0.0, help="seconds before counting")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=512, help="token ids below this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ttft-limit", type=float, default=1000.0, help="ms, for goodput")
    parser.add_argument("--tpot-limit", type=float, default=50.0, help="ms, for goodput")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return asyncio.run(_main(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
