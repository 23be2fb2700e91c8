"""What happens to fleets in ``trimtab bench planner-change``: synthetic machines, named changes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from trimtab.bench.change.simulate import lose
from trimtab.bench.change.values import Event, Story
from trimtab.planning.architecture import Architecture, architecture_hash
from trimtab.planning.fingerprint import Fingerprint, FingerprintKey, StepPoint
from trimtab.planning.prices import Price, PriceBook
from trimtab.planning.snapshot import (
    CpuPool,
    EngineCapabilities,
    FleetSnapshot,
    IntentView,
    Load,
    ModelView,
    Targets,
)

_GIB = 2**30
_FAST, _SLOW = "synthetic fast", "synthetic slow"
_ENGINE = EngineCapabilities(
    engine="trimtab", version="synthetic", families=("llama",), precisions=("bf16",)
)
_MODEL = ModelView(
    architecture=Architecture(
        family="llama",
        hidden_size=576,
        intermediate_size=1536,
        attention_heads=9,
        kv_heads=3,
        head_dim=64,
        vocab_size=49152,
        tied_embeddings=True,
    ),
    depth=30,
    precision="bf16",
    weight_bytes=269_030_016,
    context_length=2048,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A story with how often the world itself turns back in it, per intent, and why it is told."""

    story: Story
    turns: int
    why: str


def told(*, hours: float = 1.0) -> tuple[Told, ...]:
    """Return every story; ``hours`` scales those in which nothing happens at a fixed time."""
    length = round(hours * 3600)
    return (
        Told(story=_story("steady", seconds=length), turns=0, why="nothing happens"),
        Told(
            story=_story("wobble", seconds=length, chat=_wobble),
            turns=0,
            why="the load stays within its band and moves all the time",
        ),
        Told(
            story=_story("spikes", seconds=length, chat=_spikes),
            turns=0,
            why="three times the load for a minute, every 15 minutes",
        ),
        Told(
            story=_story("triple", seconds=7200, chat=_triple),
            turns=1,
            why="three times the load from minute 10 to minute 40",
        ),
        Told(
            story=_story("day", seconds=7200, chat=_day),
            turns=2,
            why="a day within two hours: the load falls to a fifth and comes back",
        ),
        Told(
            story=_story(
                "edit", seconds=3600, events=(Event(at_seconds=600, name="edit", change=_tighter),)
            ),
            turns=0,
            why="the target of one intent is halved",
        ),
        Told(
            story=_story(
                "lost",
                seconds=3600,
                events=(
                    Event(at_seconds=600, name="lost", change=_lose_nodes),
                    Event(at_seconds=2400, name="back", change=_all_nodes),
                ),
            ),
            turns=1,
            why="half of the nodes are lost in minute 10 and come back in minute 40",
        ),
        Told(
            story=_story(
                "gained",
                seconds=3600,
                nodes=2,
                events=(Event(at_seconds=900, name="gained", change=_all_nodes),),
            ),
            turns=0,
            why="a fleet that is too small gets the other nodes in minute 15",
        ),
        Told(
            story=_story(
                "flapping",
                seconds=length,
                events=tuple(
                    Event(
                        at_seconds=at,
                        name=f"{at}",
                        change=_lose_one if at % 600 else _all_nodes,
                    )
                    for at in range(300, length, 300)
                ),
            ),
            turns=0,
            why="one node goes and comes back every five minutes",
        ),
        Told(
            story=_story(
                "prices",
                seconds=7200,
                events=(
                    Event(at_seconds=600, name="dearer", change=_dearer),
                    Event(at_seconds=4200, name="back", change=_usual_prices),
                ),
            ),
            turns=1,
            why="what was cheap costs six times as much for an hour",
        ),
    )


def _story(
    name: str,
    *,
    seconds: int,
    chat: Callable[[int], float] | None = None,
    events: tuple[Event, ...] = (),
    nodes: int = 4,
) -> Story:
    intents = _intents()
    rates: dict[str, Callable[[int], float]] = {
        intent.uid: _constant(intent.load.requests_per_second) for intent in intents if intent.load
    }
    if chat is not None:
        rates["uid-chat"] = chat
    return Story(
        name=name,
        fleet=FleetSnapshot(
            intents=intents,
            pools=_pools()[: 2 * nodes],
            capabilities=_ENGINE,
            fingerprints=_fingerprints(),
            prices=_prices(slow=20_000),
        ),
        rates=rates,
        events=events,
        seconds=seconds,
    )


_CHAT_RATE = 6.0


