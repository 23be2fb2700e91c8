"""`trimtab bench rightsizer`: sizes per invocation beside what others do, on recorded runs (rightsizer.md §11).

SIMULATION on measured times: each request's time is drawn from the runs of its input at the class that the
policy chose. Nobody queues and no pod starts: see `trimtab.rightsizing.simulate`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from trimtab.bench import recorded_runs, sizing_figures, sizing_pools, sizing_targets
from trimtab.bench.report import run, table
from trimtab.cli.output import CommandError
from trimtab.rightsizing import policies, profiled
from trimtab.rightsizing.policy import DEFAULT
from trimtab.rightsizing.simulate import draws, expected_late, replay
from trimtab.rightsizing.types import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trimtab.bench.report import JSON
    from trimtab.bench.sizing_figures import Answers
    from trimtab.rightsizing.policy import SizerPolicy
    from trimtab.rightsizing.pool_sim import PoolRun
    from trimtab.rightsizing.simulate import Function, Policy
    from trimtab.rightsizing.sizer import Layout

NAME: Final = "rightsizer"
LABEL: Final = "simulation on recorded runs: no arrivals, no queue, no cold start"
_CLASSES: Final = "250,500,750,1000,1250,1500,1750,2000"
_FAMILY: Final = "m5"
_OURS: Final = "trimtab"
_FEW: Final = "trimtab-4-sizes"
_BUCKET: Final = "bucket-p90"
_BEST: Final = "best-static"
_ORACLE: Final = "oracle"
_PEERS: Final = ("parrotfish-like", "cypress-like", "aquatope-like")

# The production model, and what is left when one part is taken away.
MODELS: Final[Mapping[str, SizerPolicy]] = {
    _OURS: DEFAULT,
    _FEW: DEFAULT,
    _BUCKET: replace(DEFAULT, candidates=("bucket",)),
}
ABLATIONS: Final[Mapping[str, SizerPolicy]] = {
    "ablation:raised-only": replace(DEFAULT, candidates=("raised",)),
    "ablation:learned-only": replace(DEFAULT, candidates=("learned",)),
    "ablation:learned-only-linear": replace(DEFAULT, candidates=("learned",), hinges=False),
    "ablation:learned-only-linear-no-margin-no-asymmetry": replace(
        DEFAULT,
        candidates=("learned",),
        hinges=False,
        margin=1.0,
        under_cpu=1.0,
        under_memory=1.0,
    ),
    "ablation:no-margin": replace(DEFAULT, margin=1.0),
    "ablation:no-asymmetry": replace(DEFAULT, under_cpu=1.0, under_memory=1.0),
    "ablation:no-gate": replace(DEFAULT, warm_up=0, known=0),
}
LIVE: Final[Mapping[str, Callable[[Function], Policy]]] = {
    "regression": policies.Regression,
    "cypress-like": policies.CypressLike,
    "vpa-like": lambda function: policies.VPALike(function.ladder),
    "krr-like": lambda function: policies.KRRLike(function.ladder),
    _BEST: policies.best_static,
    _ORACLE: policies.Oracle,
}
PROFILED: Final = {
    "parrotfish-like": profiled.parrotfish_like,
    "aquatope-like": profiled.aquatope_like,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is gathered over seeds, by function and policy.

    Attributes:
        seen: Answers.
        spent: Profiling, by `function/policy`.
        pools: Runs with arrivals.
    """

    seen: Mapping[str, Mapping[str, list[Answers]]]
    spent: dict[str, list[profiled.Profiled]]
    pools: Mapping[str, Mapping[str, list[PoolRun]]]


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; `--help` shows its options."""
    return run(options(), argv, measure=measure, text=text)


def options() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog=f"trimtab bench {NAME}", description=f"{__doc__}".partition("\n")[0]
    )
    parser.add_argument("--runs", type=Path, required=True, help="CSV of recorded runs, or .csv.gz")
    parser.add_argument("--features", type=Path, help="CSV with a row per input")
    parser.add_argument(
        "--synthetic-feature",
        action="extend",
        nargs="+",
        default=[],
        metavar="FUNCTION",
        help="its feature is its CPU seconds with noise: SYNTHETIC",
    )
    parser.add_argument("--sigma", type=float, default=0.1, help="of that noise (0.1, 0.3, 0.5)")
    parser.add_argument(
        "--split", action="store_true", help="synthetic work over two features; a bucket sees one"
    )
    parser.add_argument("--regime", choices=("A", "B", "C"), default="B")
    parser.add_argument("--deadline-factor", type=float, default=1.2)
    parser.add_argument(
        "--policies",
        default="all",
        help="names, comma between; all; all+ablations; static means all",
    )
    parser.add_argument(
        "--requests", type=int, default=3000, help="per seed, all functions together"
    )
    parser.add_argument("--warm-up", type=int, default=500, help="first requests, left out")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--pool-load",
        type=float,
        default=0.0,
        metavar="PODS",
        help="also with arrivals: mean busy pods at 1 vCPU, such as 2; the JSON gains `pools`",
    )
    parser.add_argument(
        "--machine",
        metavar="FAMILY",
        help=f"such as c5, n2-standard (default: {_FAMILY}, else the one with the most runs)",
    )
    parser.add_argument(
        "--classes",
        help=f"CPU classes in thousandths of a vCPU (default: {_CLASSES}, or all where fewer than six ran)",
    )
    parser.add_argument("--output", "-o", choices=("table", "json"), default="table")
    return parser


def measure(given: argparse.Namespace) -> JSON:
    """Return the document.

    Raises:
        CommandError: An option or a file cannot be used.
    """
    machine, functions, left_out = _functions(given)
    static = tuple(
        f"static-{cpu / 1000:g}" for cpu in sorted({c for f in functions for c in f.ladder.cpu_m})
    )
    names = _names(given.policies, static)
    seen: dict[str, dict[str, list[Answers]]] = {
        function.name: {name: [] for name in names} for function in functions
    }
    spent: dict[str, list[profiled.Profiled]] = {}
    pools: dict[str, dict[str, list[PoolRun]]] = {
        function.name: {name: [] for name in names} for function in functions
    }
    for seed in range(given.seeds):
        _seed(given, functions, seed=seed, found=Found(seen=seen, spent=spent, pools=pools))
    document: JSON = {
        "benchmark": NAME,
        "label": LABEL,
        "options": {
            "regime": given.regime,
            "deadline_factor": given.deadline_factor,
            "requests": given.requests,
            "warm_up": given.warm_up,
            "seeds": given.seeds,
            "machine": machine,
            "synthetic_features": sorted(given.synthetic_feature),
            "sigma": given.sigma if given.synthetic_feature else None,
            "split": bool(given.synthetic_feature and given.split),
        },
        "harness": harness(functions),
        "left_out": left_out,
        "functions": {
            function.name: {
                "inputs": len(function.inputs),
                "deadline_seconds": sorted({round(d, 3) for d in function.deadlines}),
                "memory_told_apart": recorded_runs.tells_memory(function),
                "policies": {
                    name: {
                        **sizing_figures.figures(seen[function.name][name], warm_up=given.warm_up),
                        **_profiling(spent.get(f"{function.name}/{name}", [])),
                    }
                    for name in names
                },
            }
            for function in functions
        },
        "all": {
            "policies": {
                name: sizing_figures.figures(
                    [
                        sizing_figures.together([seen[f.name][name][seed] for f in functions])
                        for seed in range(given.seeds)
                    ],
                    warm_up=given.warm_up,
                )
                for name in names
            }
        },
    }
    if given.pool_load > 0:
        document["pools"] = {
            function: {name: sizing_pools.figures(runs) for name, runs in by_policy.items()}
            for function, by_policy in pools.items()
        }
    return {
        **document,
        "targets": sizing_targets.targets(document, ours=_OURS, best=_BEST, peers=_PEERS),
    }


def _functions(given: argparse.Namespace) -> tuple[str, list[Function], list[JSON]]:
    """Return the machine family, what ran on it, and which inputs of the file did not."""
    for name, low in (("requests", 1), ("seeds", 1), ("warm_up", 0)):
        if getattr(given, name) < low:
            raise CommandError(
                f"--{name.replace('_', '-')} is {getattr(given, name)}: at least {low}."
            )
    if given.warm_up >= given.requests:
        raise CommandError(
            f"--warm-up {given.warm_up} leaves none of --requests {given.requests} to report. Write a "
            "smaller --warm-up."
        )
    if not given.deadline_factor > 0 or not given.sigma >= 0:
        raise CommandError("--deadline-factor must be positive, and --sigma not negative.")
    try:
        classes = sorted({int(text) for text in (given.classes or _CLASSES).split(",")})
    except ValueError as error:
        raise CommandError(f"--classes {given.classes}: {error}. Write {_CLASSES}.") from error
    known = recorded_runs.read_features(given.features) if given.features else {}
    runs = recorded_runs.read_runs(given.runs)
    family = given.machine or recorded_runs.usual_family(runs, wanted=_FAMILY)
    if given.classes is None:
        classes = recorded_runs.usual_classes(runs, family=family, wanted=classes)
    found = recorded_runs.functions(
        runs,
        family=family,
        classes=classes,
        known=known,
        synthetic=set(given.synthetic_feature),
    )
    unknown = set(given.synthetic_feature) - {function.name for function in found}
    if unknown:
        raise CommandError(
            f"--synthetic-feature {', '.join(sorted(unknown))}: no such function with enough runs. "
            f"There are {', '.join(function.name for function in found)}."
        )
    dated = [
        recorded_runs.with_deadlines(function, regime=given.regime, factor=given.deadline_factor)
        for function in found
    ]
    return (
        family,
        dated,
        recorded_runs.left_out(runs, found, family=family, classes=classes),
    )


def _names(wanted: str, static: tuple[str, ...]) -> list[str]:
    main_ones = [*MODELS, *LIVE, *PROFILED, *static]
    groups = {
        "all": main_ones,
        "all+ablations": [*main_ones, *ABLATIONS],
        "ablations": list(ABLATIONS),
        "static": list(static),
    }
    found: list[str] = []
    for name in wanted.split(","):
        if name not in groups and name not in main_ones and name not in ABLATIONS:
            raise CommandError(
                f"--policies {name}: no such policy. There are {', '.join([*groups, *main_ones])} and "
                f"{', '.join(ABLATIONS)}."
            )
        found.extend(groups.get(name, [name]))
    return list(dict.fromkeys(found))


def _seed(
    given: argparse.Namespace, functions: Sequence[Function], *, seed: int, found: Found
) -> None:
    """Let every policy answer one seed's requests."""
    drawn = draws(
        [len(function.inputs) for function in functions],
        requests=given.requests,
        random=np.random.default_rng([seed, 0]),
    )
    for place, (known, asked) in enumerate(zip(functions, drawn, strict=True)):
        function = known
        if known.name in given.synthetic_feature:
            function = recorded_runs.with_synthetic(
                known,
                sigma=given.sigma,
                split=given.split,
                random=np.random.default_rng([seed, 1, place]),
            )
        layout = recorded_runs.layout(function, deadlines=given.regime == "A")
        told = recorded_runs.tells_memory(function)
        for name, answers in found.seen[known.name].items():
            random = np.random.default_rng([seed, 2, place])
            policy = _policy(name, function, layout=layout, random=random)
            if isinstance(policy, profiled.Profiled):
                found.spent.setdefault(f"{known.name}/{name}", []).append(policy)
                policy = policy.policy
            answers.append(
                sizing_figures.answers(function, replay(function, policy, asked), memory=told)
            )
            if given.pool_load > 0:
                fresh = _policy(name, function, layout=layout, random=random)
                found.pools[known.name][name].append(
                    sizing_pools.serve(
                        function,
                        fresh.policy if isinstance(fresh, profiled.Profiled) else fresh,
                        asked=asked,
                        load=given.pool_load,
                        seed=(seed, 3, place),
                    )
                )


