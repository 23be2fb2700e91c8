"""Replays arrivals on an engine, on the machine's clock or on a virtual one."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from trimtab_workers.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prometheus_client import CollectorRegistry

    from trimtab_workers.engine.bench.arrivals import Arrival
    from trimtab_workers.engine.clock import Clock, VirtualClock
    from trimtab_workers.engine.engine import Engine
    from trimtab_workers.engine.types import Output

_HELD_SECONDS = 1e-3
_GREEDY = 0.0


@dataclass(slots=True, kw_only=True)
class Answer:
    """What became of one arrival.

    Attributes:
        arrival_seconds: When it was due, after the run's start.
        token_seconds: When each output token was there, after the run's start.
        error: Why it failed, if it did.
    """

    model: str
    arrival_seconds: float
    token_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what another process makes it from."""
        return asdict(self)


class Wait(Protocol):
    """Lets time pass."""

    def __call__(self, seconds: float) -> None:
        """Return when so many seconds have passed."""
        ...


def sleep(seconds: float) -> None:
    """Let real time pass."""
    time.sleep(seconds)


def virtual(clock: VirtualClock) -> Wait:
    """Return a wait that moves a virtual clock."""
    return clock.advance


def replay(
    engine: Engine,
    arrivals: Sequence[Arrival],
    *,
    wait: Wait = sleep,
    start_seconds: float | None = None,
) -> list[Answer]:
    """Submit every arrival when it is due, step until all are done, return one answer for each.

    A request that is due while a step runs enters after it, as late as in a server, and its time
    counts from when it was due.

    Args:
        engine: Loaded; stepped on the calling thread.
        arrivals: In order of time.
        wait: How time passes while the engine has nothing to do.
        start_seconds: On the engine's clock; several processes begin together. None is now.
    """
    clock = engine.clock
    start = clock.now() if start_seconds is None else start_seconds
    if start > clock.now():
        wait(start - clock.now())
    answers: list[Answer] = []
    vocabularies = {
        name: engine.tenant(name).shape.vocab for name in {arrival.model for arrival in arrivals}
    }
    while len(answers) < len(arrivals) or not engine.idle:
        while len(answers) < len(arrivals):
            due = arrivals[len(answers)]
            if start + due.seconds > clock.now():
                break
            prompt = due.token_ids(vocabularies[due.model])
            answers.append(_submit(engine, due, prompt, start=start, name=str(len(answers))))
        if engine.step():
            continue
        if len(answers) < len(arrivals):
            pause = start + arrivals[len(answers)].seconds - clock.now()
            # Work that is held back, such as a wake, must be looked at before the next arrival.
            wait(max(0.0, pause if engine.idle else min(pause, _HELD_SECONDS)))
        elif not engine.idle:
            wait(_HELD_SECONDS)
    return answers


def _submit(
    engine: Engine, due: Arrival, prompt: tuple[int, ...], *, start: float, name: str
) -> Answer:
    answer = Answer(model=due.model, arrival_seconds=due.seconds)
    request = Request(
        request_id=name,
        model=due.model,
        prompt_token_ids=prompt,
        params=SamplingParams(temperature=_GREEDY, max_tokens=due.output_tokens, ignore_eos=True),
        arrival_seconds=start + due.seconds,
    )
    engine.submit(request, _collector(answer, clock=engine.clock, start=start))
    return answer


def _collector(answer: Answer, *, clock: Clock, start: float) -> Callable[[Output], None]:
    def collect(output: Output) -> None:
        if output.error is not None:
            answer.error = output.error.message
        answer.tokens.extend(output.token_ids)
        answer.token_seconds.extend([clock.now() - start] * len(output.token_ids))

    return collect


COUNTED = (
    "vllm:num_preemptions_total",
    "trimtab_engine_recomputed_tokens_total",
    "trimtab_engine_decode_only_steps_total",
    "trimtab_engine_decode_only_seconds_total",
    "trimtab_engine_swaps_total",
    "trimtab_engine_link_bytes_total",
    "trimtab_engine_compacted_bytes_total",
    "trimtab_engine_link_stall_seconds_total",
    "trimtab_engine_remaps_total",
    "trimtab_engine_reverts_total",
    "trimtab_engine_model_switches_total",
    "trimtab_engine_thrash_holds_total",
)
_KEYS = ("direction", "reason", "kind")


def counters(registry: CollectorRegistry) -> dict[str, float]:
    """Return the engine's counters that explain a run, summed over models.

    Keys are metric names without `_total`, followed by `/value` of direction, kind and reason.
    """
    found: dict[str, float] = {}
    for metric in registry.collect():
        for sample in metric.samples:
            if sample.name in COUNTED:
                parts = [sample.name.removesuffix("_total")]
                parts += [sample.labels[key] for key in _KEYS if key in sample.labels]
                key = "/".join(parts)
                found[key] = found.get(key, 0.0) + sample.value
    return found


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Return what was counted between two readings, without what stayed at 0."""
    changed = {key: value - before.get(key, 0.0) for key, value in after.items()}
    return {key: value for key, value in sorted(changed.items()) if value}


def total(counted: Mapping[str, float], name: str, *, ending: Iterable[str] = ("",)) -> float:
    """Return the sum of a counter over its labels, or over those that end in one of some words."""
    endings = tuple(ending)
    return sum(
        value
        for key, value in counted.items()
        if key.split("/")[0] == name and key.endswith(endings)
    )
