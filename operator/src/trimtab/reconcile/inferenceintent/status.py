"""`status.plan`, `alternatives`, `observed` and the rest, from the fleet plan; nothing ticks."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, Final

from trimtab.planning.variation import POISSON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab.observe.inspections import ModelFacts
    from trimtab.observe.intents import ObservedIntent
    from trimtab.observe.workers import EngineView
    from trimtab.planning.plan import Alternative, IntentPlan, Latency, Option
    from trimtab.planning.snapshot import Config

_PRECISIONS = frozenset({"fp32", "fp16", "bf16", "fp8", "int8", "int4"})
_MOST_ALTERNATIVES = 8
_MOST_TOKENS: Final = 1_000_000_000


_HELD: Final[Mapping[str, str]] = {
    "InFlight": "What runs stays until the replicas of the last change are ready.",
    "Dwell": "What runs stays for now: there is one change in ten minutes.",
    "Measuring": "What runs stays until the measurements that the plan asks for are there.",
    "StillNeeded": (
        "What runs stays for now: what is wanted instead must carry the busy part of the last half "
        "hour too, and fewer replicas with 10 points more than the margin, for ten minutes."
    ),
    "Lone": (
        "What runs stays: no node has room for a replica beside the only one, which would be an "
        "outage. Any edit of the spec makes it move."
    ),
    "NoRoom": "What runs stays: no node has room for a replica of it, not even in another's place.",
    "NotOurs": "Somebody else sets the replicas.",
    "Transition": (
        "What runs stays until other intents have changed: at most a tenth of the fleet does at once."
    ),
}
"""Why a plan is not followed yet, a sentence each; nothing in them ticks."""


def build(observed: ObservedIntent, *, endpoint: str, plan_digest: str) -> dict[str, Any]:
    """Return the status without conditions.

    Args:
        observed: The intent.
        endpoint: The OpenAI base URL.
        plan_digest: Of the worker's pod template; empty where none is wanted.
    """
    status: dict[str, Any] = {
        "observedGeneration": observed.record.generation,
        "endpoint": endpoint,
        "readyReplicas": sum(pod.ready for pod in observed.pods or observed.former_pods),
    }
    facts = observed.inspection.facts if observed.inspection else None
    if observed.intent is not None:
        status["model"] = {"name": observed.intent.public_name, **_model(facts)}
    plan = observed.plan
    if plan is not None:
        if plan.option is not None:
            status["plan"] = _plan(observed, plan.option, plan_digest=plan_digest)
        status["alternatives"] = [
            _alternative(other, at_percentile=judged_at_percentile(observed.record.spec))
            | accuracy_loss(plan, other.config)
            for other in plan.alternatives[:_MOST_ALTERNATIVES]
        ]
    if observed.shown.figures:
        status["observed"] = dict(observed.shown.figures)
    return status


def _model(facts: ModelFacts | None) -> dict[str, Any]:
    if facts is None:
        return {}
    model: dict[str, Any] = {
        "family": facts.family,
        "parameters": facts.parameters,
        "weightBytes": facts.model.weight_bytes,
        "contextLength": facts.model.context_length,
        "depth": facts.model.depth,
    }
    if facts.model.precision in _PRECISIONS:
        model["precision"] = facts.model.precision
    if facts.quantization:
        model["quantization"] = facts.quantization
    return model


def _plan(observed: ObservedIntent, option: Option, *, plan_digest: str) -> dict[str, Any]:
    plan = observed.plan
    if plan is None:
        raise RuntimeError("A status for a plan that does not exist is a bug; please report it.")
    at_percentile = judged_at_percentile(observed.record.spec)
    status = _configuration(option.config, option, at_percentile=at_percentile)
    status |= accuracy_loss(plan, option.config)
    status["reason"] = str(plan.reason)
    if plan.binding is not None:
        status["binding"] = plan.binding
    held = (_HELD[observed.step.held],) if observed.step and observed.step.held in _HELD else ()
    status["message"] = " ".join((plan.message, *held, *plan.notes))[:4096]
    if plan_digest:
        status["digest"] = plan_digest
    status["load"] = _load(observed)
    if plan.group is not None:
        status["group"] = plan.group.id
    return status | shared_worker(plan, observed.engine)


def accuracy_loss(plan: IntentPlan, config: Config) -> dict[str, Any]:
    """Return what an option's precision was measured to lose, nothing where it was not measured."""
    loss = next((loss for loss in plan.losses if loss.precision == config.precision), None)
    if loss is None:
        return {}
    return {
        "accuracyLossPercent": f"{loss.percent.normalize():f}",
        "accuracyLossErrorPercent": f"{loss.error_percent.normalize():f}",
    }