def _policy(
    name: str, function: Function, *, layout: Layout, random: np.random.Generator
) -> Policy | profiled.Profiled:
    model = MODELS.get(name) or ABLATIONS.get(name)
    if model is not None:
        return policies.Trimtab(function, layout=layout, policy=model, few_sizes=name == _FEW)
    if name in PROFILED:
        return PROFILED[name](function, random=random)
    if name in LIVE:
        return LIVE[name](function)
    cpu_m = round(1000 * float(name.removeprefix("static-")))
    return policies.Constant(Size(cpu_m, function.ladder.mem_mib[-1]))


def _profiling(found: Sequence[profiled.Profiled]) -> JSON:
    if not found:
        return {}
    return {
        "profiling": {
            "runs": round(sum(one.runs for one in found) / len(found), 1),
            "vcpu_seconds": round(sum(one.vcpu_seconds for one in found) / len(found), 1),
            "sizes": sorted({(one.policy.size.cpu_m, one.policy.size.mem_mib) for one in found}),
        }
    }


def harness(functions: Sequence[Function]) -> JSON:
    """Return what is exact, uniform over all inputs: late share of each class, the oracle's mean."""
    pairs = sum(len(function.inputs) for function in functions)
    classes = sorted({cpu for function in functions for cpu in function.ladder.cpu_m})
    return {
        "pairs": pairs,
        "static_late_percent": {
            f"{cpu / 1000:g}": round(
                100 * sum(expected_late(f, cpu) * len(f.inputs) for f in functions) / pairs, 2
            )
            for cpu in classes
        },
        "oracle_mean_vcpu": round(
            sum(f.oracle(i) for f in functions for i in range(len(f.inputs))) / 1000 / pairs, 4
        ),
    }


