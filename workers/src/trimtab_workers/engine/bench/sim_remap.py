"""`trimtab bench sim-remap`: the real scheduler, controller and allocator on a virtual clock.

**A simulation**: steps cost what a roofline or Vidur's table says, copies what the link's rate says.
It answers whether the engine's decisions have the signs that were predicted, and where streaming
begins to pay; it measures no GPU. Deterministic: two runs print the same JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trimtab.planning.remap import Hardware, Traffic, plan_remap
from trimtab_workers.engine.bench.figures import figures
from trimtab_workers.engine.bench.options import emit, parser, progress
from trimtab_workers.engine.bench.predictions import check
from trimtab_workers.engine.bench.replay import counters, difference, replay, virtual
from trimtab_workers.engine.bench.sim_cost import StepCost, model_shape
from trimtab_workers.engine.bench.sim_report import draw, markdown
from trimtab_workers.engine.bench.sim_scenarios import (
    CURVE_POOL_GB,
    CURVE_RATES,
    SCENARIOS,
    curve_point,
)
from trimtab_workers.engine.clock import VirtualClock
from trimtab_workers.engine.config import EngineConfig, ModelSpec, RandomWeights
from trimtab_workers.engine.engine import Engine
from trimtab_workers.engine.sim import SimBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from trimtab_workers.engine.bench.arrivals import Arrival
    from trimtab_workers.engine.bench.figures import Figures
    from trimtab_workers.engine.bench.sim_scenarios import Scenario
    from trimtab_workers.engine.scheduler import StepPlan

_CURVE_POLICIES: Final = ("recompute", "swap", "remap")
_DIGITS: Final = 9


def simulate(
    scenario: Scenario, *, policy: str, arrivals: Sequence[Arrival]
) -> tuple[Figures, dict[str, float]]:
    """Run one policy; return its figures and what the engine counted.

    Raises:
        EngineError: The models do not fit.
    """
    clock = VirtualClock()
    cost = StepCost(
        shape=model_shape(dict(scenario.config)), hw=scenario.hw, linear=scenario.linear
    )
    engine = Engine(
        EngineConfig(
            models=tuple(
                ModelSpec(name=name, path=Path(), random=RandomWeights(hf_config=scenario.config))
                for name in scenario.models
            ),
            memory_bytes=scenario.memory_bytes,
            max_model_len=scenario.max_model_len,
            max_batch_tokens=scenario.max_batch_tokens,
            max_seqs=scenario.max_seqs,
            prefix_caching=False,
            pressure=policy,
        ),
        clock=clock,
        backend=SimBackend(
            clock,
            price=_pricer(cost),
            link_rate=scenario.hw.link_rate,
            latency_seconds=scenario.hw.link_latency_s,
        ),
    )
    engine.load()
    for name in scenario.models:
        error = engine.tenant(name).error
        if error is not None:
            raise error
    before = counters(engine.registry)
    answers = replay(engine, arrivals, wait=virtual(clock))
    return figures(answers), difference(counters(engine.registry), before)


def _pricer(cost: StepCost) -> Callable[[ModelSpec, StepPlan], float]:
    def price(spec: ModelSpec, plan: StepPlan) -> float:
        del spec
        read = sum(row.start + row.count for row in plan.rows)
        return cost.compute_seconds(
            tokens=sum(row.count for row in plan.rows),
            kv_bytes=read * cost.shape.kv_bytes_per_token,
        )

    return price


def run_scenarios(names: Iterable[str], *, seconds: float | None) -> dict[str, Any]:
    """Run situations under their policies; returns JSON-ready figures and the judged predictions."""
    judged: dict[str, dict[str, Figures]] = {}
    shown: dict[str, Any] = {}
    for name in names:
        scenario = SCENARIOS[name].lasting(seconds)
        arrivals = scenario.arrivals()
        runs = {}
        for policy in scenario.policies:
            found, counted = simulate(scenario, policy=policy, arrivals=arrivals)
            judged.setdefault(name, {})[policy] = found
            runs[policy] = {"figures": rounded(found.to_dict()), "counted": rounded(counted)}
            progress(f"{name}: {policy} {found.tokens_per_second:.1f} tok/s")
        shown[name] = {"what": scenario.describe(), "requests": len(arrivals), "policies": runs}
    return {"scenarios": shown, "predictions": [rounded(row) for row in check(judged)]}


def run_curve(pools_gb: Iterable[float], slownesses: Sequence[float]) -> list[dict[str, Any]]:
    """Return throughput ratios of remapping one active model, over KV share and link rate."""
    points = []
    for pool_gb in pools_gb:
        pool_bytes = round(pool_gb * 10**9)
        for slowness in slownesses:
            scenario, backlog = curve_point(pool_bytes=pool_bytes, slowness=slowness)
            speed = {
                policy: simulate(scenario, policy=policy, arrivals=backlog)[0].tokens_per_second
                for policy in _CURVE_POLICIES
            }
            advice = plan_remap(
                {"a": model_shape(dict(scenario.config))},
                {"a"},
                _device(scenario),
                Traffic(
                    sequence_tokens=640,
                    prefill_tokens_per_step=0,
                    switch_interval_s=None,
                    step_s=None,
                ),
            )
            point = {
                "pool_gb": pool_gb,
                "kv_share": pool_bytes / scenario.memory_bytes,
                "r": slowness,
                "tokens_per_second": speed,
                "remap_over_recompute": speed["remap"] / speed["recompute"],
                "remap_over_swap": speed["remap"] / speed["swap"],
                "alpha": advice.alpha,
                "planned_ratio": advice.ratio_if_forced if advice.alpha else 1.0,
            }
            points.append(rounded(point))
            progress(
                f"curve: {pool_gb:g} GB, r = {slowness:g}: {point['remap_over_recompute']:.3f}"
            )
    return points


def _device(scenario: Scenario) -> Hardware:
    hw = scenario.hw
    return Hardware(
        memory_bytes=scenario.memory_bytes,
        memory_rate=hw.memory_rate,
        link_rate=hw.link_rate,
        link_latency_s=hw.link_latency_s,
        flops_rate=hw.flops_rate,
        host_bytes=hw.host_bytes,
    )


def rounded(value: Any) -> Any:
    """Return JSON values with floats cut to nine significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 0 on success."""
    options = parser("sim-remap", "Simulated remapping: situations, predictions, crossover curve.")
    options.add_argument("--scenarios", default=",".join(SCENARIOS), help="names, or none")
    options.add_argument("--seconds", type=float, help="of arrivals in each; default: its own")
    options.add_argument("--no-curve", action="store_true", help="the situations alone")
    options.add_argument("--plot", type=Path, help="draw the curve into this PNG (matplotlib)")
    chosen = options.parse_args(argv)
    names = [name for name in chosen.scenarios.split(",") if name not in ("", "none")]
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        options.error(f"--scenarios has {', '.join(unknown)}; choose among {', '.join(SCENARIOS)}")
    result: dict[str, Any] = {"benchmark": "sim-remap", "kind": "simulation"}
    result |= run_scenarios(names, seconds=chosen.seconds)
    result["curve"] = [] if chosen.no_curve else run_curve(CURVE_POOL_GB, CURVE_RATES)
    if chosen.plot is not None:
        draw(result["curve"], chosen.plot)
    emit(result, kind=chosen.format, markdown=lambda: markdown(result))
    return 0
