"""Fleets to place models on: who asks for what, and what a placement of engines attains (simulation).

An engine runs on some GPUs of one node and holds one model or several, which alternate by step; each model of
it has an equal part of the memory that weights leave. Requests go to the engine of their model with the
fewest requests.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from trimtab.bench.gpu_setups import LONGEST, TOKEN_BUDGET
from trimtab.bench.trace_cells import LIMITS, MAX_RUNNING
from trimtab.planning.merged_sim import Tenant, simulate_merged
from trimtab.planning.steady import ReplicaKind, Replicas
from trimtab.planning.variation import Variation
from trimtab.planning.workload import PlannedLoad, synthesize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimtab.bench.gpu_setups import Setup
    from trimtab.planning.workload import Arrival

MODELS: Final = ("llama-3.2-3b", "llama-3.1-8b", "qwen3-14b", "qwen3-32b")
_WEIGHTS: Final = (2, 4, 3, 1)
_SKEW: Final = 1.2
BURSTS: Final = Variation(gap=4.0, prompt=1.0, output=1.0)
PROMPT: Final = 1024
OUTPUT: Final = 200
TTFT_MS: Final = 2000.0
TPOT_MS: Final = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One model with its declared load."""

    name: str
    model: str
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """GPUs of one node, and the wishes that are served there."""

    size: int
    names: tuple[str, ...]


Placement = tuple[Engine, ...]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A fleet of one product and what is asked of it.

    Attributes:
        seed: What it was drawn with.
        gpus: On nodes of eight.
        wishes: In the order in which they came.
        setups: By model and size; what does not fit is absent.
        seconds: Of traffic in truth.
    """

    seed: int
    gpus: int
    wishes: tuple[Wish, ...]
    setups: Mapping[tuple[str, int], Setup]
    seconds: float

    @cached_property
    def by_name(self) -> Mapping[str, Wish]:
        """The wishes."""
        return {wish.name: wish for wish in self.wishes}

    @cached_property
    def capacities(self) -> Mapping[tuple[str, int], float]:
        """Largest steady rate of one engine, requests per second, by model and size."""
        return {key: _capacity(setup) for key, setup in self.setups.items()}

    def sizes(self, wish: Wish) -> list[int]:
        """Return the sizes of one engine on which a wish's model fits, the smallest first."""
        return sorted(size for model, size in self.setups if model == wish.model)

    def busy(self, wish: Wish, size: int) -> float:
        """Return a wish's rate over what one engine carries."""
        return wish.rate / self.capacities[wish.model, size]

    def kv_tokens(self, size: int, names: Sequence[str]) -> dict[str, int] | None:
        """Return each wish's KV tokens on an engine that they share; None if they do not fit."""
        here = []
        for name in names:
            setup = self.setups.get((self.by_name[name].model, size))
            if setup is None:
                return None
            here.append(setup)
        left = min(s.room for s in here) - sum(s.weights for s in here)
        tokens = [math.floor(left / len(here) / s.token) for s in here]
        if min(tokens) < LONGEST:
            return None
        return dict(zip(names, tokens, strict=True))

    def arrivals(self, *, salt: int, faster: float, seconds: float) -> dict[str, list[Arrival]]:
        """Return the requests of every wish in some seconds, drawn anew for each salt."""
        return {
            wish.name: self._of(wish, salt=salt, faster=faster, seconds=seconds)
            for wish in self.wishes
        }

    def _of(self, wish: Wish, *, salt: int, faster: float, seconds: float) -> list[Arrival]:
        draws = random.Random(f"{self.seed} {salt} {wish.name}")  # noqa: S311 - a fixed seed
        count = math.ceil(2 * wish.rate * faster * seconds) + 50
        load = PlannedLoad(rate=wish.rate * faster, prompt=PROMPT, output=OUTPUT, assumed=False)
        drawn = synthesize(load, count=count, draws=draws, variation=BURSTS, longest=LONGEST)
        return [arrival for arrival in drawn if arrival.at_us < seconds * 1e6]

    def attained(
        self,
        placement: Placement,
        arrivals: Mapping[str, Sequence[Arrival]],
        *,
        view: Literal["seen", "truth"],
    ) -> dict[str, float]:
        """Return for every wish the share of its requests that are served within both targets."""
        engines = []
        for engine in placement:
            tokens = self.kv_tokens(engine.size, engine.names) or {}
            tenants = {}
            for name, held in tokens.items():
                setup = self.setups[self.by_name[name].model, engine.size]
                model = setup.seen if view == "seen" else setup.truth
                tenants[name] = Tenant(model=model, kv_tokens=held)
            engines.append(tenants)
        found = simulate_merged(engines, limits=LIMITS, arrivals=arrivals)
        return {
            name: result.attainment(ttft_us=1000 * TTFT_MS, tpot_us=1000 * TPOT_MS)
            for name, result in found.items()
        }


def scenario(
    seed: int,
    setups: Mapping[tuple[str, int], Setup],
    *,
    wishes: int,
    gpus: int,
    load: float,
    requests: int,
) -> Scenario:
    """Draw a scenario.

    Rates are skewed as 1/rank^1.2; together they would keep ``load`` of the GPUs busy if every model ran on
    the fewest GPUs that it fits. Gaps are Gamma with a coefficient of variation of 4.
    """
    draws = random.Random(seed)  # noqa: S311 - a fixed seed
    known = [
        (m, w) for m, w in zip(MODELS, _WEIGHTS, strict=True) if any(m == k for k, _ in setups)
    ]
    if not known:
        raise ValueError("No model of the fleet fits on a GPU. Give another product.")
    models = draws.choices([m for m, _ in known], [w for _, w in known], k=wishes)
    shares = [1 / (n + 1) ** _SKEW for n in range(wishes)]
    draws.shuffle(shares)
    plain = Scenario(
        seed=seed,
        gpus=gpus,
        wishes=tuple(
            Wish(name=f"intent-{n}", model=model, rate=share)
            for n, (model, share) in enumerate(zip(models, shares, strict=True))
        ),
        setups=setups,
        seconds=0.0,
    )
    used = sum(
        plain.busy(wish, size) * size for wish in plain.wishes for size in plain.sizes(wish)[:1]
    )
    scale = load * gpus / used
    rates = [wish.rate * scale for wish in plain.wishes]
    return Scenario(
        seed=seed,
        gpus=gpus,
        wishes=tuple(
            Wish(name=wish.name, model=wish.model, rate=rate)
            for wish, rate in zip(plain.wishes, rates, strict=True)
        ),
        setups=setups,
        seconds=requests / sum(rates),
    )


def _capacity(setup: Setup) -> float:
    kind = ReplicaKind(
        model=setup.seen,
        prompt=PROMPT,
        output=OUTPUT,
        token_budget=TOKEN_BUDGET,
        max_sequences=MAX_RUNNING,
    )
    replicas = Replicas([kind])
    which = np.array([0])
    slots = replicas.slots(
        which, kv_tokens=np.array([setup.kv_tokens]), sequences=np.array([MAX_RUNNING])
    )
    return float(replicas.capacity(which, slots)[0])
