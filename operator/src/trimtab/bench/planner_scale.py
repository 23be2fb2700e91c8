"""`trimtab bench planner-scale`: how long a plan takes, for one intent and for a fleet (planner.md §11).

Every time is measured on this machine; the fleets are synthetic, of GPUs and of sets of CPU threads. Plans are whole:
queues are simulated, and 64 anchors of every key are in force. Cold: nothing runs, and no plan was made
before. Warm: the plan before runs and is remembered, a tenth of the intents changed. Roomy: everybody's first choice nearly fits. Scarce: it
does not by far.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from trimtab.bench.synthetic_fleet import Ask, cpu_snapshot, gpu_columns, gpu_nodes
from trimtab.bench.synthetic_gpus import gpu_snapshot
from trimtab.cli.output import write
from trimtab.planning.columns import Board
from trimtab.planning.fleet import plan_fleet
from trimtab.planning.greedy import solve_greedy
from trimtab.planning.joint import choose
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.snapshot import Assignment
from trimtab.planning.survey import Surveys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trimtab.planning.columns import Column, Score
    from trimtab.planning.joint import Choice
    from trimtab.planning.plan import FleetPlan
    from trimtab.planning.snapshot import FleetSnapshot

JSON = dict[str, Any]  # any: JSON
Found = TypeVar("Found")

_INTENTS: Final = 200
_DEVICES: Final = 2000
_ONE_MS: Final = 100.0
_FLEET_MS: Final = 5000.0
_PARTS: Final = ("one", "choice", "fleet")
_SWITCHING: Final = 0.23
_COLUMNS: Final = (
    *("what", "room", "start", "intents", "devices", "slots", "solver", "chosen"),
    *("p50 ms", "p95 ms", "CPU p50 ms", "CPU p95 ms", "target"),
)
# Load that makes first choices ask for about half of the fleet, and for about twice it.
_LOADS: Final = {
    "choice": {"roomy": 0.7, "scarce": 4.0},
    "gpu": {"roomy": 1.0, "scarce": 8.0},
    "cpu": {"roomy": 1.0, "scarce": 8.0},
}
_SLOTS: Final = {
    "gpu": "GPUs, six products, eight per node",
    "cpu": "sets of CPU threads, six CPU models, eight threads per node",
}
_HELD: Final = {"gpu": "gpus", "cpu": "threads"}
_DRAWN: Final = {"gpu": gpu_snapshot, "cpu": cpu_snapshot}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Milliseconds of every repeat: by the clock, and of this process's own computing."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 whether or not the targets are met."""
    options = _options().parse_args(argv)
    result = run(options)
    write(json.dumps(result, indent=2) if options.format == "json" else _markdown(result))
    return 0


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="trimtab bench planner-scale", description=__doc__)
    options.add_argument("name", choices=["planner-scale"], help=argparse.SUPPRESS)
    options.add_argument("--repeats", type=int, default=20, help="of every cell (default 20)")
    options.add_argument("--intents", type=int, default=_INTENTS, help="of the fleet")
    options.add_argument("--devices", type=int, default=_DEVICES, help="GPUs, or CPU threads")
    options.add_argument(
        "--part", choices=_PARTS, action="append", help="only this part; may be repeated"
    )
    options.add_argument(
        "--slots", choices=list(_SLOTS), action="append", help="only these; may be repeated"
    )
    options.add_argument("--anchors", type=int, default=64, help="of every key (default 64)")
    options.add_argument("-o", "--format", choices=["json", "markdown"], default="markdown")
    return options