def text(document: JSON) -> str:
    """Return the document for people: everything first, then function by function."""
    options, exact = document["options"], document["harness"]
    lines = [
        f"{NAME}: {document['label']}",
        (
            f"regime {options['regime']}, factor {options['deadline_factor']}, machine {options['machine']}, "
            f"{options['requests']} requests x {options['seeds']} seeds, the first {options['warm_up']} "
            "left out"
        ),
    ]
    if options["synthetic_features"]:
        lines.append(
            f"SYNTHETIC features: {', '.join(options['synthetic_features'])}, sigma {options['sigma']}"
            f"{', split over two' if options['split'] else ''}"
        )
    lines += [
        (
            f"exact, uniform over {exact['pairs']} inputs: late % of constants "
            f"{exact['static_late_percent']}, oracle {exact['oracle_mean_vcpu']} vCPU"
        ),
        *(
            f"left out: input {one['input']} of function {one['function']}, which {one['why']}"
            for one in document["left_out"]
        ),
        "",
        f"all {len(document['functions'])} functions:",
        table([_row(name, found) for name, found in document["all"]["policies"].items()]),
    ]
    for name, function in document["functions"].items():
        lines += [
            "",
            f"{name}: {function['inputs']} inputs, deadlines {_span(function['deadline_seconds'])} s",
            table([_row(policy, found) for policy, found in function["policies"].items()]),
        ]
    for name, found in document.get("pools", {}).items():
        lines += [
            "",
            f"{name} with arrivals (vCPU-seconds and GiB-seconds per request):",
            table([_pool_row(policy, figures) for policy, figures in found.items()]),
        ]
    lines += ["", "targets and peers:", table(document["targets"])]
    return "\n".join(lines)


