"""Runs every story with and without the rules, seed by seed: ``trimtab bench planner-change``."""

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.bench.change.planners import Capacities, FleetDecisions
from trimtab.bench.change.report import measures
from trimtab.bench.change.simulate import World, without_hysteresis
from trimtab.bench.change.stories import Told
from trimtab.planning.policy import PlannerPolicy

MOST_PLAN_SECONDS = 15.0


def compare(
    told: Sequence[Told],
    *,
    seeds: Sequence[int],
    arrivals: Callable[[int], Callable[[float], int]],
    clock: Callable[[], float],
    policy: PlannerPolicy,
) -> dict[str, Any]:
    """Return the benchmark's document.

    Args:
        told: The stories.
        seeds: One run of every story, with and without rules, for each.
        arrivals: From a seed, what draws a Poisson count with a given mean.
        clock: Seconds, for the time that planning takes.
        policy: Of the planner.
    """
    stories = [
        _story(one, seeds=seeds, arrivals=arrivals, clock=clock, policy=policy) for one in told
    ]
    return {
        "benchmark": "planner-change",
        "label": "simulation; plan_seconds measured",
        "policy": policy.digest(),
        "reconfiguration_seconds": policy.reconfiguration_seconds,
        "seeds": list(seeds),
        "stories": stories,
        "verdict": _verdict(stories),
    }


def _story(
    told: Told,
    *,
    seeds: Sequence[int],
    arrivals: Callable[[int], Callable[[float], int]],
    clock: Callable[[], float],
    policy: PlannerPolicy,
) -> dict[str, Any]:
    story = told.story
    truth = Capacities(story.fleet, policy=policy)
    runs: dict[str, list[dict[str, Any]]] = {"on": [], "off": []}
    for seed in seeds:
        for name, used in (("on", policy), ("off", without_hysteresis(policy))):
            life = World(
                story,
                planner=FleetDecisions(policy=used, clock=clock),
                sustains=truth,
                arrivals=arrivals(seed),
                policy=used,
                hysteresis=name == "on",
            ).run()
            runs[name].append(measures(life, policy=policy) | {"seed": seed})
    return {
        "name": story.name,
        "why": told.why,
        "seconds": story.seconds,
        "intents": len(story.fleet.intents),
        "turns": told.turns,
        "on": runs["on"],
        "off": runs["off"],
        "oscillates": {
            name: any(run["reversals"] > told.turns for run in each) for name, each in runs.items()
        },
    }


def _verdict(stories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    on = [run for story in stories for run in story["on"]]
    off = [run for story in stories for run in story["off"]]
    slowest = max((run["to_plan_seconds_most"] for run in on), default=0.0)
    return {
        "runs": len(on),
        "oscillating_stories": {
            name: [s["name"] for s in stories if s["oscillates"][name]] for name in ("on", "off")
        },
        "changes": {"on": sum(r["changes"] for r in on), "off": sum(r["changes"] for r in off)},
        "steps_beyond_bound": sum(r["steps_beyond_bound"] for r in on),
        "least_ready": min((r["least_ready"] for r in on), default=0),
        "seconds_to_plan_most": round(slowest, 3),
        "seconds_to_plan_target": MOST_PLAN_SECONDS,
        "fewer_within_target_than_off": [
            {"story": s["name"], "seed": a["seed"], "points": round(lost, 2)}
            for s in stories
            for a, b in zip(s["on"], s["off"], strict=True)
            if (lost := b["within_target_percent"] - a["within_target_percent"]) > 0
        ],
    }
