"""Which configurations an intent allows and the engine can run, and how many replicas are tried."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trimtab.planning.estimate import evaluate, longest_request
from trimtab.planning.gpu_memory import indivisible
from trimtab.planning.gpus import gpu_configs, too_large
from trimtab.planning.machines import Machines
from trimtab.planning.plan import Alternative, Lost, Option, Reason
from trimtab.planning.policy import PlannerPolicy
from trimtab.planning.precision import loses_accuracy
from trimtab.planning.snapshot import (
    Assignment,
    Config,
    EngineCapabilities,
    FleetSnapshot,
    IntentView,
    ModelView,
)
from trimtab.planning.sources import Sources
from trimtab.planning.workload import PlannedLoad, planned_load

_NOT_PINS: Final[Mapping[str, Reason]] = {
    "NoFit": "NoFit",
    "NoCapacity": "NoCapacity",
    "NoEstimate": "NoEstimate",
}
"""Why configurations are refused that no pin excludes, and what that is called of an intent."""
_LARGER: Final = (
    "Allow more GPUs per replica, a precision of fewer bytes or another product in "
    "spec.constraints, or add nodes with more or larger GPUs."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The configurations of one intent: those to try, and those that cannot run, with the reason."""

    configs: tuple[Config, ...]
    refused: tuple[Alternative, ...]
    problem: str
    """Why no configuration is left; empty where one is."""
    reason: Reason = "ConstraintsExcludeAll"
    """What kind of problem that is."""


def considered(
    intent: IntentView, model: ModelView, *, capabilities: EngineCapabilities
) -> tuple[str, ...]:
    """Return the precisions that an intent lets be considered.

    Unless it names them, the checkpoint's own alone, because precision costs accuracy; a bound on
    that cost lets all be considered that the engine runs.
    """
    pins = intent.constraints
    if pins.precisions:
        return tuple(sorted(set(pins.precisions)))
    if pins.max_accuracy_loss_percent is not None:
        return tuple(sorted({*capabilities.precisions, model.precision}))
    return (model.precision,)


def unmeasured(
    intent: IntentView, model: ModelView, *, capabilities: EngineCapabilities
) -> tuple[str, ...]:
    """Return the precisions whose loss is worth measuring.

    One with at least as many bits as the checkpoint's own holds every weight exactly: it is not
    measured, and no bound excludes it.
    """
    return tuple(
        precision
        for precision in considered(intent, model, capabilities=capabilities)
        if precision in capabilities.precisions
        and loses_accuracy(precision, own=model.precision)
        and model.loss_at(precision) is None
    )


