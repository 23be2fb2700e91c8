"""What `trimtab simulate requests` runs: a step model or a plan, and a trace, from files."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from trimtab.cli.output import CommandError
from trimtab.cli.traces import read_trace
from trimtab.planning.fingerprint import FingerprintInvalidError, parse
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.scheduler_limits import SchedulerLimits
from trimtab.planning.sources import find_source
from trimtab.planning.step_model import fit
from trimtab.planning.variation import Variation
from trimtab.planning.workload import PlannedLoad, planned_load, synthesize, trace_seed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trimtab.planning.plan import Option
    from trimtab.planning.step_model import StepModel
    from trimtab.planning.workload import Arrival

_UNBOUND_TOKENS: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What serves the requests.

    Attributes:
        name: What is replayed against, for people.
        option: The plan's choice; None for a bare step model.
        load: What the plan was made for.
    """

    name: str
    model: StepModel
    limits: SchedulerLimits
    kv_tokens: int
    replicas: int
    option: Option | None = None
    load: PlannedLoad | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A load to draw a trace from."""

    rate: float | None
    prompt_tokens: int
    output_tokens: int
    count: int
    gap_cv: float
    seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a person may say about the engine; None takes the plan's, or what Trimtab's engine has."""

    replicas: int | None
    kv_tokens: int | None
    max_seqs: int | None
    max_batch_tokens: int | None
    max_model_len: int | None


def of_step_model(*, fingerprint: Path, model_config: Path, given: Limits) -> Subject:
    """Return a replica that a fingerprint and a model's depth describe.

    Raises:
        CommandError: A file is missing or wrong.
    """
    from trimtab.bench.served_model import read_model  # noqa: PLC0415 - only where it is asked for

    model = read_model(model_config)
    try:
        document = parse(fingerprint.read_text())
        step_model = fit(document, depth=model.depth)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{fingerprint} cannot be read: {error}.") from error
    except FingerprintInvalidError as error:
        raise CommandError(f"{fingerprint}: {error}") from error
    policy = PlannerPolicy()
    architecture = model.architecture
    return Subject(
        name=f"{document.key.product}, tensor parallel {document.key.tensor_parallel_size}, "
        f"{document.key.precision}, {model.depth} layers",
        model=step_model,
        limits=_limits(
            token_budget=given.max_batch_tokens or policy.cpu_max_batch_tokens,
            max_running=given.max_seqs or policy.cpu_max_sequences,
            max_model_len=given.max_model_len,
            window=architecture.sliding_window if architecture else 0,
        ),
        kv_tokens=_UNBOUND_TOKENS if given.kv_tokens is None else given.kv_tokens,
        replicas=given.replicas or 1,
    )


def of_plan(
    *,
    intents: Sequence[Path],
    inventory: Path,
    prices: Path | None,
    fingerprints: Path | None,
    intent: str | None,
    given: Limits,
) -> Subject:
    """Return what the offline planner chooses for one intent.

    Raises:
        CommandError: A file is missing or wrong, the intent is not named, or nothing is planned.
    """
    from trimtab.cli import offline  # noqa: PLC0415 - the planner takes 0.5 s

    decided = offline.decide(
        intents=intents, inventory=inventory, prices=prices, fingerprints=fingerprints
    )
    plans = {f"{plan.namespace}/{plan.name}": plan for plan in decided.plan.intents}
    if intent is None and len(plans) > 1:
        raise CommandError(f"Name one of {', '.join(sorted(plans))} with --intent.")
    name = intent or next(iter(plans))
    plan = plans.get(name) or plans.get(f"default/{name}")
    if plan is None:
        raise CommandError(f"There is no intent {name}: choose one of {', '.join(sorted(plans))}.")
    option = plan.option
    view = next(i for i in decided.snapshot.intents if i.uid == plan.uid)
    if option is None or view.model is None:
        raise CommandError(f"{name} is not planned, so nothing can be replayed: {plan.message}")
    policy = PlannerPolicy()
    source = find_source(
        view.model,
        option.config,
        snapshot=decided.snapshot,
        policy=policy,
    )
    return Subject(
        name=f"{name}: {option.config.product} {option.config.cpu_model}".strip()
        + f", {option.config.precision}, {option.fingerprint}",
        model=source.model,
        limits=_limits(
            token_budget=given.max_batch_tokens or option.max_batch_tokens,
            max_running=given.max_seqs or option.max_seqs,
            max_model_len=given.max_model_len or option.max_model_len,
            window=view.model.architecture.sliding_window,
        ),
        kv_tokens=given.kv_tokens or option.kv_tokens,
        replicas=given.replicas or option.replicas,
        option=option,
        load=planned_load(view.load, context_length=view.model.context_length, policy=policy),
    )


def arrivals(
    subject: Subject, *, trace: Path | None, faster: float, drawn: Drawn
) -> tuple[tuple[Arrival, ...], int]:
    """Return the requests to replay and how many of a file were skipped.

    Raises:
        CommandError: The trace is missing or wrong, or neither a trace nor a load is given.
    """
    if trace is not None:
        found = read_trace(trace, faster=faster)
        return found.arrivals, found.skipped
    if drawn.rate is not None:
        load = PlannedLoad(
            rate=drawn.rate,
            prompt=drawn.prompt_tokens,
            output=drawn.output_tokens,
            assumed=False,
        )
    elif subject.load is not None and subject.load.rate > 0:
        load = subject.load
    else:
        raise CommandError(
            "There is nothing to replay: give --requests FILE, or --rate with --prompt-tokens and "
            "--output-tokens, or an intent with a load."
        )
    seed = trace_seed(subject.name, load) if drawn.seed is None else drawn.seed
    longest = min(subject.limits.max_model_len or subject.kv_tokens, subject.kv_tokens)
    return (
        synthesize(
            load,
            count=drawn.count,
            draws=random.Random(seed),  # noqa: S311 - a simulation, not secrets
            variation=Variation(gap=drawn.gap_cv),
            longest=longest,
        ),
        0,
    )


def _limits(
    *, token_budget: int, max_running: int, max_model_len: int | None, window: int
) -> SchedulerLimits:
    try:
        return SchedulerLimits(
            token_budget=token_budget,
            max_running=max_running,
            max_model_len=max_model_len,
            window=window,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error
