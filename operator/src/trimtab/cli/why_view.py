"""What `trimtab why` says about an object: pure functions over its JSON, nothing else is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from trimtab.api.v1alpha1.conditions import CONDITIONS
from trimtab.api.v1alpha1.reasons import Reason

JSON = dict[str, Any]  # any: an object of the API server

_THREE_DIGITS: Final = 100
_MEANINGS: Final = {reason.value: reason.doc for reason in Reason}
_POSITIVE: Final = {
    str(declared.type): declared.positive
    for conditions in CONDITIONS.values()
    for declared in conditions
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionLine:
    """One condition: `good` is None where it is not known yet."""

    type: str
    status: str
    good: bool | None
    reason: str
    meaning: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionLine:
    """One option of an InferenceIntent as text; empty where nothing is known."""

    chosen: bool
    option: str
    ttft: str
    tpot: str
    cost_per_hour: str
    cost_per_million: str
    capacity: str
    margin: str
    confidence: str
    accuracy_loss: str
    reason: str
    why: str


def condition_lines(body: JSON) -> list[ConditionLine]:
    """Return the conditions in the order of the status."""
    return [
        ConditionLine(
            type=entry["type"],
            status=entry["status"],
            good=_good(entry),
            reason=entry.get("reason", ""),
            meaning=_MEANINGS.get(entry.get("reason", ""), ""),
            message=entry.get("message", ""),
        )
        for entry in _status(body).get("conditions") or ()
    ]


def option_lines(body: JSON) -> list[OptionLine]:
    """Return the chosen option first, then the alternatives in their order."""
    status = _status(body)
    plan = status.get("plan")
    lines = [_option_line(plan, chosen=True)] if plan else []
    return lines + [_option_line(other, chosen=False) for other in status.get("alternatives") or ()]


def headline(body: JSON) -> str:
    """Return one sentence: is it ready, and why."""
    conditions = {entry["type"]: entry for entry in _status(body).get("conditions") or ()}
    ready = conditions.get("Ready")
    name = qualified_name(body)
    if ready is None:
        return f"{name} has no status yet: no operator has seen it."
    generation = body.get("metadata", {}).get("generation")
    judged = _status(body).get("observedGeneration")
    stale = (
        f" (this is about generation {judged}; generation {generation} is not judged yet)"
        if judged is not None and generation is not None and judged != generation
        else ""
    )
    word = {"True": "is ready", "False": "is not ready"}.get(ready["status"], "is not judged yet")
    return f"{name} {word}: {ready.get('reason', '')}{stale}"


def qualified_name(body: JSON) -> str:
    """Return `Kind namespace/name`."""
    metadata = body.get("metadata", {})
    parts = [metadata.get("namespace"), metadata.get("name")]
    return f"{body.get('kind')} {'/'.join(part for part in parts if part)}"


def objective_line(body: JSON) -> str:
    """Return what an InferenceIntent asks for."""
    spec = body.get("spec", {})
    targets = ", ".join(f"{key} {value}" for key, value in (spec.get("targets") or {}).items())
    return f"{spec.get('objective', '')}{f' ({targets})' if targets else ''}"


def load_line(body: JSON) -> str:
    """Return the load that was planned for, and where it is from."""
    load = (_status(body).get("plan") or {}).get("load") or {}
    if not load:
        return ""
    words = [
        f"{load['requestsPerSecond']} requests/s" if "requestsPerSecond" in load else "",
        f"{load['promptTokens']} prompt tokens" if "promptTokens" in load else "",
        f"{load['outputTokens']} output tokens" if "outputTokens" in load else "",
        _variation_words(load),
    ]
    return f"{load.get('source', '')}: {', '.join(word for word in words if word)}"


def _variation_words(load: JSON) -> str:
    """Return how uneven requests were seen to be; empty while they are assumed to be as Poisson's."""
    if "gapVariation" not in load:
        return ""
    return (
        f"varying by {load['gapVariation']} of the mean gap, {load.get('promptVariation', 1)} of the "
        f"mean prompt and {load.get('outputVariation', 1)} of the mean output"
    )


def sharing_lines(body: JSON) -> list[str]:
    """Return who shares the worker, with states, and what the engine or the planner says of lending."""
    plan = _status(body).get("plan") or {}
    lines = []
    group = plan.get("group")
    if group:
        lines.append(f"Group {group}: {_members(plan) or 'its worker has not answered yet'}")
    remap = plan.get("remap") or {}
    if remap:
        said = "the engine's last advice" if remap.get("source") == "Engine" else "as planned"
        words = [f"Remapping: {remap.get('verdict', '')} ({said})"]
        units = [f"{lent['model']} {lent['units']} units" for lent in remap.get("lendUnits") or ()]
        if units:
            words.append(f"idle models give {', '.join(units)}")
        if "switchMilliseconds" in remap:
            words.append(f"reading one again takes {remap['switchMilliseconds']} ms")
        if "kvTokensAfter" in remap:
            words.append(
                f"the KV cache holds {remap.get('kvTokensBefore')} tokens, "
                f"{remap['kvTokensAfter']} with what is lent"
            )
        lines.append("; ".join(words))
        lines += [f"  {reason}" for reason in remap.get("reasons") or ()]
    return lines


