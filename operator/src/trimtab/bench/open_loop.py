"""Open-loop load: requests leave when their time has come, however many are still running.

A closed loop would wait for a slow server and so hide that it is slow. Prompts are random token ids
and outputs have exact lengths (`ignore_eos`), so two servers get the same work and no prompt finds
another's cache. TTFT is from sending to the first chunk with output, TPOT is (last chunk - first
chunk)/(output tokens - 1). `lag` is how late the client itself sent: where it is not small beside
the TTFT, the client was the bottleneck and the figures are worth nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from trimtab.net import pod_connector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

UNFINISHED: Final = "Unfinished"
"""Error of a request that was still running when the load ended."""

_CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request to send, in seconds after the start."""

    at_seconds: float
    model: str
    prompt_tokens: int
    output_tokens: int
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a request; `error` is the exception's class, times are seconds.

    `end_seconds` is the last token's time after the start of the load.
    """

    arrival: Arrival
    lag_seconds: float
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    gaps_seconds: tuple[float, ...] = ()
    end_seconds: float = 0.0
    output_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An OpenAI endpoint without its `/v1`, and the bearer token that it asks for."""

    url: str
    token: str = ""


def scattered(
    *,
    rate: float,
    seconds: float,
    model: str,
    prompt_tokens: int,
    output_tokens: int,
    length_cv: float,
    seed: int,
) -> list[Arrival]:
    """Return the arrivals of a Poisson process given that it has its mean number of them.

    Their times are uniform and independent. A Poisson number would add its own spread to the rate,
    a tenth at 100 requests, which says nothing about a server. For the same reason lengths are the
    quantiles of a lognormal distribution in random order, so that their means come out.
    """
    source = random.Random(seed)  # noqa: S311 - traffic of a benchmark
    count = max(1, round(rate * seconds))
    times = sorted(source.uniform(0, seconds) for _ in range(count))
    prompts = _lengths(prompt_tokens, cv=length_cv, count=count, source=source)
    outputs = _lengths(output_tokens, cv=length_cv, count=count, source=source)
    return [
        Arrival(
            at_seconds=at,
            model=model,
            prompt_tokens=prompt,
            output_tokens=output,
            seed=source.getrandbits(31),
        )
        for at, prompt, output in zip(times, prompts, outputs, strict=True)
    ]


def _lengths(mean: int, *, cv: float, count: int, source: random.Random) -> list[int]:
    spread = math.log(1 + cv**2)
    normal = statistics.NormalDist(math.log(mean) - spread / 2, math.sqrt(spread) or 1e-9)
    found = [max(1, round(math.exp(normal.inv_cdf((i + 0.5) / count)))) for i in range(count)]
    source.shuffle(found)
    return found


async def drive(
    endpoint: Endpoint,
    arrivals: Sequence[Arrival],
    *,
    until_seconds: float,
    vocabulary: int = 512,
) -> list[Outcome]:
    """Send every request at its time and return the outcomes in the order of the arrivals.

    Args:
        endpoint: Where to.
        arrivals: In any order.
        until_seconds: After the start; what runs then is broken off and counted as unfinished,
            with what came until then.
        vocabulary: Prompts are drawn from the token ids 4 … vocabulary - 1.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    url = f"{endpoint.url}/v1/completions"
    async with aiohttp.ClientSession(
        connector=pod_connector(), timeout=timeout, headers=headers
    ) as session:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    _send(session, url, a, start=start, until=until_seconds, vocabulary=vocabulary)
                )
                for a in arrivals
            ]
    return [task.result() for task in tasks]


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least `share` of them do not exceed; None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(slots=True)
class _Stream:
    """What came of one answer so far."""

    times: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str | None = None

    def take(self, event: dict[str, Any]) -> None:  # any: JSON
        if "error" in event:
            found = event["error"]
            self.error = str(found.get("code") if isinstance(found, dict) else found)
        choices = event.get("choices") or ()
        if choices and (choices[0].get("text") or choices[0].get("finish_reason")):
            self.times.append(time.perf_counter())
        usage = event.get("usage")
        if usage:
            self.tokens = int(usage["completion_tokens"])

    def outcome(self, arrival: Arrival, *, lag: float, sent: float, start: float) -> Outcome:
        if not self.times:
            return Outcome(
                arrival=arrival, lag_seconds=lag, error=self.error or "the stream had no token"
            )
        first, last = self.times[0], self.times[-1]
        tokens = self.tokens or len(self.times)
        return Outcome(
            arrival=arrival,
            lag_seconds=lag,
            ttft_seconds=first - sent,
            tpot_seconds=(last - first) / (tokens - 1) if tokens > 1 else None,
            gaps_seconds=tuple(b - a for a, b in itertools.pairwise(self.times)),
            end_seconds=last - start,
            output_tokens=tokens,
            error=self.error,
        )


async def _send(
    session: aiohttp.ClientSession,
    url: str,
    arrival: Arrival,
    *,
    start: float,
    until: float,
    vocabulary: int,
) -> Outcome:
    source = random.Random(arrival.seed)  # noqa: S311 - traffic of a benchmark
    body = {
        "model": arrival.model,
        "prompt": [source.randrange(4, vocabulary) for _ in range(arrival.prompt_tokens)],
        "max_tokens": arrival.output_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    await asyncio.sleep(max(0.0, start + arrival.at_seconds - time.perf_counter()))
    sent = time.perf_counter()
    stream = _Stream()
    try:
        async with (
            asyncio.timeout(max(0.0, start + until - sent)) as limit,
            session.post(url, json=body) as response,
        ):
            if response.status != 200:
                stream.error = f"HTTP {response.status}"
            else:
                async for event in _events(response.content):
                    stream.take(event)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        stream.error = UNFINISHED if limit.expired() else type(error).__name__
    return stream.outcome(arrival, lag=sent - start - arrival.at_seconds, sent=sent, start=start)


async def _events(lines: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:  # any: JSON
    async for line in lines:
        if line.startswith(b"data: ") and (data := line[6:].strip()) != b"[DONE]":
            event = json.loads(data)
            if isinstance(event, dict):
                yield event