def run(options: argparse.Namespace) -> JSON:
    """Return every cell with its counts, times and target."""
    parts, kinds = options.part or _PARTS, options.slots or list(_SLOTS)
    size = {"intents": options.intents, "devices": options.devices, "anchors": options.anchors}
    cells: list[JSON] = []
    if "one" in parts:
        one = size | {"intents": 1, "devices": min(options.devices, 12 * 8)}
        for kind in kinds:
            ask = Ask(**one, load=1.0)
            cells.extend(_planned("one", kind, "roomy", ask, repeats=options.repeats))
    for room in ("roomy", "scarce"):
        if "choice" in parts:
            cells.extend(_chosen(room, Ask(**size, load=_LOADS["choice"][room]), options.repeats))
    for room in ("roomy", "scarce"):
        for kind in kinds if "fleet" in parts else ():
            ask = Ask(**size, load=_LOADS[kind][room])
            cells.extend(_planned("fleet", kind, room, ask, repeats=options.repeats))
    return {
        "benchmark": "planner-scale",
        "label": "times measured, fleets synthetic",
        "machine": {
            "cpus": os.cpu_count(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "policy": PlannerPolicy().digest(),
        "repeats": options.repeats,
        "cells": cells,
    }


def _timed(call: Callable[[], Found], repeats: int) -> tuple[Timed, Found]:
    """Return the times of a call, at least one, and what the last one found."""
    wall, cpu = [], []
    while True:
        began, computed = time.perf_counter(), time.process_time()
        found = call()
        wall.append((time.perf_counter() - began) * 1000)
        cpu.append((time.process_time() - computed) * 1000)
        if len(wall) >= repeats:
            return Timed(wall=tuple(wall), cpu=tuple(cpu)), found


def _chosen(room: str, ask: Ask, repeats: int) -> list[JSON]:
    """Return the cells of the joint choice alone, on GPUs."""
    columns, nodes = gpu_columns(ask), gpu_nodes(ask.devices)
    cold = choose(columns, nodes)
    running = _running(columns, cold)
    start = [column.id for column in running if column.nodes and not column.switching]
    cells = []
    for temperature, asked, begin in (("cold", columns, []), ("warm", running, start)):

        def once(asked: Sequence[Column] = asked, begin: Sequence[str] = begin) -> Choice:
            return choose(asked, nodes, start=begin)

        board = Board(asked)
        greedy = solve_greedy(asked, nodes, start=begin)
        timed, choice = _timed(once, repeats)
        cells.append(
            _cell("choice", room, temperature, ask, timed, target_ms=_FLEET_MS)
            | {
                "slots": _SLOTS["gpu"],
                "columns": len(asked),
                "devices_of_first_choices": sum(
                    board.of[member.uid][0].need.devices for member in board.members
                ),
                "solver": choice.solver,
                "chosen": _counts(board, [c.id for c, _ in choice.placed], choice.score),
                "greedy_alone": _counts(board, greedy.placed, board.score(greedy.chosen())),
            }
        )
    return cells


def _counts(board: Board, ids: Sequence[str] | dict[str, Any], score: Score) -> JSON:
    chosen = set(ids)
    first = sum(board.of[member.uid][0].id in chosen for member in board.members)
    return {
        "unplaced": sum(score.unplaced),
        "first_choice": first,
        "loss": round(sum(score.losses), 3),
    }


def _running(columns: Sequence[Column], choice: Choice) -> list[Column]:
    """Return the columns of the next round: what was chosen runs; every tenth intent's losses change."""
    nodes = {column.id: where for column, where in choice.placed}
    serving = {member.uid for column, _ in choice.placed for member in column.members}
    found = []
    for column in columns:
        member = column.members[0]
        changed = int(member.uid[-4:]) % 10 == 0
        served = member.uid in serving
        stays = column.id in nodes
        found.append(
            replace(
                column,
                members=(replace(member, serves=served),),
                nodes=nodes.get(column.id, ()),
                switching=_SWITCHING if served and not stays else 0.0,
                moving=_SWITCHING,
                loss=column.loss + (0.5 if changed and stays else 0.0),
            )
        )
    return found


def _planned(what: str, kind: str, room: str, ask: Ask, *, repeats: int) -> list[JSON]:
    """Return the cells of the whole planner."""
    policy = PlannerPolicy()
    snapshot, known = _DRAWN[kind](ask, policy=policy), Surveys()
    target_ms = _ONE_MS if what == "one" else _FLEET_MS
    cells = []
    for temperature in ("cold", "warm"):

        def once(snapshot: FleetSnapshot = snapshot, known: Surveys = known) -> FleetPlan:
            # Copies: each repeat comes after the plan before, not after itself.
            surveys = copy.copy(known)
            surveys.simulations = copy.copy(known.simulations)
            return plan_fleet(snapshot, policy, surveys=surveys)

        timed, plan = _timed(once, repeats)
        cells.append(
            _cell(what, room, temperature, ask, timed, target_ms=target_ms)
            | {
                "first_ms": round(timed.wall[0], 1),
                "slots": _SLOTS[kind],
                "anchors": len(snapshot.anchors),
                "solver": plan.solver,
                "chosen": {
                    "unplaced": sum(p.option is None for p in plan.intents),
                    "nearest": sum(p.verdict == "PlannedNearest" for p in plan.intents),
                    _HELD[kind]: sum(
                        p.option.replicas * p.option.config.devices
                        for p in plan.intents
                        if p.option is not None
                    ),
                    "simulated": sum(
                        p.option is not None and p.option.simulated for p in plan.intents
                    ),
                    "waiting": plan.waiting,
                },
            }
        )
        if temperature == "cold":
            plan_fleet(snapshot, policy, surveys=known)
            snapshot = _next(snapshot, plan)
    return cells


def _next(snapshot: FleetSnapshot, plan: FleetPlan) -> FleetSnapshot:
    """Return the snapshot after a plan: it runs, and every tenth intent has a third more load."""
    running = tuple(
        Assignment(
            intent_uid=p.uid,
            config=p.option.config,
            replicas=p.option.replicas,
            nodes=p.nodes,
            generation=p.generation,
            memory_bytes=p.option.memory_bytes,
        )
        for p in plan.intents
        if p.option is not None
    )
    intents = tuple(
        replace(
            intent,
            load=replace(intent.load, requests_per_second=intent.load.requests_per_second * 4 / 3),
        )
        if n % 10 == 0 and intent.load is not None
        else intent
        for n, intent in enumerate(snapshot.intents)
    )
    return replace(snapshot, intents=intents, assignments=running)


def _cell(
    what: str, room: str, temperature: str, ask: Ask, timed: Timed, *, target_ms: float
) -> JSON:
    p95 = _quantile(timed.wall, 0.95)
    return {
        "what": what,
        "room": room,
        "temperature": temperature,
        "intents": ask.intents,
        "devices": ask.devices,
        "wall_ms": _summary(timed.wall),
        "cpu_ms": _summary(timed.cpu),
        "target_ms": target_ms,
        "met": p95 < target_ms,
    }


def _summary(times: Sequence[float]) -> JSON:
    return {
        "p50": round(_quantile(times, 0.5), 1),
        "p95": round(_quantile(times, 0.95), 1),
        "max": round(max(times), 1),
    }


def _quantile(times: Sequence[float], share: float) -> float:
    """Return the smallest time that at least this share of the times do not exceed."""
    ranked = sorted(times)
    return ranked[max(0, -(-round(share * 1000 * len(ranked)) // 1000) - 1)]


def _markdown(result: JSON) -> str:
    machine = result["machine"]
    head = (
        f"{result['repeats']} repeats; {result['label']}; {machine['cpus']} CPUs, load average "
        f"{machine['load_average']}; policy {result['policy']}"
    )
    lines = [
        head,
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for cell in result["cells"]:
        chosen = ", ".join(f"{key} {value}" for key, value in cell["chosen"].items())
        lines.append(
            f"| {cell['what']} | {cell['room']} | {cell['temperature']} | {cell['intents']} | "
            f"{cell['devices']} | {cell['slots'].split(',')[0]} | {cell['solver']} | {chosen} | "
            f"{cell['wall_ms']['p50']} | {cell['wall_ms']['p95']} | {cell['cpu_ms']['p50']} | "
            f"{cell['cpu_ms']['p95']} | "
            f"< {cell['target_ms']:g} ms: {'met' if cell['met'] else 'missed'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