def _members(plan: JSON) -> str:
    found = []
    for member in plan.get("members") or ():
        why = f" ({member['reason']})" if member.get("reason") else ""
        found.append(f"{member['model']} {member['state']}{why}")
    return ", ".join(found)


def predicted_and_observed(body: JSON) -> list[tuple[str, str, str]]:
    """Return name, predicted and observed of what has been observed."""
    status = _status(body)
    observed = status.get("observed") or {}
    predicted = (status.get("plan") or {}).get("predicted") or {}
    rows = (
        ("TTFT ms", "timeToFirstTokenMilliseconds"),
        ("TPOT ms", "timePerOutputTokenMilliseconds"),
        ("E2E ms", "endToEndMilliseconds"),
    )
    return [
        (name, str(predicted.get(key, "")), str(observed[key]))
        for name, key in rows
        if key in observed
    ]


def as_json(body: JSON) -> JSON:
    """Return the explanation for programs."""
    status = _status(body)
    return {
        "object": qualified_name(body),
        "summary": headline(body),
        "conditions": [
            {
                "type": line.type,
                "status": line.status,
                "reason": line.reason,
                "meaning": line.meaning,
                "message": line.message,
            }
            for line in condition_lines(body)
        ],
        **{
            key: status[key]
            for key in (
                "endpoint",
                "model",
                "plan",
                "alternatives",
                "observed",
                "sizes",
                "violations",
                "spread",
                "bins",
                "outliers",
            )
            if key in status
        },
    }


def _status(body: JSON) -> JSON:
    status: JSON = body.get("status") or {}
    return status


def _good(condition: JSON) -> bool | None:
    if condition["status"] == "Unknown":
        return None
    holds = str(condition["status"]) == "True"
    return holds == _POSITIVE.get(condition["type"], True)


def _option_line(option: JSON, *, chosen: bool) -> OptionLine:
    predicted = option.get("predicted") or {}
    margin = option.get("margin") or {}
    confidence = option.get("confidence") or {}
    percentile = predicted.get("percentile")
    at = f" p{percentile}" if percentile else ""
    return OptionLine(
        chosen=chosen,
        option=_configuration(option),
        ttft=_figure(predicted, "timeToFirstTokenMilliseconds", at),
        tpot=_figure(predicted, "timePerOutputTokenMilliseconds", at),
        cost_per_hour=_amount(option.get("costPerHour")),
        cost_per_million=_amount(predicted.get("costPerMillionOutputTokens")),
        capacity=str(predicted.get("capacityRequestsPerSecond", "")),
        margin=_margin(margin),
        confidence=" ".join(
            str(confidence[key]) for key in ("level", "source") if confidence.get(key)
        ),
        accuracy_loss=_loss(option),
        reason=option.get("reason", ""),
        why=option.get("message", "")
        or f"{_configuration(option)}: {_MEANINGS.get(option.get('reason', ''), '')}",
    )


def _configuration(option: JSON) -> str:
    """Return `2 x cpu, 1 thread, bf16` or `1 x NVIDIA-H100-80GB-HBM3, TP 4, fp8`."""
    replicas = option.get("replicas")
    words = [f"{replicas} x {option.get('product')}" if replicas else str(option.get("product"))]
    threads = option.get("threadsPerReplica")
    if threads:
        words.append(f"{threads} thread{'s' if threads > 1 else ''}")
    for key, short in (("tensorParallelSize", "TP"), ("pipelineParallelSize", "PP")):
        if option.get(key, 1) > 1:
            words.append(f"{short} {option[key]}")
    words.append(str(option.get("precision")))
    return ", ".join(words)


def _figure(predicted: JSON, key: str, at: str) -> str:
    return f"{predicted[key]}{at}" if key in predicted else ""


def _loss(option: JSON) -> str:
    if "accuracyLossPercent" not in option:
        return ""
    error = option.get("accuracyLossErrorPercent")
    return f"{option['accuracyLossPercent']}{f' ± {error}' if error else ''} %"


def _amount(text: str | None) -> str:
    """Return an amount of money with three digits that count; `-o json` has all of them."""
    if text is None:
        return ""
    amount = float(text)
    return f"{amount:,.2f}" if amount >= _THREE_DIGITS else f"{amount:.3g}"


def _margin(margin: JSON) -> str:
    percents = [
        margin.get("timeToFirstTokenPercent"),
        margin.get("timePerOutputTokenPercent"),
    ]
    known = [str(percent) for percent in percents if percent is not None]
    return f"{' / '.join(known)} %" if known else ""