def _pool_row(name: str, found: JSON) -> JSON:
    return {
        "policy": name,
        "late": f"{found['late']} of {found['requests']}",
        "%": found["violations_percent"],
        "cold %": found["cold_percent"],
        "larger %": found["larger_percent"],
        "503": found["rejected"],
        "starts": found["starts"],
        "wait p50/p99": f"{found['wait_p50_seconds']}/{found['wait_p99_seconds']}",
        "vCPU-s busy/idle": f"{found['busy_vcpu_seconds']}/{found['idle_vcpu_seconds']}",
        "GiB-s busy/idle": f"{found['busy_gib_seconds']}/{found['idle_gib_seconds']}",
    }


def _span(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _row(name: str, found: JSON) -> JSON:
    causes = " ".join(f"{cause} {count}" for cause, count in found["by_cause"].items() if count)
    return {
        "policy": name,
        "late": f"{found['late']} of {found['requests']}",
        "%": found["violations_percent"],
        "51-250 %": found["violations_51_250_percent"],
        "vCPU": found["mean_vcpu"],
        "wasted p50/p95": f"{found['wasted_vcpu_p50']}/{found['wasted_vcpu_p95']}",
        "excess p50/p95": f"{found['excess_vcpu_p50']}/{found['excess_vcpu_p95']}",
        "MiB": found["mean_memory_mib"],
        "wasted MiB": found["wasted_memory_mib"],
        "OOM %": found["oom_percent"],
        "sizes": found["sizes"],
        "by cause": causes or "-",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