def _intents() -> tuple[IntentView, ...]:
    def intent(name: str, rate: float, prompt: int, output: int, created: int) -> IntentView:
        return IntentView(
            uid=f"uid-{name}",
            namespace="synthetic",
            name=name,
            generation=1,
            created_seconds=created,
            model=_MODEL,
            load=Load(requests_per_second=rate, prompt_tokens=prompt, output_tokens=output),
        )

    targets = Targets(tpot_us=80_000, ttft_us=2_000_000)
    return (
        replace(intent("chat", _CHAT_RATE, 128, 64, 1), objective="TargetLatency", targets=targets),
        replace(intent("batch", 3.0, 256, 32, 2), objective="MinCost"),
        replace(
            intent("agent", 1.5, 128, 64, 3),
            objective="TargetLatency",
            targets=replace(targets, tpot_us=50_000),
        ),
    )


def _constant(rate: float) -> Callable[[int], float]:
    return lambda _: rate


def _wobble(second: int) -> float:
    return _CHAT_RATE * (1 + 0.15 * math.sin(2 * math.pi * second / 600))


def _spikes(second: int) -> float:
    return _CHAT_RATE * (3 if second % 900 >= 840 else 1)


def _triple(second: int) -> float:
    return _CHAT_RATE * (3 if 600 <= second < 2400 else 1)


def _day(second: int) -> float:
    return _CHAT_RATE * (0.6 + 0.4 * math.cos(2 * math.pi * second / 7200))


def _pools() -> tuple[CpuPool, ...]:
    """Return four fast and four slow nodes in turns, 8 threads each."""
    return tuple(
        CpuPool(
            node=f"node-{n}",
            cpu_model=_FAST if n % 2 == 0 else _SLOW,
            millicores=8000,
            memory_bytes=32 * _GIB,
        )
        for n in range(8)
    )


def _prices(*, slow: int) -> PriceBook:
    return PriceBook(
        dated="2026-11-01",
        cpu_hour=(
            Price(glob=_FAST, micro_usd=50_000),
            Price(glob=_SLOW, micro_usd=slow),
        ),
        memory_gib_hour_micro_usd=1_000,
    )


def _tighter(fleet: FleetSnapshot) -> FleetSnapshot:
    def edited(intent: IntentView) -> IntentView:
        if intent.name != "chat":
            return intent
        targets = replace(intent.targets, tpot_us=40_000)
        return replace(intent, targets=targets, generation=intent.generation + 1)

    return replace(fleet, intents=tuple(edited(i) for i in fleet.intents))


def _lose_nodes(fleet: FleetSnapshot) -> FleetSnapshot:
    return replace(fleet, pools=lose(_pools(), [f"node-{n}" for n in range(4)]))


def _lose_one(fleet: FleetSnapshot) -> FleetSnapshot:
    return replace(fleet, pools=lose(_pools(), ["node-0"]))


def _all_nodes(fleet: FleetSnapshot) -> FleetSnapshot:
    return replace(fleet, pools=_pools())


def _dearer(fleet: FleetSnapshot) -> FleetSnapshot:
    return replace(fleet, prices=_prices(slow=120_000))


def _usual_prices(fleet: FleetSnapshot) -> FleetSnapshot:
    return replace(fleet, prices=_prices(slow=20_000))


def _fingerprints() -> tuple[Fingerprint, ...]:
    return tuple(
        _fingerprint(cpu_model, threads, speed=speed * threads**0.8)
        for cpu_model, speed in ((_FAST, 1.0), (_SLOW, 0.6))
        for threads in (1, 2, 4, 8)
    )


def _fingerprint(cpu_model: str, threads: int, *, speed: float) -> Fingerprint:
    """Return the measurement of a machine whose step times are known constants, without noise."""

    def point(batch: int = 0, context: int = 0, chunk: int = 0, cached: int = 0) -> StepPoint:
        tokens, work = batch + chunk, chunk * (cached + chunk / 2)
        layer = (700 + 20 * tokens + 0.1 * batch * context + 0.02 * work) / speed
        fixed = (5000 + 100 * (batch + (1 if chunk else 0))) / speed
        return StepPoint(
            batch=batch,
            context=context,
            chunk=chunk,
            cached=cached,
            t1_us=round(fixed + layer),
            mad1_us=1,
            t2_us=round(fixed + 2 * layer),
            mad2_us=1,
            repeats=50,
        )

    return Fingerprint(
        key=FingerprintKey(
            architecture=architecture_hash(_MODEL.architecture),
            product="cpu",
            cpu_model=cpu_model,
            threads=threads,
            precision="bf16",
            kv_precision="bf16",
            engine_version=_ENGINE.version,
        ),
        source="Measured",
        depths=(1, 2),
        decode=tuple(point(batch=b, context=c) for b in (1, 2, 4, 8, 32) for c in (64, 256, 1024)),
        prefill=tuple(
            point(chunk=n, cached=c)
            for n, c in ((32, 0), (128, 0), (256, 0), (512, 0), (128, 512), (512, 1024))
        ),
        mixed=(point(batch=4, context=256, chunk=128),),
    )