def space(
    intent: IntentView,
    model: ModelView,
    *,
    machines: Machines,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> Space:
    """Return the configurations within pins, engine capabilities and the fleet's machines."""
    offered = machines.products
    pins = intent.constraints
    products = [p for p in offered if pins.gpu_products is None or p in pins.gpu_products]
    if not products:
        return _empty(
            intent,
            "gpuProducts",
            pins.gpu_products,
            f"the fleet offers {', '.join(offered) or 'no usable node'}",
            "Add one of these products, or nodes of the pinned one",
        )
    configs: list[Config] = []
    refused: list[Alternative] = []
    for one in products:
        found, not_these = _of_product(
            one, intent, model, machines=machines, snapshot=snapshot, policy=policy
        )
        configs += found
        refused += not_these
    if configs or not refused:
        return Space(configs=tuple(configs), refused=tuple(_one_each(refused)), problem="")
    return _nothing_left(intent, model, refused, snapshot)


def _of_product(
    product: str,
    intent: IntentView,
    model: ModelView,
    *,
    machines: Machines,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> tuple[list[Config], list[Alternative]]:
    """Return what a product can run, and what it cannot.

    Stages are tried in rising number until something can run: they never make a request faster
    (planner.md §5), so a second stage is for what one stage cannot hold.
    """
    refused: list[Alternative] = []
    for stages in _stages(product, intent, snapshot):
        configs: list[Config] = []
        for config in _shapes(
            product,
            intent,
            model,
            stages=stages,
            machines=machines,
            snapshot=snapshot,
            policy=policy,
        ):
            why = (
                _unsupported(config, model, snapshot)
                or _unproven(config, intent, model)
                or _unfit(config, intent, model, machines=machines, policy=policy)
            )
            if why is None:
                configs.append(config)
            else:
                refused.append(
                    Alternative(config=config, option=None, reason=why[0], why_not=why[1])
                )
        if configs:
            return configs, refused
    return [], refused


def _stages(product: str, intent: IntentView, snapshot: FleetSnapshot) -> list[int]:
    """Return the numbers of pipeline stages to try; on ``cpu`` one, unless others are asked for."""
    pinned = intent.constraints.pipeline_parallel_sizes
    # All stages of a pod share its node's memory: on cpu they hold no more than one does.
    usual = (1,) if product == "cpu" else snapshot.capabilities.pipeline_parallel_sizes
    return sorted(set(pinned or usual))


def _shapes(
    product: str,
    intent: IntentView,
    model: ModelView,
    *,
    stages: int,
    machines: Machines,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
) -> Iterator[Config]:
    pins = intent.constraints
    precisions = considered(intent, model, capabilities=snapshot.capabilities)
    if product != "cpu":
        sizes = pins.tensor_parallel_sizes or snapshot.capabilities.tensor_parallel_sizes
        yield from gpu_configs(product, stages=stages, precisions=precisions, sizes=sizes)
        return
    threads = machines.threads
    ranks = sorted(set(pins.tensor_parallel_sizes or (1,)))
    for cpu_model, precision, tp in itertools.product(sorted(threads), precisions, ranks):
        for count in (c for c in policy.thread_counts if c <= threads[cpu_model]):
            yield Config(
                product="cpu",
                cpu_model=cpu_model,
                precision=precision,
                threads=count,
                tensor_parallel_size=tp,
                pipeline_parallel_size=stages,
            )


def _nothing_left(
    intent: IntentView, model: ModelView, refused: Sequence[Alternative], snapshot: FleetSnapshot
) -> Space:
    """Return the space of an intent of which every configuration is refused."""
    pins, caps = intent.constraints, snapshot.capabilities
    if any(one.reason == "AccuracyLoss" for one in refused):
        reasons = " ".join(one.why_not for one in _one_each(refused))
        remedy = (
            f"Allow {model.precision} in spec.constraints.precisions, or raise or remove the bound."
        )
        return Space(
            configs=(),
            refused=tuple(_one_each(refused)),
            problem=f"{_object(intent)}: {reasons} {remedy}",
        )
    blocked = [one for one in refused if one.reason in _NOT_PINS]
    if blocked:
        # What comes last is spread over the most GPUs.
        last = blocked[-1]
        remedy = "" if last.reason == "NoEstimate" else f" {_LARGER}"
        return Space(
            configs=(),
            refused=tuple(_one_each(refused)),
            problem=f"{_object(intent)}: {last.why_not}{remedy}",
            reason=_NOT_PINS[last.reason],
        )
    if refused[0].reason == "PrecisionUnsupported":
        pinned = pins.precisions or (f"{model.precision} (the checkpoint's own)",)
        return _empty(
            intent,
            "precisions",
            pinned,
            f"the engine runs {', '.join(caps.precisions)}",
            "Allow one of these precisions",
        )
    return _empty(
        intent,
        "tensorParallelSizes and pipelineParallelSizes",
        (*(pins.tensor_parallel_sizes or (1,)), *(pins.pipeline_parallel_sizes or (1,))),
        " and ".join(dict.fromkeys(one.why_not.rstrip(".") for one in refused)),
        "Remove the pins",
    )


def pin_problem(intent: IntentView, model: ModelView, load: PlannedLoad) -> str:
    """Return why the pins contradict the model or each other, whatever the fleet; empty if not."""
    pins = intent.constraints
    least, most = pins.min_replicas, pins.max_replicas
    if least is not None and most is not None and least > most:
        return (
            f"{_object(intent)}: spec.constraints.minReplicas is {least}, more than maxReplicas "
            f"{most}. Raise maxReplicas or lower minReplicas."
        )
    if load.prompt + load.output > model.context_length:
        return (
            f"{_object(intent)}: spec.load asks for {load.prompt} prompt and {load.output} output "
            f"tokens, but the model's context is {model.context_length}. Lower promptTokens or "
            "outputTokens, or use a model with a longer context."
        )
    return ""


def running_option(
    intent: IntentView,
    model: ModelView,
    assignment: Assignment,
    *,
    load: PlannedLoad,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
    sources: Sources,
) -> Option:
    """Return the option that runs now, predicted for the present load."""
    return evaluate(
        intent,
        model,
        assignment.config,
        replicas=max(1, assignment.replicas),
        load=load,
        snapshot=snapshot,
        policy=policy,
        nodes=assignment.nodes,
        sources=sources,
    )


def config_key(config: Config) -> tuple[str | int, ...]:
    """Return a total order of configurations: small before large."""
    return (
        config.product,
        config.threads,
        config.tensor_parallel_size,
        config.pipeline_parallel_size,
        config.precision,
        config.cpu_model,
    )


def _unsupported(
    config: Config, model: ModelView, snapshot: FleetSnapshot
) -> tuple[Lost, str] | None:
    caps = snapshot.capabilities
    if config.precision not in caps.precisions:
        return (
            "PrecisionUnsupported",
            (
                f"Engine {caps.engine} {caps.version} cannot run {config.precision} on "
                f"{config.product}; it runs {', '.join(caps.precisions)}."
            ),
        )
    sizes = (config.tensor_parallel_size, config.pipeline_parallel_size)
    if sizes[0] not in caps.tensor_parallel_sizes or sizes[1] not in caps.pipeline_parallel_sizes:
        return (
            "ParallelismUnsupported",
            (
                f"Engine {caps.engine} {caps.version} cannot run tensor parallel size {sizes[0]} "
                f"with pipeline parallel size {sizes[1]} on {config.product}."
            ),
        )
    why = _indivisible(config, model)
    return None if why is None else ("ParallelismUnsupported", why)


def _indivisible(config: Config, model: ModelView) -> str | None:
    """Return why a model or its threads do not divide over the ranks of a replica."""
    ranks, stages = config.tensor_parallel_size, config.pipeline_parallel_size
    why = indivisible(model.architecture, depth=model.depth, ranks=ranks, stages=stages)
    if why is not None:
        return why
    if config.product == "cpu" and config.threads % (ranks * stages):
        return (
            f"Pipeline parallel size {stages} with tensor parallel size {ranks} does not divide "
            f"{config.threads} threads."
            if stages > 1
            else f"Tensor parallel size {ranks} does not divide {config.threads} threads."
        )
    return None


def _unfit(
    config: Config,
    intent: IntentView,
    model: ModelView,
    *,
    machines: Machines,
    policy: PlannerPolicy,
) -> tuple[Lost, str] | None:
    """Return why a group of GPUs cannot hold the model, or is on no node; None if it can, and on cpu."""
    if config.product == "cpu":
        return None
    most = machines.largest.get(config.product, 0)
    if config.devices > most:
        return (
            "NoCapacity",
            (
                f"A replica of {config.devices} GPUs needs them on one node, but the most "
                f"{config.product} that one node has free of other use is {most}."
            ),
        )
    memory = machines.memory(model, config)
    if memory is None:
        return (
            "NoEstimate",
            (
                f"No step times of {config.precision} on {config.product} are known, measured, "
                "from a catalogue or from a data sheet. Import a fingerprint of it, or allow another "
                "product in spec.constraints.gpuProducts."
            ),
        )
    size = machines.gpu_bytes[config.product]
    load = planned_load(intent.load, context_length=model.context_length, policy=policy)
    why = too_large(memory, config, longest=longest_request(model, load, policy), gpu_bytes=size)
    return None if why is None else ("NoFit", why)


def _unproven(config: Config, intent: IntentView, model: ModelView) -> tuple[Lost, str] | None:
    """Return why a precision is not shown to keep within a bound on accuracy; None if it is."""
    bound = intent.constraints.max_accuracy_loss_percent
    if bound is None or not loses_accuracy(config.precision, own=model.precision):
        return None
    loss = model.loss_at(config.precision)
    if loss is None:
        return (
            "AccuracyLoss",
            (
                f"{config.precision} keeps fewer bits than the checkpoint's {model.precision}, and "
                "its loss of accuracy is not measured yet, so it is not known to stay within "
                f"spec.constraints.maxAccuracyLossPercent {bound}."
            ),
        )
    if not loss.exceeds(bound):
        return None
    return (
        "AccuracyLoss",
        (
            f"{config.precision} {loss.described()}, more than "
            f"spec.constraints.maxAccuracyLossPercent {bound}."
        ),
    )


def _one_each(refused: Iterable[Alternative]) -> Iterator[Alternative]:
    """Yield one refused option per sentence: thread counts add nothing to it."""
    seen: set[str] = set()
    for alternative in refused:
        if alternative.why_not not in seen:
            seen.add(alternative.why_not)
            yield alternative


def _empty(intent: IntentView, field: str, value: object, offered: str, remedy: str) -> Space:
    shown = ", ".join(str(v) for v in value) if isinstance(value, tuple) else str(value)
    return Space(
        configs=(),
        refused=(),
        problem=(
            f"{_object(intent)}: spec.constraints.{field} allows {shown}, but {offered}. {remedy}."
        ),
    )


def _object(intent: IntentView) -> str:
    return f"InferenceIntent {intent.namespace}/{intent.name}"
