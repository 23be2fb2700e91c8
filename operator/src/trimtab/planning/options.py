"""Which configurations an intent allows and the engine can run, and how many replicas are tried."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from trimtab.planning.estimate import evaluate
from trimtab.planning.plan import Alternative, Lost, Option
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
from trimtab.planning.workload import PlannedLoad

_MOST_STEPS = 16
_AT_ONCE = 4
# A replica that is used less than this, per mille, and gains nothing will not be satisfied by more.
_IDLE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The configurations of one intent: those to try, and those that cannot run, with the reason."""

    configs: tuple[Config, ...]
    refused: tuple[Alternative, ...]
    problem: str
    """Why no configuration is left; empty where one is."""


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
    intent: IntentView, model: ModelView, *, snapshot: FleetSnapshot, policy: PlannerPolicy
) -> Space:
    """Return the configurations within pins, engine capabilities and the fleet's machines."""
    threads = _threads_by_model(snapshot)
    offered = sorted(
        {pool.product for pool in snapshot.pools} & set(snapshot.capabilities.products)
    )
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
    shapes = product(
        sorted(threads),
        considered(intent, model, capabilities=snapshot.capabilities),
        sorted(set(pins.tensor_parallel_sizes or (1,))),
        sorted(set(pins.pipeline_parallel_sizes or (1,))),
    )
    for cpu_model, precision, tp, pp in shapes:
        for count in (c for c in policy.thread_counts if c <= threads[cpu_model]):
            config = Config(
                product="cpu",
                cpu_model=cpu_model,
                precision=precision,
                threads=count,
                tensor_parallel_size=tp,
                pipeline_parallel_size=pp,
            )
            why = _unsupported(config, model, snapshot) or _unproven(config, intent, model)
            if why is None:
                configs.append(config)
            else:
                refused.append(
                    Alternative(config=config, option=None, reason=why[0], why_not=why[1])
                )
    if configs or not refused:
        return Space(configs=tuple(configs), refused=tuple(_one_each(refused)), problem="")
    caps = snapshot.capabilities
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


class Walk:
    """Replica counts of one configuration, rising until one more gains too little.

    It starts at the least count that carries the load and ends once the objective is satisfied and
    a further replica makes requests less than 2 % faster. Counts are wanted a few at a time, so that
    the next ones of all walks are predicted together.

    Attributes:
        found: Options so far.
        wanted: Counts to be predicted next; none at the end.
    """

    def __init__(
        self,
        intent: IntentView,
        *,
        load: PlannedLoad,
        satisfied: Callable[[Option], bool],
        policy: PlannerPolicy,
    ) -> None:
        self._least = least_replicas(intent)
        self._most = max(self._least, intent.constraints.max_replicas or policy.most_replicas)
        self._loaded = load.rate > 0
        self._satisfied = satisfied
        self._tie = policy.latency_tie_permille
        self._left = range(0)
        self.found: list[Option] = []
        self.wanted = range(self._least, self._least + 1)

    def take(self, options: Iterable[Callable[[], Option]]) -> None:
        """Go on with what was wanted; options beyond the end are not called for."""
        for option in options:
            current = option()
            last = self.found[-1] if self.found else None
            self.found.append(current)
            if last is None:
                self._left = self._ahead(current)
            elif self._ends(last, current):
                self._left = range(0)
                break
        self.wanted, self._left = self._left[:_AT_ONCE], self._left[_AT_ONCE:]

    def _ahead(self, first: Option) -> range:
        """Return the counts beyond the least one that may be worth a look."""
        if not self._loaded:
            return range(0)
        needed = math.ceil(first.predicted.utilisation_permille * self._least / 1000)
        start = min(self._most, max(self._least + 1, needed))
        return range(max(start, self._least + 1), min(self._most, start + _MOST_STEPS) + 1)

    def _ends(self, last: Option, current: Option) -> bool:
        """Tell whether a step gained too little to go on."""
        gain = last.predicted.e2e.mean_us - current.predicted.e2e.mean_us
        if gain * 1000 >= self._tie * last.predicted.e2e.mean_us:
            return False
        if not current.predicted.overloaded and self._satisfied(current):
            return True
        return not last.predicted.overloaded and current.predicted.utilisation_permille < _IDLE


def least_replicas(intent: IntentView) -> int:
    """Return the fewest replicas that an intent allows."""
    return max(1, intent.constraints.min_replicas or 1)


def running_option(
    intent: IntentView,
    model: ModelView,
    assignment: Assignment,
    *,
    load: PlannedLoad,
    snapshot: FleetSnapshot,
    policy: PlannerPolicy,
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


def _threads_by_model(snapshot: FleetSnapshot) -> dict[str, int]:
    """Return the most threads that one node of each CPU model has."""
    found: dict[str, int] = {}
    for pool in snapshot.pools:
        if pool.product == "cpu":
            found[pool.cpu_model] = max(found.get(pool.cpu_model, 0), pool.millicores // 1000)
    return found


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
    ranks = config.tensor_parallel_size
    heads, kv_heads = model.architecture.attention_heads, model.architecture.kv_heads
    if config.pipeline_parallel_size > 1:
        return (
            f"Pipeline parallel size {config.pipeline_parallel_size} cannot be predicted: "
            "fingerprints measure one stage."
        )
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        return (
            f"Tensor parallel size {ranks} does not divide the model's {heads} attention heads and "
            f"{kv_heads} key heads."
        )
    if config.threads % ranks:
        return f"Tensor parallel size {ranks} does not divide {config.threads} threads."
    return None


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


def _one_each(refused: list[Alternative]) -> Iterator[Alternative]:
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