def shared_worker(plan: IntentPlan, engine: EngineView | None) -> dict[str, Any]:
    """Return what is lent and why, and the models of a group: the engine's own word where it gave it."""
    remap: dict[str, Any] = {
        "verdict": plan.remap_verdict,
        "reasons": [reason[:1024] for reason in plan.remap_reasons[:16]],
    }
    if engine is not None and engine.verdict:
        # Why it shares with nobody is the planner's to say; the engine knows its own models only.
        advised = plan.group.advice.reasons if plan.group is not None else ()
        apart = [reason for reason in plan.remap_reasons if reason not in advised]
        reasons = [reason[:1024] for reason in (*apart, *engine.reasons)]
        remap = {"verdict": engine.verdict, "reasons": list(dict.fromkeys(reasons))[:16]}
        if engine.lend_units:
            remap["lendUnits"] = [
                {"model": name, "units": count} for name, count in engine.lend_units[:16]
            ]
        if engine.switch_milliseconds is not None:
            remap["switchMilliseconds"] = decimals(engine.switch_milliseconds)
        if engine.kv_tokens is not None:
            before, after = (min(tokens, _MOST_TOKENS) for tokens in engine.kv_tokens)
            remap |= {"kvTokensBefore": before, "kvTokensAfter": after}
        remap["source"] = "Engine"
    shown: dict[str, Any] = {"remap": remap}
    if plan.group is not None and engine is not None:
        shown["members"] = [
            {"model": name, "state": state} | ({"reason": why} if why else {})
            for name, state, why in sorted(engine.models)[:16]
        ]
    return shown


def _load(observed: ObservedIntent) -> dict[str, Any]:
    load: dict[str, Any] = {"source": observed.load_source}
    if observed.load is not None:
        load |= {
            "requestsPerSecond": decimals(observed.load.requests_per_second),
            "promptTokens": observed.load.prompt_tokens,
            "outputTokens": observed.load.output_tokens,
        }
        varied = observed.load.variation
        if varied != POISSON:
            load |= {
                "gapVariation": decimals(varied.gap),
                "promptVariation": decimals(varied.prompt),
                "outputVariation": decimals(varied.output),
            }
    return load


def _alternative(other: Alternative, *, at_percentile: bool) -> dict[str, Any]:
    status = _configuration(other.config, other.option, at_percentile=at_percentile)
    status["reason"] = str(other.reason)
    status["message"] = other.why_not[:4096]
    return status


def _configuration(config: Config, option: Option | None, *, at_percentile: bool) -> dict[str, Any]:
    status: dict[str, Any] = {
        "product": config.product,
        "tensorParallelSize": config.tensor_parallel_size,
        "pipelineParallelSize": config.pipeline_parallel_size,
        "precision": config.precision,
        "replicas": option.replicas if option else 0,
    }
    if config.threads:
        status["threadsPerReplica"] = config.threads
    if option is None:
        return status
    if option.cost_per_hour_micro_usd is not None:
        status["costPerHour"] = money(option.cost_per_hour_micro_usd)
    status["predicted"] = _prediction(option, at_percentile=at_percentile)
    status["margin"] = {
        "timeToFirstTokenPercent": round(option.ttft_margin_permille / 10),
        "timePerOutputTokenPercent": round(option.margin_permille / 10),
    }
    status["confidence"] = _confidence(option)
    return status


def judged_at_percentile(spec: Mapping[str, Any]) -> bool:
    """Whether an intent's latencies are shown at its percentile; without a target they are means."""
    targets: Mapping[str, Any] = spec.get("targets") or {}
    return any(key.startswith("time") for key in targets)


def _prediction(option: Option, *, at_percentile: bool) -> dict[str, Any]:
    predicted = option.predicted
    status: dict[str, Any] = {
        "timeToFirstTokenMilliseconds": _latency(predicted.ttft, at_percentile=at_percentile),
        "timePerOutputTokenMilliseconds": _latency(predicted.tpot, at_percentile=at_percentile),
        "endToEndMilliseconds": _latency(predicted.e2e, at_percentile=at_percentile),
        "capacityRequestsPerSecond": decimals(predicted.capacity_milli_rps / 1000),
    }
    if at_percentile:
        status["percentile"] = predicted.ttft.percentile
    if option.cost_per_million_output_tokens_micro_usd is not None:
        status["costPerMillionOutputTokens"] = money(
            option.cost_per_million_output_tokens_micro_usd
        )
    if option.cost_per_million_at_capacity_micro_usd is not None:
        status["costPerMillionOutputTokensAtCapacity"] = money(
            option.cost_per_million_at_capacity_micro_usd
        )
    return status


def _confidence(option: Option) -> dict[str, Any]:
    confidence, anchoring = option.confidence, option.anchoring
    status: dict[str, Any] = {
        "level": confidence.level,
        "source": confidence.source,
        "reasons": [reason[:1024] for reason in confidence.reasons[:16]],
    }
    if option.fingerprint != "Roofline":
        status["fingerprint"] = f"fp-{option.fingerprint}"
    if anchoring is not None:
        status["anchors"] = {
            "count": anchoring.count,
            "factor": decimals(anchoring.factor_permille / 1000),
            "verdict": "Suspect" if anchoring.suspect else "Good" if anchoring.good else "Few",
        }
    return status


def _latency(latency: Latency, *, at_percentile: bool) -> str:
    return decimals((latency.percentile_us if at_percentile else latency.mean_us) / 1000)


def decimals(value: float) -> str:
    """Return a figure with three significant digits as a plain decimal string."""
    exact = Decimal(repr(value))
    if exact <= 0:
        return "0"
    digits = min(6, max(0, 2 - exact.adjusted()))
    rounded = exact.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_EVEN)
    if exact.adjusted() > 2:
        rounded = round(exact, 2 - exact.adjusted())
    text = f"{min(rounded, Decimal(999_999_999)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def money(micro_usd: int) -> str:
    """Return micro-USD as a decimal string of USD."""
    amount = min(Decimal(micro_usd) / 1_000_000, Decimal(999_999_999))
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
